-- Records are arrays of little-endian doubles: every integer up to 2^53 exactly, no formatting, no parsing.
local AMOUNT_MAX = 9007199254740991
local SCHEMA = 1

local function numbers_pack(list)
  return struct.pack('<' .. string.rep('d', #list), unpack(list))
end

local function numbers_unpack(packed)
  local list = { struct.unpack('<' .. string.rep('d', math.floor(#packed / 8)), packed) }
  list[#list] = nil -- struct.unpack also returns the position after the last value
  return list
end
