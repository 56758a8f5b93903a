-- Reads candidates from ARGV. Each: count of lanes, lanes, count of its own scopes, scopes, then the amounts: input
-- tokens, output tokens, metered tokens, expected cost, bound cost (costs -1 when unknown).
local function cost_read(text)
  return text == '-1' and -1 or argument_amount(text)
end

local function candidate_read(from, shared)
  local candidate = { lanes = {}, scopes = {} }
  local count = argument_amount(ARGV[from])
  if not count then
    return nil
  end
  for i = 1, count do
    candidate.lanes[i] = ARGV[from + i]
  end
  from = from + count + 1
  for i = 1, #shared do
    candidate.scopes[i] = shared[i]
  end
  count = argument_amount(ARGV[from])
  if not count then
    return nil
  end
  for i = 1, count do
    candidate.scopes[#shared + i] = ARGV[from + i]
  end
  from = from + count
  local input, output = argument_amount(ARGV[from + 1]), argument_amount(ARGV[from + 2])
  local metered = argument_amount(ARGV[from + 3])
  candidate.expected, candidate.bound = cost_read(ARGV[from + 4]), cost_read(ARGV[from + 5])
  if not (input and output and metered and candidate.expected and candidate.bound) then
    return nil
  end
  candidate.amounts = { 1, metered, input, output, candidate.expected, 1 }
  return candidate, from + 6
end

local function names_read(from)
  local count = argument_amount(ARGV[from])
  if not count then
    return nil
  end
  local names = {}
  for i = 1, count do
    names[i] = ARGV[from + i]
  end
  return names, from + count + 1
end
