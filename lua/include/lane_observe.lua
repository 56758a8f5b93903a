-- Re-syncs one limit of a lane with what its provider said. Usage is only ever raised: what is in flight may not be in
-- the provider's count yet. A limit that is lower than configured is adopted while it is told, an unknown one is learned.
-- @include cell_catalogue
-- @include layout_lane
-- @include limit_start
-- @include limit_used
-- @include numbers
-- @include working

local O_NAME, O_CAPACITY, O_TICK, O_USED, O_FULL_IN = 1, 4, 7, 8, 9
local USED_SPECIAL = { ['-1'] = -1, ['-2'] = -2 }

-- What the configuration says about the limit that was seen; nil: nothing.
local function limit_configured(id, seen)
  local packed = redis.call('HGET', cell_catalogue(), id)
  local config = packed and numbers_unpack(packed) or {}
  for from = 5, #config - 1, LIMIT_CONFIG_SIZE do
    if config[from + D_NAME] == seen[O_NAME] then
      return { unpack(config, from + 1, from + LIMIT_CONFIG_SIZE) }
    end
  end
end

local function lane_observe(id, lane, seen)
  local at, count = nil, 0
  for offset = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    count = count + (lane[offset + D_KIND] == SLOTS and 0 or 1)
    if lane[offset + D_NAME] == seen[O_NAME] then
      at = offset
    end
  end
  if seen[O_USED] == -2 then
    if at then
      limit_start(lane, at, 0, cell.now)
    end
    return
  end
  if seen[O_CAPACITY] > 0 then
    local configured, rule, used, refund = limit_configured(id, seen), seen, 0, 1
    if configured and configured[D_CAPACITY] <= seen[O_CAPACITY] then
      rule = configured
    end
    if at then
      used, refund = limit_used(lane, at), lane[at + D_REFUND]
    elseif count < LIMITS_MAX then
      at = #lane
      for field = 1, LIMIT_SIZE do
        lane[at + field] = 0
      end
    else
      return
    end
    if lane[at + D_CAPACITY] ~= rule[D_CAPACITY] or lane[at + D_KIND] ~= rule[D_KIND] then
      for field = O_NAME, O_TICK do
        lane[at + field] = rule[field]
      end
      lane[at + D_REFUND], lane[at + D_LEARNED] = refund, rule == seen and 1 or 0
      limit_start(lane, at, used, cell.now)
    end
  end
  if not at then
    return
  end
  local kind = lane[at + D_KIND]
  local elsewhere = math.max(0, seen[O_CAPACITY] - lane[at + D_CAPACITY]) -- room that this limit does not have
  local more = seen[O_USED] - elsewhere - limit_used(lane, at)
  if kind == BUCKET then
    if seen[O_FULL_IN] > 0 then
      local ticks = math.floor(seen[O_FULL_IN] / lane[at + D_TICK])
      local level = math.min(ticks * lane[at + D_DRAIN], lane[at + D_CAPACITY] * lane[at + D_SCALE])
      lane[at + D_S1] = math.max(lane[at + D_S1], level)
    elseif more > 0 then
      lane[at + D_S1] = math.min(AMOUNT_MAX, lane[at + D_S1] + more * lane[at + D_SCALE])
    end
  elseif more > 0 and kind == SLIDING then
    lane[at + D_N] = lane[at + D_N] + more
  elseif more > 0 and kind ~= CONCURRENCY then
    lane[at + D_S1] = lane[at + D_S1] + more
  end
end
