-- What one limit (already advanced) counts as used now, in units of amount, rounded up.
-- @include layout_lane

local function limit_used(lane, at)
  local kind = lane[at + D_KIND]
  if kind == BUCKET then
    local level, scale = lane[at + D_S1], lane[at + D_SCALE]
    return (level + (scale - level % scale) % scale) / scale
  elseif kind == SLIDING then
    local used = 0
    for slot = at + D_N, at + D_N + SLIDING_SLOTS do
      used = used + lane[slot]
    end
    return used
  elseif kind == CONCURRENCY then
    return lane[L_IN_FLIGHT]
  end
  return lane[at + D_S1]
end
