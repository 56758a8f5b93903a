-- A lane's or scope's record, read as far as it is needed: its first numbers are for every request, the rest only for
-- some ends. In memory the rest stands before the others, as it was packed until `record_rest` is asked for it.
-- What the next seq will write has that seq already.
-- @include numbers

local REST = 1
local LANE_PREFIX = 108 -- the field of a lane is `l:` and its id, that of a scope `s:` and its id

local function record_read(packed, count)
  local record = { string.sub(packed, count * 8 + 1), struct.unpack(formats[count], packed) }
  record[count + 2] = nil -- struct.unpack also returns the position after the last value
  return record
end

local function record_rest(record)
  local rest = record[REST]
  if type(rest) == 'string' then
    rest = numbers_unpack(rest)
    record[REST] = rest
  end
  return rest
end

local function record_write(record)
  local rest = record[REST]
  return struct.pack(formats[#record - 1], unpack(record, 2)) .. (type(rest) == 'string' and rest or numbers_pack(rest))
end
