-- The argument as an integer in [0, 2^53 - 1], or nil: nothing else may enter a counter.
-- @include numbers

local function argument_amount(text)
  local value = tonumber(text)
  if value and value >= 0 and value <= AMOUNT_MAX and value % 1 == 0 then
    return value
  end
  return nil
end
