-- Rebuilds a lane under the active configuration; what each limit had counted stays counted. What was learned from the
-- provider, and is not configured, stays too.
-- @include cell_catalogue
-- @include layout_lane
-- @include limit_advance
-- @include limit_start
-- @include limit_used
-- @include numbers
-- @include record
-- @include working

local function limits_take(lane, now)
  local before, names = {}, {}
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    if lane[at + D_KIND] ~= SLOTS then
      limit_advance(lane, at, now)
      local size = lane[at + D_KIND] == SLIDING and 2 * LIMIT_SIZE or LIMIT_SIZE
      local block = { unpack(lane, at + 1, at + size) }
      block.used = limit_used(lane, at)
      before[block[D_NAME]] = block
      names[#names + 1] = block[D_NAME]
    end
  end
  for field = #lane, LANE_SIZE + 1, -1 do
    lane[field] = nil
  end
  return before, names
end

local function limit_put(lane, block, from)
  local at = #lane
  for field = from, #block do
    lane[at + field - from + 1] = block[field]
  end
end

local function lane_configure(id, lane, now)
  lane[L_CONFIG] = cell.config
  local packed = redis.call('HGET', cell_catalogue(), id)
  if not packed then
    return
  end
  local config, health = numbers_unpack(packed), record_rest(lane)
  lane[L_FAIR] = config[1]
  for field = H_BREAK_AFTER, H_BREAK_OPEN_MAX do
    health[field] = config[field - H_BREAK_AFTER + 2]
  end
  local before, names = limits_take(lane, now)
  local count = 0
  for from = 5, #config - 1, LIMIT_CONFIG_SIZE do
    local at = #lane
    for field = 1, LIMIT_SIZE do
      lane[at + field] = field <= LIMIT_CONFIG_SIZE and config[from + field] or 0
    end
    local old = before[lane[at + D_NAME]]
    if old and old[D_KIND] == lane[at + D_KIND] and old[D_SCALE] == lane[at + D_SCALE]
      and old[D_DRAIN] == lane[at + D_DRAIN] and old[D_TICK] == lane[at + D_TICK] then
      for field = D_S1, LIMIT_SIZE do
        lane[at + field] = old[field]
      end
      limit_put(lane, old, LIMIT_SIZE + 1)
    else
      limit_start(lane, at, old and old.used or 0, now)
    end
    before[lane[at + D_NAME]] = nil
    count = count + 1
  end
  for i = 1, #names do
    local old = before[names[i]]
    if old and old[D_LEARNED] == 1 and count < LIMITS_MAX then
      limit_put(lane, old, 1)
      count = count + 1
    end
  end
end
