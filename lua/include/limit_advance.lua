-- Brings one limit's state to `now`: buckets drain, windows roll, slots slide. Idempotent, moves time forward only.
-- @include calendar_period
-- @include layout_lane

local function limit_advance(lane, at, now)
  local kind = lane[at + D_KIND]
  if kind == BUCKET then
    local elapsed = now - lane[at + D_S2]
    local tick = lane[at + D_TICK]
    elapsed = elapsed - elapsed % tick
    if elapsed > 0 then
      local level = lane[at + D_S1] - elapsed / tick * lane[at + D_DRAIN]
      lane[at + D_S1] = level > 0 and level or 0
      lane[at + D_S2] = lane[at + D_S2] + elapsed
    end
  elseif kind == FIXED then
    if now >= lane[at + D_S3] then
      local start = now - now % lane[at + D_SCALE]
      lane[at + D_S1], lane[at + D_S2], lane[at + D_S3] = 0, start, start + lane[at + D_SCALE]
    end
  elseif kind == CALENDAR then
    if now >= lane[at + D_S3] then
      local start, stop = calendar_period(lane[at + D_SCALE], now)
      lane[at + D_S1], lane[at + D_S2], lane[at + D_S3] = 0, start, stop
    end
  elseif kind == SLIDING then
    local start = now - now % lane[at + D_SCALE]
    local shift = math.min((start - lane[at + D_S1]) / lane[at + D_SCALE], SLIDING_SLOTS + 1)
    if shift > 0 then
      for slot = at + D_N + SLIDING_SLOTS, at + D_N, -1 do
        local from = slot - shift
        lane[slot] = from >= at + D_N and lane[from] or 0
      end
      lane[at + D_S1] = start
    end
  end
end
