-- What a candidate that fits would take of the last eighth: every limit and hard budget keeps it free while it is not known
-- what the store forgot. Reason (0: nothing), id, limit, retry time, trust.
-- @include layout_lane
-- @include layout_scope
-- @include limit_used
-- @include reasons
-- @include working

local FORGOT_PARTS = 8

local function forgot_check(candidate, holds)
  local amounts, named = candidate.amounts, candidate.lanes
  for i = 1, #named do
    local lane = records[named[i]]
    for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
      local capacity, amount = lane[at + D_CAPACITY], amounts[lane[at + D_METRIC]]
      if lane[at + D_KIND] ~= SLOTS and amount > 0 and limit_used(lane, at) + amount > capacity - capacity / FORGOT_PARTS then
        return STORE_FORGOT, named[i], lane[at + D_NAME], cell.cautious, ESTIMATED
      end
    end
  end
  named = candidate.scopes
  for i = 1, #named do
    local scope = records[named[i]]
    local limit, used = scope[S_LIMIT], scope[S_SETTLED] + scope[S_HELD] + scope[S_SUSPENSE]
    if scope[S_HARD] == 1 and holds[i] > 0 and used + holds[i] > limit - limit / FORGOT_PARTS then
      return STORE_FORGOT, named[i], 0, cell.cautious, ESTIMATED
    end
  end
  return 0, '', 0, 0, EXACT
end
