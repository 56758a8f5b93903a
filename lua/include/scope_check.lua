-- Whether a scope (rolled) has room for a cost. Returns the amount to hold and how it is booked, or nil and why not:
-- reason, retry time, how far that can be trusted.
-- @include layout_scope
-- @include numbers
-- @include reasons
-- @include scope_hold
-- @include working

local function scope_check(scope, amounts)
  local amount, mode = scope_hold(scope, amounts)
  if not amount then
    return nil, UNPRICED, AMOUNT_MAX, NEVER
  elseif scope[S_HARD] == 0 then
    return amount, mode
  end
  if cell.suspect == 1 then
    return nil, CLOCK_SUSPECT, cell.now + 1000000, ESTIMATED
  end
  if amount > scope[S_LIMIT] then
    return nil, NEVER_FITS, AMOUNT_MAX, NEVER
  end
  local settled = scope[S_SETTLED] + amount
  if settled + scope[S_HELD] + scope[S_SUSPENSE] <= scope[S_LIMIT] then
    return amount, mode
  end
  if settled <= scope[S_LIMIT] then
    return nil, BUDGET, math.min(cell.now + 1000000, scope[S_END]), ESTIMATED -- what is held may still come back
  end
  return nil, BUDGET, scope[S_END], scope[S_END] == AMOUNT_MAX and NEVER or EXACT
end
