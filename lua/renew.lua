#!lua flags=allow-oom
-- PURPOSE  Extend the leases of one worker's open reservations.
-- KEYS     L D
-- ARGV     lease (us) · rids, at most 128
-- RETURNS  OK: stamp, count of rids that are no longer open, those rids · NO_CELL · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT by nature: the deadline is now + lease, and never moves back.
-- COST     one read and two writes for the whole page.

-- @include argument_amount
-- @include cell_begin
-- @include cell_write
-- @include codes
-- @include reply_stamp
-- @include reservation_record
-- @include states
-- @include working

local lease = argument_amount(ARGV[1])
if not lease or #ARGV < 2 or #ARGV > 129 then
  return reply_stamp(BAD_ARGUMENT)
end
local found, code = cell_begin(unpack(ARGV, 2))
if not found then
  return reply_stamp(code)
end
local extended, lost = {}, {}
for i = 2, #ARGV do
  if reservation_state(found[i]) == OPEN then
    extended[#extended + 1] = cell.now + lease
    extended[#extended + 1] = ARGV[i]
  else
    lost[#lost + 1] = ARGV[i]
  end
end
if #extended > 0 then
  redis.call('ZADD', D, 'XX', 'GT', unpack(extended))
  cell_write()
end
local reply = reply_stamp(OK)
reply[6] = #lost
for i = 1, #lost do
  reply[6 + i] = lost[i]
end
return reply
