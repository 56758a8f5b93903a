#!lua flags=no-writes
-- PURPOSE  Read lanes and scopes that changed after a seq.
-- KEYS     L
-- ARGV     seq · fields of lanes and scopes, at most 256
-- RETURNS  OK: stamp, then position among those fields (from 0) and packed record for each
--          NO_CELL · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT by nature: reads only.
-- COST     one read for the whole page.

-- @include argument_amount
-- @include cell_begin
-- @include codes
-- @include reply_stamp

local since = argument_amount(ARGV[1])
if not since or #ARGV > 257 then
  return reply_stamp(BAD_ARGUMENT)
end
local found, code = cell_begin(unpack(ARGV, 2))
if not found then
  return reply_stamp(code)
end
local reply = reply_stamp(OK)
for i = 2, #found do
  local record = found[i]
  if record and select(2, struct.unpack('<dd', record)) > since then
    reply[#reply + 1] = i - 2
    reply[#reply + 1] = record
  end
end
return reply
