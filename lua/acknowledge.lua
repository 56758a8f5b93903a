#!lua flags=allow-oom
-- PURPOSE  Note that a caller has seen how its reservations ended, so that their tombstones may go soon.
-- KEYS     L D G
-- ARGV     rids, at most 128
-- RETURNS  OK: stamp · NO_CELL · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT by nature. The tombstone stays a minute, longer than any delayed duplicate lives.
-- COST     one read and one write of each index for the whole page; at most 2 old tombstones removed for each rid.

-- @include cell_begin
-- @include codes
-- @include commit
-- @include reply_stamp
-- @include reservation_bury
-- @include reservation_record
-- @include states
-- @include sweep_graves
-- @include working

if #ARGV < 1 or #ARGV > 128 then
  return reply_stamp(BAD_ARGUMENT)
end
local found, code = cell_begin(unpack(ARGV))
if not found then
  return reply_stamp(code)
end
local gone = {}
for _, rid in ipairs(sweep_graves(2 * #ARGV)) do
  gone[rid] = true
end
for i = 1, #ARGV do
  local state = reservation_state(found[i + 1])
  if state and state ~= OPEN and state ~= SUSPENDED and not gone[ARGV[i]] then
    lease_end(ARGV[i])
    grave_keep(ARGV[i], TOMBSTONE_SEEN)
  end
end
commit()
return reply_stamp(OK)
