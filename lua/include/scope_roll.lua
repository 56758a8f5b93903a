-- Rolls a scope to the period that contains now: the current one becomes the previous one.
-- @include calendar_period
-- @include layout_scope
-- @include record
-- @include working

local function scope_roll(scope)
  local rest = record_rest(scope)
  local start, stop = calendar_period(rest[P_CALENDAR], cell.now)
  local before = { -1, 0, 0, 0, 0 }
  if start == scope[S_END] then
    before = { scope[S_START], scope[S_SETTLED], scope[S_HELD], scope[S_SUSPENSE], rest[P_UNPRICED] }
  end
  for field = 1, #before do
    rest[P_PREV_START + field - 1] = before[field]
  end
  scope[S_SETTLED], scope[S_HELD], scope[S_SUSPENSE], rest[P_UNPRICED], rest[P_UNPRICED_COUNT] = 0, 0, 0, 0, 0
  scope[S_START], scope[S_END] = start, stop
  if rest[P_CALENDAR] >= FUNDED then
    scope[S_LIMIT] = 0
  end
end
