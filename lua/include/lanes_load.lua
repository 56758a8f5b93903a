-- Loads lanes into the working set with one read, advanced to now. What is not there yet is a fresh, unlearned lane.
-- @include ids_missing
-- @include lane_configure
-- @include layout_lane
-- @include limit_advance
-- @include numbers
-- @include record
-- @include working

local function lane_fresh()
  local lane = { numbers_zero(HEALTH_SIZE), unpack(numbers_zero(LANE_SIZE - 1)) }
  lane[L_CONFIG], lane[REST][H_DECAYED] = -1, cell.now
  return lane
end

local function lane_read(packed)
  local count = #packed / 8 - HEALTH_SIZE
  if count < LANE_SIZE - 1 or count % 1 > 0 then
    error('lane record of ' .. #packed .. ' bytes')
  end
  return record_read(packed, count)
end

local function lanes_load(ids, first)
  local missing = ids_missing(ids, lanes, first)
  if #missing == 0 then
    return
  end
  local packed = redis.call('HMGET', L, unpack(missing))
  for i = 1, #missing do
    local lane = packed[i] and lane_read(packed[i]) or lane_fresh()
    lanes[missing[i]] = lane
    if lane[L_CONFIG] ~= cell.config then
      lane_configure(missing[i], lane, cell.now)
    end
    for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
      limit_advance(lane, at, cell.now)
    end
  end
end
