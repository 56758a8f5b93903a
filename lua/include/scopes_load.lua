-- Loads scopes into the working set with one read, rolled to the current period. Returns an id that is not
-- configured, if there is one: a budget that nobody declared cannot be enforced.
local scopes, scopes_dirty = {}, {}

local function scope_roll(scope)
  if cell.now < scope[S_END] then
    return
  end
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
  if scope[S_CONFIG] ~= 0 and calendar ~= scope[S_CALENDAR] then
    -- another calendar: the period that is under way keeps its start, and what it counted, until the new one's end
    local _, stop = calendar_period(scope[S_CALENDAR], cell.now)
    scope[S_END] = stop
  end
  scope[S_CONFIG] = cell.config
  return scope
end

local function scopes_load(ids)
  local missing = {}
  for i = 1, #ids do
    if not scopes[ids[i]] then
      scopes[ids[i]] = false
      missing[#missing + 1] = ids[i]
    end
  end
  if #missing == 0 then
    return nil
  end
  local unknown
  local packed = redis.call('HMGET', B, unpack(missing))
  for i = 1, #missing do
    local scope = packed[i] and numbers_unpack(packed[i]) or nil
    if not scope or scope[S_CONFIG] ~= cell.config then
      scope = scope_configure(missing[i], scope)
    end
    if scope then
      scope_roll(scope)
      scopes[missing[i]] = scope
    else
      unknown = missing[i]
    end
  end
  return unknown
end
