#!lua flags=no-writes
-- PURPOSE  Read one page of the reservations that still count, so that counters can be recomputed from them.
-- KEYS     L D S
-- ARGV     which (1: open, 2: suspended) · rank of the first · count, at most 256
-- RETURNS  OK: stamp, how many ranks there are, then rid and packed record of each that counts · NO_CELL · BAD_SCHEMA
--          BAD_ARGUMENT
-- IDEMPOTENT by nature: reads only. Pages belong together only while seq stands still.
-- COST     one read for the whole page.

-- @include argument_amount
-- @include cell_begin
-- @include codes
-- @include reply_stamp
-- @include reservation_record
-- @include states

local from, count = argument_amount(ARGV[2]), argument_amount(ARGV[3])
if not (from and count) or count < 1 or count > 256 then
  return reply_stamp(BAD_ARGUMENT)
end
local begun, code = cell_begin()
if not begun then
  return reply_stamp(code)
end
local index, state = D, OPEN -- where ended ones stand too, until that is acknowledged
if ARGV[1] == '2' then
  index, state = S, SUSPENDED
end
local reply = reply_stamp(OK)
reply[6] = redis.call('ZCARD', index)
local rids = redis.call('ZRANGE', index, from, from + count - 1)
if #rids > 0 then
  local found = redis.call('HMGET', L, unpack(rids))
  for i = 1, #rids do
    if reservation_state(found[i]) == state then
      reply[#reply + 1], reply[#reply + 2] = rids[i], found[i]
    end
  end
end
return reply
