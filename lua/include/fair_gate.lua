-- Fairness between principals of a pool: each has a virtual counter of the shares it took, per weight. When headroom is
-- scarce only who is within two requests of the least served may take it. F holds `c` and a principal: its counter; `t`
-- and a principal: when it was last served, above all counters; `v`: what the leader has, less its lead. Nobody starts
-- below that, so that idling or asking for little earns no claim. Who was not served for ten seconds is idle and binds
-- nobody; at most eight of them leave at a time. Counters are no accounting: they may be lost freely.
-- @include lane_scarce
-- @include layout_lane
-- @include working

local FAIR_IDLE, FAIR_LEAD, FAIR_TIMES = 10000000, 125000, 4503599627370496

local function fair_read(principal)
  local gone = {}
  local idle = redis.call('ZRANGEBYSCORE', F, FAIR_TIMES, FAIR_TIMES + cell.now - FAIR_IDLE, 'LIMIT', 0, 8)
  for i = 1, #idle do
    local name = string.sub(idle[i], 2)
    if name ~= principal then
      gone[#gone + 1], gone[#gone + 2] = idle[i], 'c' .. name
      gone['c' .. name] = true
    end
  end
  local scores = redis.call('ZMSCORE', F, 'v', 'c' .. principal)
  local floor, mine = tonumber(scores[1] or 0), tonumber(scores[2] or 0)
  local served, least = redis.call('ZRANGE', F, 0, #idle + 1, 'WITHSCORES'), nil
  for i = 1, #served, 2 do
    if string.sub(served[i], 1, 1) == 'c' and not gone[served[i]] then
      least = tonumber(served[i + 1])
      break
    end
  end
  least = math.max(floor, least or mine)
  return { least = least, mine = math.max(mine, least), gone = gone, floor = floor }
end

local function fair_allows(state, charge)
  return state.mine <= state.least + 2 * charge
end

local function fair_write(state, principal, charge)
  local mine = state.mine + charge
  local floor = math.max(state.floor, mine - math.max(FAIR_LEAD, 8 * charge))
  redis.call('ZADD', F, floor, 'v', mine, 'c' .. principal, FAIR_TIMES + cell.now, 't' .. principal)
  if #state.gone > 0 then
    redis.call('ZREM', F, unpack(state.gone))
  end
end

-- Whether a candidate would use what a fair lane keeps, and, when it counts for fairness, the principal's charge.
local function fair_charge(candidate, weight)
  local scarce, counts, amounts, named = false, false, candidate.amounts, candidate.lanes
  for i = 1, #named do
    local lane = records[named[i]]
    if lane[L_FAIR] == 1 then
      local is_scarce, lane_counts = lane_scarce(lane, amounts)
      scarce, counts = scarce or is_scarce, counts or lane_counts
    end
  end
  if not counts then
    return scarce, nil
  end
  local share = 0
  for i = 1, #named do
    local lane = records[named[i]]
    if lane[L_FAIR] == 1 then
      share = math.max(share, lane_share(lane, amounts))
    end
  end
  return scarce, math.max(1, math.ceil(share / weight))
end
