-- Fairness between principals of a pool: each has a virtual counter of the shares it took, per weight, since the epoch
-- began. When headroom is scarce only who is within two requests of the least served may take it. A newcomer starts
-- level with the least served, so that idling earns no claim. Counters are no accounting: they may be lost freely.
local FAIR_EPOCH = 10000000

local function fair_read(pool, principal)
  local epoch = cell.now - cell.now % FAIR_EPOCH
  if tonumber(redis.call('HGET', M, 'fair:' .. pool) or -1) ~= epoch then
    return { epoch = epoch, stale = true, least = 0, mine = 0 }
  end
  local first = redis.call('ZRANGE', F, 0, 0, 'WITHSCORES')
  local least = tonumber(first[2]) or 0
  local mine = tonumber(redis.call('ZSCORE', F, principal) or nil)
  return { epoch = epoch, least = least, mine = mine and math.max(mine, least) or least }
end

local function fair_allows(state, charge)
  return state.mine <= state.least + 2 * charge
end

local function fair_write(state, pool, principal, charge)
  if state.stale then
    redis.call('DEL', F)
    redis.call('HSET', M, 'fair:' .. pool, state.epoch)
  end
  redis.call('ZADD', F, state.mine + charge, principal)
end
