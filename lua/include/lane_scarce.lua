-- Whether admitting these amounts would use a fair lane's last eighth, or run a window ahead of its pace; and the
-- share of the lane that the request takes, in millionths, for the principal's virtual counter.
local function lane_scarce(lane, amounts)
  local scarce, share = false, 0
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    local capacity, amount = lane[at + D_CAPACITY], charge_amount(amounts, lane[at + D_METRIC])
    local used, open = limit_used(lane, at) + amount, capacity - math.max(amount, capacity / 8)
    local kind = lane[at + D_KIND]
    if kind == FIXED or kind == CALENDAR then
      local length = lane[at + D_S3] - lane[at + D_S2]
      open = open * (cell.now - lane[at + D_S2]) / length
    end
    scarce = scarce or used > open
    share = math.max(share, math.ceil(amount * 1000000 / capacity))
  end
  return scarce, share
end
