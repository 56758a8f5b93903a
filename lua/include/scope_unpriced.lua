-- What a scope holds for a cost that is unknown, by its rule, and how it is booked; nil when that rule is to deny.
-- @include layout_reservation
-- @include layout_scope

local function scope_unpriced(scope)
  if scope[S_UNPRICED_RULE] == RULE_FLAT then
    return scope[S_FLAT], FLAT
  elseif scope[S_UNPRICED_RULE] == RULE_METER or scope[S_HARD] == 0 then
    return 0, METERED
  end
  return nil
end
