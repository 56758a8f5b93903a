-- Rolls a scope to the period that contains now: the current one becomes the previous one.
local function scope_roll(scope)
  local start, stop = calendar_period(scope[S_CALENDAR], cell.now)
  if start == scope[S_END] then
    scope[S_PREV_START], scope[S_PREV_SETTLED], scope[S_PREV_HELD] = scope[S_START], scope[S_SETTLED], scope[S_HELD]
    scope[S_PREV_SUSPENSE], scope[S_PREV_UNPRICED] = scope[S_SUSPENSE], scope[S_UNPRICED]
  else
    for field = S_PREV_START, S_PREV_UNPRICED do
      scope[field] = 0
    end
    scope[S_PREV_START] = -1
  end
  for field = S_SETTLED, S_UNPRICED_COUNT do
    scope[field] = 0
  end
  scope[S_START], scope[S_END] = start, stop
end
