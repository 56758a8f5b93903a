#!lua
-- PURPOSE  Make the cell if it is not there, and say where it stands.
-- KEYS     M
-- ARGV     epoch for a new cell: a random integer below 2^53
-- RETURNS  OK: stamp, 1 if the cell was made now · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT by nature: an existing cell keeps its epoch.
-- COST     one hash.

-- @include working
-- @include numbers
-- @include codes
-- @include argument_amount
-- @include clock_now
-- @include cell_begin
-- @include reply_stamp

local epoch = argument_amount(ARGV[1])
if not epoch then
  return reply_stamp(BAD_ARGUMENT)
end
local made = redis.call('HSETNX', M, 'cell', struct.pack('<ddddddd', SCHEMA, epoch, 0, 0, 1, 0, 0))
local code
cell, code = cell_begin()
local reply = reply_stamp(code or OK)
reply[6] = made
return reply
