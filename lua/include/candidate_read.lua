-- Reads charges and candidates from ARGV. A charge: input tokens, output tokens, metered tokens, expected cost, bound
-- cost (costs -1 when unknown). A candidate: count of lanes, lanes, count of its own scopes, scopes, number of its charge.
-- @include argument_amount
-- @include working

local CHARGE_SIZE = 5

local function charge_read(at)
  local input, output, metered = argument_amount(ARGV[at]), argument_amount(ARGV[at + 1]), argument_amount(ARGV[at + 2])
  local expected = ARGV[at + 3] == '-1' and -1 or argument_amount(ARGV[at + 3])
  local bound = ARGV[at + 4] == '-1' and -1 or argument_amount(ARGV[at + 4])
  if input and output and metered and expected and bound then
    return { 1, metered, input, output, math.max(0, expected), 1, expected = expected, bound = bound }
  end
  return nil
end

-- A count and as many names, put behind `names`; nil when there are too many. Returns also where they end.
local function names_read(at, most, names)
  local count = argument_amount(ARGV[at])
  if not count or count > most then
    return nil
  end
  local before = #names
  for i = 1, count do
    names[before + i] = ARGV[at + i]
  end
  return names, at + count + 1
end

-- A candidate that is in the scopes named at `shared` besides its own, and where the next begins; nil when an argument is no
-- amount or too large.
local function candidate_read(at, shared, charges)
  local lanes_named, named, number, amounts
  lanes_named, at = names_read(at, 6, { nil, nil, nil, nil })
  named = lanes_named and names_read(shared, 8, { nil, nil, nil, nil, nil, nil, nil, nil })
  if named then
    named, at = names_read(at, 4, named)
  end
  number = named and argument_amount(ARGV[at])
  amounts = number and number >= 1 and charge_read(charges + (number - 1) * CHARGE_SIZE)
  if not amounts then
    return nil
  end
  return { lanes = lanes_named, scopes = named, amounts = amounts }, at + 1
end
