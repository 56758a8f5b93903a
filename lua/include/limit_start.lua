-- A sliding limit has a block of slots behind its own; another has none.
-- @include layout_lane
-- @include limit_advance
-- @include numbers
-- @include working

local function limit_slots(lane, at)
  local slots, wanted = at + LIMIT_SIZE, lane[at + D_KIND] == SLIDING
  local there = lane[slots + D_KIND] == SLOTS
  for field = 1, LIMIT_SIZE do
    if wanted and not there then
      table.insert(lane, slots + field, 0)
    elseif there and not wanted then
      table.remove(lane, slots + 1)
    end
  end
  if wanted then
    lane[slots + D_METRIC], lane[slots + D_KIND] = 1, SLOTS
  end
end

-- Starts a limit's state at `now` with `used` already counted: what was used under another kind or rate stays used. What
-- was charged before this seq has no place in it, and can give nothing back.
local function limit_start(lane, at, used, now)
  limit_slots(lane, at)
  for slot = at + D_S1, at + D_S4 do
    lane[slot] = 0
  end
  local kind = lane[at + D_KIND]
  if kind == BUCKET then
    local level = math.min(AMOUNT_MAX, used * lane[at + D_SCALE])
    lane[at + D_S1], lane[at + D_S2], lane[at + D_S4] = level, now, cell.seq + 1
  elseif kind == FIXED or kind == CALENDAR then
    limit_advance(lane, at, now)
    lane[at + D_S1], lane[at + D_S4] = used, cell.seq + 1
  elseif kind == SLIDING then
    for slot = at + D_N, at + D_N + SLIDING_SLOTS do
      lane[slot] = 0
    end
    lane[at + D_S1], lane[at + D_N], lane[at + D_S4] = now - now % lane[at + D_SCALE], used, cell.seq + 1
  end
end
