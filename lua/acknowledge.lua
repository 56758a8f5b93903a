#!lua flags=allow-oom
-- PURPOSE  Note that a caller has seen how its reservations ended, so that their tombstones may go soon.
-- KEYS     L G
-- ARGV     rids, at most 128
-- RETURNS  OK: stamp · NO_CELL · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT by nature. The tombstone stays a minute, longer than any delayed duplicate lives.
-- COST     one command for the whole page.

-- @include cell_begin
-- @include codes
-- @include reply_stamp
-- @include working

if #ARGV < 1 or #ARGV > 128 then
  return reply_stamp(BAD_ARGUMENT)
end
local begun, code = cell_begin()
if not begun then
  return reply_stamp(code)
end
local times = {}
for i = 1, #ARGV do
  times[#times + 1] = cell.now + 60000000
  times[#times + 1] = ARGV[i]
end
redis.call('ZADD', G, 'XX', 'LT', unpack(times))
return reply_stamp(OK)
