-- Starts a limit's state at `now` with `used` already counted: what was used under another kind or rate stays used. What
-- was charged before this seq has no place in it, and can give nothing back.
local function limit_start(lane, at, used, now)
  for slot = at + D_S1, at + D_S8 do
    lane[slot] = 0
  end
  local kind = lane[at + D_KIND]
  if kind == BUCKET then
    lane[at + D_S1], lane[at + D_S2], lane[at + D_S4] = used * lane[at + D_SCALE], now, cell.seq + 1
  elseif kind == FIXED or kind == CALENDAR then
    limit_advance(lane, at, now)
    lane[at + D_S1], lane[at + D_S4] = used, cell.seq + 1
  elseif kind == SLIDING then
    lane[at + D_S1], lane[at + D_S2] = now - now % lane[at + D_SCALE], used
  end
end
