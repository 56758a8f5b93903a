-- Fairness between principals of a pool: each has a virtual counter of the shares it took, per weight. When headroom is
-- scarce only who is within two requests of the least served that is present may take it. F holds `c` and a principal: its
-- counter; `t` and a principal: until when it is present, above all counters; `v`: what the leader has, less its lead.
-- Nobody starts below that, so that idling or asking for little earns no claim. Who was served is present for a while, and
-- so is who asked in vain (`claim`); who is not binds nobody, and ten seconds later it is forgotten, eight at a time.
-- Counters are no accounting: they may be lost freely.
-- @include lane_scarce
-- @include layout_lane
-- @include working

local FAIR_IDLE, FAIR_LEAD, FAIR_TIMES, FAIR_LOOKED_AT = 10000000, 125000, 4503599627370496, 32

-- The least counter of those that are present, of so many that were served least; nil: none is.
local function fair_least(principal, gone, skip)
  local served = redis.call('ZRANGE', F, 0, skip + FAIR_LOOKED_AT, 'WITHSCORES')
  local counters, times = {}, {}
  for i = 1, #served, 2 do
    local name = served[i]
    if string.sub(name, 1, 1) == 'c' and not gone[name] then
      counters[#counters + 1], times[#times + 1] = i, 't' .. string.sub(name, 2)
    end
  end
  if #times == 0 then
    return nil
  end
  local until_when = redis.call('ZMSCORE', F, unpack(times))
  for i = 1, #times do
    if times[i] == 't' .. principal or tonumber(until_when[i] or 0) > FAIR_TIMES + cell.now then
      return tonumber(served[counters[i] + 1])
    end
  end
  return nil
end

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
  local least = math.max(floor, fair_least(principal, gone, #idle) or mine)
  return { least = least, mine = math.max(mine, least), gone = gone, floor = floor }
end

local function fair_allows(state, charge)
  return state.mine <= state.least + 2 * charge
end

local function fair_leave(state)
  if #state.gone > 0 then
    redis.call('ZREM', F, unpack(state.gone))
  end
end

local function fair_write(state, principal, charge, stay)
  local mine = state.mine + charge
  local floor = math.max(state.floor, mine - math.max(FAIR_LEAD, 8 * charge))
  redis.call('ZADD', F, floor, 'v', mine, 'c' .. principal, FAIR_TIMES + cell.now + stay, 't' .. principal)
  fair_leave(state)
end

-- Whether a candidate would use what a fair lane keeps, and, when it counts for fairness, the principal's charge, and for
-- how long it stays present when it is served.
local function fair_charge(candidate, weight)
  local scarce, stay, amounts, named = false, 0, candidate.amounts, candidate.lanes
  for i = 1, #named do
    local lane = records[named[i]]
    if lane[L_FAIR] == 1 then
      local is_scarce, lane_stay = lane_scarce(lane, amounts)
      scarce, stay = scarce or is_scarce, math.max(stay, lane_stay)
    end
  end
  if stay == 0 then
    return scarce, nil, 0
  end
  local share = 0
  for i = 1, #named do
    local lane = records[named[i]]
    if lane[L_FAIR] == 1 then
      share = math.max(share, lane_share(lane, amounts))
    end
  end
  return scarce, math.max(1, math.ceil(share / weight)), stay
end
