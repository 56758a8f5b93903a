-- Books changes in the period that was charged: the current one, the previous one, or `late`.
-- @include layout_scope
-- @include record

local function scope_book(scope, start, settled, held, suspense, unpriced)
  if start == scope[S_START] then
    scope[S_SETTLED] = scope[S_SETTLED] + settled
    scope[S_HELD] = scope[S_HELD] + held
    scope[S_SUSPENSE] = scope[S_SUSPENSE] + suspense
    if unpriced > 0 then
      local rest = record_rest(scope)
      rest[P_UNPRICED] = rest[P_UNPRICED] + unpriced
    end
    return
  end
  local rest = record_rest(scope)
  if start == rest[P_PREV_START] then
    rest[P_PREV_SETTLED] = rest[P_PREV_SETTLED] + settled
    rest[P_PREV_HELD] = rest[P_PREV_HELD] + held
    rest[P_PREV_SUSPENSE] = rest[P_PREV_SUSPENSE] + suspense
    rest[P_PREV_UNPRICED] = rest[P_PREV_UNPRICED] + unpriced
  else
    rest[P_LATE] = rest[P_LATE] + settled
  end
end
