#!lua
-- PURPOSE  Make the cell if it is not there, and say where it stands.
-- KEYS     L D S G
-- ARGV     epoch for a new cell: a random integer below 2^53
-- RETURNS  OK: stamp, 1 if the cell was made now · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT by nature: an existing cell keeps its epoch.
-- COST     one hash. A new cell has no leases, so that any that are there are of one whose hash was lost.

-- @include argument_amount
-- @include cell_begin
-- @include clock_now
-- @include codes
-- @include numbers
-- @include reply_stamp
-- @include working

local epoch = argument_amount(ARGV[1])
if not epoch then
  return reply_stamp(BAD_ARGUMENT)
end
local _, code = cell_begin()
if code == NO_CELL and redis.call('HLEN', L) > redis.call('HEXISTS', L, '\nvirtual_now') then
  code = BAD_SCHEMA -- lanes without a cell: an older version's, which kept it elsewhere
end
if code == NO_CELL then
  cell = { epoch = epoch, seq = 0, now = clock_now(), config = 1 }
  for _, index in ipairs({ D, S, G }) do
    redis.call('UNLINK', index)
  end
  redis.call('HSET', L, '', struct.pack('<ddddddddd', SCHEMA, epoch, 0, 0, 1, 0, 0, AMOUNT_MAX, 0))
end
local reply = reply_stamp(cell and OK or code)
reply[6] = code == NO_CELL and 1 or 0
return reply
