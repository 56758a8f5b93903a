-- A reservation's numbers, and the fields of its lanes and scopes in the order of its numbers.
-- @include layout_reservation
-- @include numbers

local function reservation_read(packed)
  local count = struct.unpack('<d', packed)
  local numbers = numbers_unpack(packed, count)
  local ids, found = { nil, nil, nil, nil, nil, nil, nil, nil }, 0
  for id in string.gmatch(string.sub(packed, count * 8 + 1), '[^\n]+') do
    found = found + 1
    ids[found] = id
  end
  return numbers, ids
end

-- Its state alone; nil when there is none.
local function reservation_state(packed)
  return packed and select(2, struct.unpack('<dd', packed)) or nil
end

local function reservation_write(numbers, ids)
  numbers[R_COUNT] = #numbers
  return numbers_pack(numbers) .. table.concat(ids, '\n')
end
