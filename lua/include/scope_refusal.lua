-- Why a scope (rolled) has no room for an amount (nil: a cost that it does not take unpriced): reason, retry time, how
-- far that can be trusted.
-- @include layout_scope
-- @include numbers
-- @include reasons
-- @include working

local function scope_refusal(scope, amount)
  if not amount then
    return UNPRICED, AMOUNT_MAX, NEVER
  elseif cell.suspect == 1 then
    return CLOCK_SUSPECT, cell.now + 1000000, ESTIMATED
  elseif amount > scope[S_LIMIT] then
    return NEVER_FITS, AMOUNT_MAX, NEVER
  elseif amount + scope[S_SETTLED] <= scope[S_LIMIT] then
    return BUDGET, math.min(cell.now + 1000000, scope[S_END]), ESTIMATED -- what is held may still come back
  end
  return BUDGET, scope[S_END], scope[S_END] == AMOUNT_MAX and NEVER or EXACT
end
