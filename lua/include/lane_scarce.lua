-- Whether admitting these amounts would use what a fair lane keeps for who was served least; whether it is at least
-- half way there, so that who is served counts; and the share of the lane that the request takes, in millionths, for the
-- principal's virtual counter. A bucket keeps its last eighth, which
-- costs nothing: it drains as fast. A window keeps an eighth ahead of its pace, down to nothing at its end. Elsewhere
-- room that stays empty is lost, so that it is one request's.
-- @include layout_lane
-- @include limit_used
-- @include working

local function lane_scarce(lane, amounts)
  local scarce, counts, share = false, false, 0
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    local kind, capacity, amount = lane[at + D_KIND], lane[at + D_CAPACITY], amounts[lane[at + D_METRIC]]
    if amount > 0 and kind ~= SLOTS then
      local used = limit_used(lane, at) + amount
      local open = capacity - (kind == BUCKET and math.max(amount, capacity / 8) or amount)
      if kind == FIXED or kind == CALENDAR then
        local left = (lane[at + D_S3] - cell.now) / (lane[at + D_S3] - lane[at + D_S2])
        open = capacity * (1 - left * 9 / 8)
      end
      scarce, counts = scarce or used > open, counts or used * 2 > open
      share = math.max(share, math.ceil(amount * 1000000 / capacity))
    end
  end
  return scarce, counts, share
end
