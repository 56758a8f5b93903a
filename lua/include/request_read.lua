-- What a request asks for, as callers pack it. ARGV[3]: integers, see Q_…, then charges of CHARGE_SIZE: input tokens, output
-- tokens, metered tokens, expected cost, bound of the cost (-1: unknown), of all its calls (a slab has many). ARGV[4] and
-- on: the fields of the first candidate's lanes, of the scopes that all share, of its own scopes. It has the first charge.
-- Then one text for all other candidates:
-- number of the charge, lanes, own scopes, each with an end of line, and one more behind each candidate.
-- @include numbers
-- @include record

local Q_CONFIG, Q_LEASE, Q_WEIGHT, Q_LANES, Q_SHARED, Q_OWN, Q_CALLS = 1, 2, 3, 4, 5, 6, 7
local Q_SIZE, CHARGE_SIZE = 7, 5
local LANES_MAX, SHARED_MAX, OWN_MAX, CANDIDATES_MAX = 6, 8, 4, 64

local function amounts_read(numbers, charge)
  local at = Q_SIZE + (charge - 1) * CHARGE_SIZE
  if charge < 1 or at + CHARGE_SIZE > #numbers then
    return nil
  end
  local input, output, metered, expected, bound = unpack(numbers, at + 1, at + CHARGE_SIZE)
  if input < 0 or output < 0 or metered < 0 then
    return nil
  end
  local calls = numbers[Q_CALLS]
  return { calls, metered, input, output, expected > 0 and expected or 0, calls, expected = expected, bound = bound }
end

-- The integers, the first candidate, and where the text of the others is in ARGV; nil when that is not what ARGV has.
local function request_read()
  local numbers = integers_unpack(ARGV[3] or '')
  if not numbers or #numbers < Q_SIZE or math.min(unpack(numbers, 1, Q_SIZE)) < 0 then
    return nil
  end
  local lane_count, shared, own = numbers[Q_LANES], numbers[Q_SHARED], numbers[Q_OWN]
  local amounts = amounts_read(numbers, 1)
  if not amounts or numbers[Q_CALLS] < 1 or lane_count < 1 or lane_count > LANES_MAX or shared > SHARED_MAX or own > OWN_MAX then
    return nil
  end
  local scopes_at = 4 + lane_count
  local others_at = scopes_at + shared + own
  if #ARGV < others_at - 1 then
    return nil
  end
  local lanes, scopes = { unpack(ARGV, 4, scopes_at - 1) }, { unpack(ARGV, scopes_at, others_at - 1) }
  return numbers, { lanes = lanes, scopes = scopes, amounts = amounts }, others_at
end

-- Puts the other candidates behind the first and returns the fields of them all; nil when the text is none.
local function candidates_read(candidates, text, numbers)
  local shared, fields, at = numbers[Q_SHARED], {}, 1
  while at <= #text do
    local _, stop, charge, named = string.find(text, '^(%d+)\n(.-)\n\n', at)
    local amounts = stop and amounts_read(numbers, tonumber(charge))
    if not amounts or #candidates == CANDIDATES_MAX then
      return nil
    end
    local lanes, scopes = {}, { unpack(candidates[1].scopes, 1, shared) }
    for field in string.gmatch(named, '[^\n]+') do
      fields[#fields + 1] = field
      local list = string.byte(field) == LANE_PREFIX and lanes or scopes
      list[#list + 1] = field
    end
    if #lanes < 1 or #lanes > LANES_MAX or #scopes > shared + OWN_MAX then
      return nil
    end
    candidates[#candidates + 1] = { lanes = lanes, scopes = scopes, amounts = amounts }
    at = stop + 1
  end
  return fields
end
