-- What a scope holds for a cost, and how it is booked: the bound under hard enforcement, the expected cost under soft.
-- A cost that is unknown follows the scope's rule; nil when that rule is to deny.
-- @include layout_reservation
-- @include layout_scope

local function scope_hold(scope, amounts)
  local hard = scope[S_HARD] == 1
  local amount = hard and amounts.bound or amounts.expected
  if amount >= 0 then
    return amount, PRICED
  elseif scope[S_UNPRICED_RULE] == RULE_FLAT then
    return scope[S_FLAT], FLAT
  elseif scope[S_UNPRICED_RULE] == RULE_METER or not hard then
    return 0, METERED
  end
  return nil
end
