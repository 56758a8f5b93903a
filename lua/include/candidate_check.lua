-- Of all that stands against a candidate, what ends last binds: reason (0: nothing), id, limit, retry time, trust. Then
-- what each scope would hold, how it is booked, and whether one of them is soft. A hard scope holds the bound of the cost,
-- a soft one what is expected.
-- @include lane_check
-- @include layout_reservation
-- @include layout_scope
-- @include reasons
-- @include scope_refusal
-- @include scope_unpriced
-- @include working

local function candidate_check(candidate)
  local reason, where, limit, retry, trust = 0, '', 0, 0, EXACT
  local amounts, named = candidate.amounts, candidate.lanes
  for i = 1, #named do
    local why, when, kind, name = lane_check(records[named[i]], amounts)
    if why ~= 0 and when > retry then
      reason, where, limit, retry, trust = why, named[i], name, when, kind
    end
  end
  named = candidate.scopes
  local holds, modes, soft = {}, {}, false
  local expected, bound, trusted = amounts.expected, amounts.bound, cell.suspect ~= 1
  for i = 1, #named do
    local scope = records[named[i]]
    local hard = scope[S_HARD] == 1
    local amount, mode = hard and bound or expected, PRICED
    if amount < 0 then
      amount, mode = scope_unpriced(scope)
    end
    soft = soft or not hard
    if amount and (not hard
      or trusted and amount + scope[S_SETTLED] + scope[S_HELD] + scope[S_SUSPENSE] <= scope[S_LIMIT]) then
      holds[i], modes[i] = amount, mode
    else
      local why, when, kind = scope_refusal(scope, amount)
      if when > retry then
        reason, where, limit, retry, trust = why, named[i], 0, when, kind
      end
    end
  end
  return reason, where, limit, retry, trust, holds, modes, soft
end
