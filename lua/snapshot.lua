#!lua flags=no-writes
-- PURPOSE  Read lanes and scopes that changed after a seq.
-- KEYS     L B
-- ARGV     seq · count of lanes, lanes · count of scopes, scopes; at most 256 ids
-- RETURNS  OK: stamp, count of lanes, then position in the request and packed record for each; the same for scopes
--          NO_CELL · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT by nature: reads only.
-- COST     two reads for the whole page.

-- @include argument_amount
-- @include cell_begin
-- @include codes
-- @include reply_stamp
-- @include working

local since = argument_amount(ARGV[1])
if not since or #ARGV > 259 then
  return reply_stamp(BAD_ARGUMENT)
end
local code
cell, code = cell_begin()
if not cell then
  return reply_stamp(code)
end
local reply = reply_stamp(OK)
local at = 2
for _, key in ipairs({ L, B }) do
  local count = argument_amount(ARGV[at])
  if not count or at + count > #ARGV then
    return reply_stamp(BAD_ARGUMENT)
  end
  local head = #reply + 1
  reply[head] = 0
  if count > 0 then
    local records = redis.call('HMGET', key, unpack(ARGV, at + 1, at + count))
    for i = 1, count do
      local record = records[i]
      if record and select(2, struct.unpack('<dd', record)) > since then
        reply[head] = reply[head] + 1
        reply[#reply + 1] = i - 1
        reply[#reply + 1] = record
      end
    end
  end
  at = at + count + 1
end
return reply
