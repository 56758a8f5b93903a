-- Brings lanes and scopes into the working set, as of now: a lane's limits advanced, a scope rolled to its current period.
-- @include kept
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
local function lane_take(field, lane, packed)
  if packed then
    local count = #packed / 8 - HEALTH_SIZE
    if count < LANE_SIZE - 1 or count % 1 > 0 then
      error('lane record of ' .. #packed .. ' bytes')
    end
    lane = record_read(packed, count)
  elseif not lane then
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
local function scope_take(field, scope, packed)
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

local ASKED = {}

local function record_take(field, kept, packed)
  local take = string.byte(field) == LANE_PREFIX and lane_take or scope_take
  records[field] = take(field, kept, packed) or false
  return not records[field] and field or nil
end

-- Brings these into the working set unless it has them: what is kept as it is, all others with one command, but for those
-- that were `asked` for already and `found`, from `at` on. Returns a scope that is not configured, if there is one.
local function records_load(fields, asked, found, at)
  local kept = (cell.kept or kept_open()).records
  local missing, unknown
  for i = 1, asked and #asked or 0 do
    if records[asked[i]] == nil then
      unknown = record_take(asked[i], kept[asked[i]], found[at + i - 1]) or unknown
    end
  end
  for i = 1, #fields do
    local field = fields[i]
    if records[field] == nil then
      if kept[field] then
        unknown = record_take(field, kept[field]) or unknown
      else
        missing = missing or {}
        missing[#missing + 1], records[field] = field, ASKED
      end
    elseif not records[field] then
      unknown = field
    end
  end
  if missing then
    local packed = redis.call('HMGET', L, unpack(missing))
    for i = 1, #missing do
      unknown = record_take(missing[i], nil, packed[i]) or unknown
    end
  end
  return unknown
end
