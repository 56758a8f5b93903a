#!lua
-- PURPOSE  Make the cell if it is not there, and say where it stands.
-- KEYS     L D S G
-- ARGV     epoch for a new cell: a random integer below 2^53 · how the namespace's cells are laid out (empty: there is one)
-- RETURNS  OK: stamp, 1 if the cell was made now · CONFLICT: stamp, the layout that holds · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT by nature: an existing cell keeps its epoch, and its layout once something was written.
-- COST     one hash. A new cell has no leases, so that any that are there are of one whose hash was lost.

-- @include argument_amount
-- @include cell_begin
-- @include clock_now
-- @include codes
-- @include numbers
-- @include reply_stamp
-- @include reply_transition
-- @include working

local epoch = argument_amount(ARGV[1])
if not epoch then
  return reply_stamp(BAD_ARGUMENT)
end
local found, code = cell_begin('\nlayout')
local layout, made = ARGV[2] or '', 0
if code == NO_CELL and redis.call('HLEN', L) > redis.call('HEXISTS', L, '\nvirtual_now') then
  code = BAD_SCHEMA -- lanes without a cell: an older version's, which kept it elsewhere
end
if code == NO_CELL then
  cell, made = { epoch = epoch, seq = 0, now = clock_now(), config = 1 }, 1
  for _, index in ipairs({ D, S, G }) do
    redis.call('UNLINK', index)
  end
  redis.call('HSET', L, '', struct.pack('<ddddddddd', SCHEMA, epoch, 0, 0, 1, 0, 0, AMOUNT_MAX, 0))
end
if not cell then
  return reply_transition(code, 0)
end
local held = found and found[2] or ''
if held ~= layout then
  if held ~= '' or cell.seq > 0 then
    return reply_transition(CONFLICT, held)
  end
  redis.call('HSET', L, '\nlayout', layout)
end
return reply_transition(OK, made)
