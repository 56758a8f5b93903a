-- Records are arrays of little-endian doubles: every integer up to 2^53 exactly, no formatting, no parsing.
local AMOUNT_MAX = 9007199254740991
local SCHEMA = 4

-- The format of so many numbers. More than any record or calendar has.
local formats, format = {}, '<'
for count = 0, 1024 do
  formats[count], format = format, format .. 'd'
end

local function numbers_pack(list)
  return struct.pack(formats[#list], unpack(list))
end

-- The first `count` numbers, all of them without it.
local function numbers_unpack(packed, count)
  count = count or math.floor(#packed / 8)
  local list = { struct.unpack(formats[count], packed) }
  list[count + 1] = nil -- struct.unpack also returns the position after the last value
  return list
end

local function numbers_zero(count)
  return numbers_unpack(string.rep('\0', count * 8))
end

-- Integers as a caller packs them, each in [-1, 2^53 - 1]; nil when that is not what they are: nothing else may enter a
-- counter.
local function integers_unpack(packed)
  local count = #packed / 8
  if count % 1 > 0 or count > 1024 then
    return nil
  end
  local list = numbers_unpack(packed, count)
  for i = 1, count do
    local value = list[i]
    if not (value >= -1 and value <= AMOUNT_MAX and value % 1 == 0) then
      return nil
    end
  end
  return list
end
