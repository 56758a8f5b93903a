-- Loads scopes into the working set with one read, rolled to the current period. Returns an id that is not
-- configured, if there is one: a budget that nobody declared cannot be enforced.
-- Not what was read as it stands: another configuration, or a period that has ended. Rare, so what it takes is defined
-- only here.
local function scope_renew(id, scope)
  -- @include scope_configure
  -- @include scope_roll
  if not scope or scope[S_CONFIG] ~= cell.config then
    scope = scope_configure(id, scope)
  end
  if scope and cell.now >= scope[S_END] then
    scope_roll(scope)
  end
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
    if not scope or scope[S_CONFIG] ~= cell.config or cell.now >= scope[S_END] then
      scope = scope_renew(missing[i], scope)
    end
    scopes[missing[i]] = scope
    unknown = unknown or (not scope and missing[i])
  end
  return unknown
end
