-- Takes the active configuration over into a scope's record; makes the record if there is none. nil: not configured.
local function scope_configure(id, scope)
  local packed = redis.call('HGET', cell_catalogue(), 's:' .. id)
  if not packed then
    return scope
  end
  local config = numbers_unpack(packed)
  if not scope then
    scope = {}
    for field = 1, SCOPE_SIZE do
      scope[field] = 0
    end
    scope[S_PREV_START] = -1
  end
  local calendar = scope[S_CALENDAR]
  for field = S_LIMIT, S_SUSPENSE_AFTER do
    scope[field] = config[field - S_LIMIT + 1]
  end
  if calendar ~= scope[S_CALENDAR] then
    -- another calendar: a period that reaches into the new one goes on, with what it counted, until the new one's end
    local start, stop = calendar_period(scope[S_CALENDAR], cell.now)
    if scope[S_END] > start then
      scope[S_END] = stop
    end
  end
  scope[S_CONFIG] = cell.config
  return scope
end
