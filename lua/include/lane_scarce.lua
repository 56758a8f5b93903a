-- Whether admitting these amounts would use what a fair lane keeps for who was served least; and the share of the lane
-- that the request takes, in millionths, for the principal's virtual counter. A bucket keeps its last eighth, which
-- costs nothing: it drains as fast. A window keeps an eighth ahead of its pace, down to nothing at its end. Elsewhere
-- room that stays empty is lost, so that it is one request's.
local function lane_scarce(lane, amounts)
  local scarce, share = false, 0
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    local capacity, amount = lane[at + D_CAPACITY], charge_amount(amounts, lane[at + D_METRIC])
    if amount > 0 then
      local used, kind = limit_used(lane, at) + amount, lane[at + D_KIND]
      local open = capacity - (kind == BUCKET and math.max(amount, capacity / 8) or amount)
      if kind == FIXED or kind == CALENDAR then
        local left = (lane[at + D_S3] - cell.now) / (lane[at + D_S3] - lane[at + D_S2])
        open = capacity * (1 - left * 9 / 8)
      end
      scarce = scarce or used > open
      share = math.max(share, math.ceil(amount * 1000000 / capacity))
    end
  end
  return scarce, share
end
