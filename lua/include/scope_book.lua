-- Books changes in the period that was charged: the current one, the previous one, or `late`.
local function scope_book(scope, start, settled, held, suspense, unpriced)
  if start == scope[S_START] then
    scope[S_SETTLED] = scope[S_SETTLED] + settled
    scope[S_HELD] = scope[S_HELD] + held
    scope[S_SUSPENSE] = scope[S_SUSPENSE] + suspense
    scope[S_UNPRICED] = scope[S_UNPRICED] + unpriced
  elseif start == scope[S_PREV_START] then
    scope[S_PREV_SETTLED] = scope[S_PREV_SETTLED] + settled
    scope[S_PREV_HELD] = scope[S_PREV_HELD] + held
    scope[S_PREV_SUSPENSE] = scope[S_PREV_SUSPENSE] + suspense
    scope[S_PREV_UNPRICED] = scope[S_PREV_UNPRICED] + unpriced
  else
    scope[S_LATE] = scope[S_LATE] + settled
  end
end
