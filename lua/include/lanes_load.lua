-- Loads lanes into the working set with one read, advanced to now. What is not there yet is a fresh, unlearned lane.
local function lane_renew(id, lane)
  -- @include limit_start
  -- @include lane_configure
  lane_configure(id, lane, cell.now)
end

local function lanes_load(ids)
  local missing = {}
  for i = 1, #ids do
    if not lanes[ids[i]] then
      lanes[ids[i]] = false
      missing[#missing + 1] = ids[i]
    end
  end
  if #missing == 0 then
    return
  end
  local packed = redis.call('HMGET', L, unpack(missing))
  for i = 1, #missing do
    local lane
    if packed[i] then
      lane = numbers_unpack(packed[i])
    else
      lane = {}
      for field = 1, LANE_SIZE do
        lane[field] = 0
      end
      lane[L_CONFIG] = -1
      lane[L_DECAYED] = cell.now
    end
    lanes[missing[i]] = lane
    if lane[L_CONFIG] ~= cell.config then
      lane_renew(missing[i], lane)
    end
    for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
      limit_advance(lane, at, cell.now)
    end
  end
end
