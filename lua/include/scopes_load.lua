-- Loads scopes into the working set with one read, rolled to the current period. Returns an id that is not
-- configured, if there is one: a budget that nobody declared cannot be enforced.
-- @include ids_missing
-- @include layout_scope
-- @include record
-- @include scope_configure
-- @include scope_roll
-- @include working

local function scopes_load(ids, first)
  local missing = ids_missing(ids, scopes, first)
  if #missing == 0 then
    return nil
  end
  local packed, unknown = redis.call('HMGET', B, unpack(missing)), nil
  for i = 1, #missing do
    local scope = packed[i]
    if scope then
      if #scope ~= (SCOPE_SIZE + PERIODS_SIZE) * 8 then
        error('scope record of ' .. #scope .. ' bytes')
      end
      scope = record_read(scope, SCOPE_SIZE)
    end
    if not scope or scope[S_CONFIG] ~= cell.config then
      scope = scope_configure(missing[i], scope)
    end
    if not scope then
      unknown = missing[i]
    elseif cell.now >= scope[S_END] then
      scope_roll(scope)
    end
    scopes[missing[i]] = scope
  end
  return unknown
end
