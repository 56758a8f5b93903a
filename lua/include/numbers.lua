-- Records are arrays of little-endian doubles: every integer up to 2^53 exactly, no formatting, no parsing.
local AMOUNT_MAX = 9007199254740991
local SCHEMA = 2

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
