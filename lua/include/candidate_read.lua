-- Reads charges and candidates from ARGV. A charge: input tokens, output tokens, metered tokens, expected cost, bound
-- cost (costs -1 when unknown). A candidate: count of lanes, lanes, count of its own scopes, scopes, number of its charge.
local CHARGE_SIZE = 5

local function charge_read(at)
  local input, output, metered = argument_amount(ARGV[at]), argument_amount(ARGV[at + 1]), argument_amount(ARGV[at + 2])
  local expected = ARGV[at + 3] == '-1' and -1 or argument_amount(ARGV[at + 3])
  local bound = ARGV[at + 4] == '-1' and -1 or argument_amount(ARGV[at + 4])
  if input and output and metered and expected and bound then
    return { 1, metered, input, output, expected, 1, bound = bound }
  end
  return nil
end

local function names_read(at, most)
  local count = argument_amount(ARGV[at])
  if not count or count > most then
    return nil
  end
  local names = {}
  for i = 1, count do
    names[i] = ARGV[at + i]
  end
  return names, at + count + 1
end

-- Returns the candidate and where the next begins; nil when an argument is no amount or too large.
local function candidate_read(at, shared, charges)
  local lanes_named, own
  lanes_named, at = names_read(at, 4)
  if lanes_named then
    own, at = names_read(at, 4)
  end
  local number = own and argument_amount(ARGV[at])
  local amounts = number and number >= 1 and charge_read(charges + (number - 1) * CHARGE_SIZE)
  if not amounts then
    return nil
  end
  local named = shared
  if #own > 0 then
    named = { unpack(shared) }
    for i = 1, #own do
      named[#shared + i] = own[i]
    end
  end
  return { lanes = lanes_named, scopes = named, amounts = amounts }, at + 1
end
