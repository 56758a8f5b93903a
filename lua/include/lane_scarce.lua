-- Whether admitting these amounts would use what a fair lane keeps for who was served least, and, when it is at least half
-- way there, for how long (us) who is served counts as present; else 0. A bucket keeps its last eighth, which costs nothing:
-- it drains as fast. A window keeps an eighth ahead of its pace, down to nothing at its end. Elsewhere room that stays
-- empty is lost, so that it is one request's, and kept for nobody who does not come for it at once.
-- @include layout_lane
-- @include limit_used
-- @include working

local FAIR_STAY, FAIR_STAY_LOST = 10000000, 250000

local function lane_scarce(lane, amounts)
  local scarce, stay = false, 0
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    local kind, capacity, amount = lane[at + D_KIND], lane[at + D_CAPACITY], amounts[lane[at + D_METRIC]]
    if amount > 0 and kind ~= SLOTS then
      local used, open, kept = limit_used(lane, at) + amount, capacity - amount, FAIR_STAY_LOST
      if kind == BUCKET and capacity / 8 > amount then
        open, kept = capacity - capacity / 8, FAIR_STAY
      elseif kind == FIXED or kind == CALENDAR then
        local left = (lane[at + D_S3] - cell.now) / (lane[at + D_S3] - lane[at + D_S2])
        open, kept = capacity * (1 - left * 9 / 8), FAIR_STAY
      end
      scarce = scarce or used > open
      if used * 2 > open then
        stay = math.max(stay, kept)
      end
    end
  end
  return scarce, stay
end

-- The share of the lane that the request takes, in millionths, for the principal's virtual counter.
local function lane_share(lane, amounts)
  local share = 0
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    local amount = amounts[lane[at + D_METRIC]]
    if amount > 0 and lane[at + D_KIND] ~= SLOTS then
      share = math.max(share, math.ceil(amount * 1000000 / lane[at + D_CAPACITY]))
    end
  end
  return share
end
