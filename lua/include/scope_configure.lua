-- Takes the active configuration over into a scope's record; makes the record if there is none. nil: not configured.
-- The limit of one that another cell funds is what it was funded with, whatever the configuration says.
-- @include calendar_period
-- @include cell_catalogue
-- @include layout_scope
-- @include numbers
-- @include record
-- @include working

local function scope_configure(id, scope)
  local packed = redis.call('HGET', cell_catalogue(), id)
  if not packed then
    return scope
  end
  local config = numbers_unpack(packed)
  if not scope then
    scope = { numbers_zero(PERIODS_SIZE), unpack(numbers_zero(SCOPE_SIZE)) }
    scope[REST][P_PREV_START] = -1
  end
  local rest = record_rest(scope)
  local calendar, funded = rest[P_CALENDAR], scope[S_LIMIT]
  scope[S_LIMIT], scope[S_HARD], scope[S_UNPRICED_RULE], scope[S_FLAT] = unpack(config)
  rest[P_CALENDAR], rest[P_SUSPENSE_RULE], rest[P_SUSPENSE_AFTER] = unpack(config, 5)
  if rest[P_CALENDAR] >= FUNDED then
    scope[S_LIMIT] = calendar >= FUNDED and funded or 0
  end
  if calendar ~= rest[P_CALENDAR] then
    -- another calendar: a period that reaches into the new one goes on, with what it counted, until the new one's end
    local start, stop = calendar_period(rest[P_CALENDAR], cell.now)
    if scope[S_END] > start then
      scope[S_END] = stop
    end
  end
  scope[S_CONFIG] = cell.config
  return scope
end
