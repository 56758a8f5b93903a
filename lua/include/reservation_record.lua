-- The ids of a reservation's lanes and scopes, in the order of its numbers.
local function reservation_read(packed)
  local count = struct.unpack('<d', packed)
  local numbers = numbers_unpack(string.sub(packed, 1, count * 8))
  local ids = {}
  for id in string.gmatch(string.sub(packed, count * 8 + 1), '[^\n]+') do
    ids[#ids + 1] = id
  end
  return numbers, ids
end

local function reservation_write(numbers, ids)
  numbers[R_COUNT] = #numbers
  return numbers_pack(numbers) .. table.concat(ids, '\n')
end
