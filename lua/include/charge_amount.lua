-- What a limit of this metric counts, out of {requests, tokens, input, output, spend, concurrency}.
-- A cost that is not known (negative) counts as nothing where a provider meters spend.
local function charge_amount(amounts, metric)
  return math.max(0, amounts[metric])
end
