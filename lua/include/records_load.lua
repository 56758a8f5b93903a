-- Brings lanes and scopes into the working set, as of now: a lane's limits advanced, a scope rolled to its current period.
-- @include lane_configure
-- @include layout_lane
-- @include layout_scope
-- @include limit_advance
-- @include numbers
-- @include record
-- @include scope_configure
-- @include scope_roll
-- @include working

-- What is not there yet is a fresh, unlearned lane.
local function lane_take(field, packed)
  local lane
  if packed then
    local count = #packed / 8 - HEALTH_SIZE
    if count < LANE_SIZE - 1 or count % 1 > 0 then
      error('lane record of ' .. #packed .. ' bytes')
    end
    lane = record_read(packed, count)
  else
    lane = { numbers_zero(HEALTH_SIZE), unpack(numbers_zero(LANE_SIZE - 1)) }
    lane[L_CONFIG], lane[REST][H_DECAYED] = -1, cell.now
  end
  if lane[L_CONFIG] ~= cell.config then
    lane_configure(field, lane, cell.now)
  end
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    limit_advance(lane, at, cell.now)
  end
  return lane
end

-- nil: it is not configured. A budget that nobody declared cannot be enforced.
local function scope_take(field, packed)
  local scope
  if packed then
    if #packed ~= (SCOPE_SIZE + PERIODS_SIZE) * 8 then
      error('scope record of ' .. #packed .. ' bytes')
    end
    scope = record_read(packed, SCOPE_SIZE)
  end
  if not scope or scope[S_CONFIG] ~= cell.config then
    scope = scope_configure(field, scope)
  end
  if scope and cell.now >= scope[S_END] then
    scope_roll(scope)
  end
  return scope
end

-- Takes what was read of these fields, `packed` from `at` on, unless the working set has it already. Returns a scope that
-- is not configured, if there is one.
local function records_take(fields, packed, at)
  local unknown
  for i = 1, #fields do
    local field = fields[i]
    if not records[field] then
      if string.byte(field) == LANE_PREFIX then
        records[field] = lane_take(field, packed[at])
      else
        records[field] = scope_take(field, packed[at])
        unknown = unknown or not records[field] and field or nil
      end
    end
    at = at + 1
  end
  return unknown
end

-- Reads those that the working set does not have, with one command.
local function records_load(fields)
  local missing, asked = {}, {}
  for i = 1, #fields do
    local field = fields[i]
    if not (records[field] or asked[field]) then
      asked[field] = true
      missing[#missing + 1] = field
    end
  end
  if #missing == 0 then
    return nil
  end
  return records_take(missing, redis.call('HMGET', L, unpack(missing)), 1)
end
