-- Rebuilds a lane under the active configuration; what each limit had counted stays counted. What was learned from the
-- provider, and is not configured, stays too.
local function lane_configure(id, lane, now)
  lane[L_CONFIG] = cell.config
  local packed = redis.call('HGET', cell_catalogue(), 'l:' .. id)
  if not packed then
    return
  end
  local config = numbers_unpack(packed)
  for field = L_FAIR, L_BREAK_OPEN_MAX do
    lane[field] = config[field - L_FAIR + 1]
  end
  local before, names = {}, {}
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    limit_advance(lane, at, now)
    local block = { used = limit_used(lane, at) }
    for field = 1, LIMIT_SIZE do
      block[field] = lane[at + field]
    end
    before[block[D_NAME]] = block
    names[#names + 1] = block[D_NAME]
  end
  for field = #lane, LANE_SIZE + 1, -1 do
    lane[field] = nil
  end
  for from = 5, #config - 1, LIMIT_CONFIG_SIZE do
    local at = #lane
    for field = 1, LIMIT_CONFIG_SIZE do
      lane[at + field] = config[from + field]
    end
    lane[at + D_LEARNED] = 0
    local old = before[lane[at + D_NAME]]
    if old and old[D_KIND] == lane[at + D_KIND] and old[D_SCALE] == lane[at + D_SCALE]
      and old[D_DRAIN] == lane[at + D_DRAIN] and old[D_TICK] == lane[at + D_TICK] then
      for field = D_S1, D_S8 do
        lane[at + field] = old[field]
      end
    else
      limit_start(lane, at, old and old.used or 0, now)
    end
    before[lane[at + D_NAME]] = nil
  end
  for i = 1, #names do
    local old, at = before[names[i]], #lane
    if old and old[D_LEARNED] == 1 and at < LANE_SIZE + LIMITS_MAX * LIMIT_SIZE then
      for field = 1, LIMIT_SIZE do
        lane[at + field] = old[field]
      end
    end
  end
end
