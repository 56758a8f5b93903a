#!lua flags=allow-oom
-- PURPOSE  Note that the store forgot writes: for one lease an eighth of every limit and hard budget stays free, for what
--          living workers tell late and dead ones held.
-- KEYS     L
-- ARGV     epoch and seq of the last answer before · lease (us), at most an hour
-- RETURNS  OK: stamp, until when (us) · REPLAYED: stamp, until when: this loss was noted before · NO_CELL · BAD_SCHEMA
--          BAD_ARGUMENT
-- IDEMPOTENT by epoch and seq: who saw less than was noted of that epoch has nothing new to say.
-- COST     one hash.

-- @include argument_amount
-- @include cell_begin
-- @include cell_write
-- @include codes
-- @include numbers
-- @include reply_stamp
-- @include working

local FORGOT_LEASE_MAX = 3600000000

local epoch, seq, lease = argument_amount(ARGV[1]), argument_amount(ARGV[2] or ''), argument_amount(ARGV[3] or '')
if not (epoch and seq and lease) or lease > FORGOT_LEASE_MAX then
  return reply_stamp(BAD_ARGUMENT)
end
local found, code = cell_begin('forgot')
if not found then
  return reply_stamp(code)
end
local result, known = REPLAYED, numbers_unpack(found[2] or '')
if known[1] ~= epoch or known[2] < seq then
  result, cell.cautious = OK, math.max(cell.cautious, cell.now + lease)
  cell_write('forgot', numbers_pack({ epoch, seq }))
end
local reply = reply_stamp(result)
reply[6] = cell.cautious
return reply
