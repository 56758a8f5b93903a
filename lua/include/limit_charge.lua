-- Counts `amount` against one limit (already advanced). Returns where it was counted: the bucket's level and refunds
-- right after, or the window's start. Settlement needs it to give back to that place and to no other.
-- @include layout_lane
-- @include numbers

local function limit_charge(lane, at, amount)
  local kind = lane[at + D_KIND]
  if kind == BUCKET then
    local level = lane[at + D_S1] + amount * lane[at + D_SCALE]
    level = level < AMOUNT_MAX and level or AMOUNT_MAX
    lane[at + D_S1] = level
    return level, lane[at + D_S3]
  elseif kind == SLIDING then
    lane[at + D_N] = lane[at + D_N] + amount
    return lane[at + D_S1], 0
  end
  lane[at + D_S1] = lane[at + D_S1] + amount
  return lane[at + D_S2], 0
end
