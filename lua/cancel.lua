#!lua flags=allow-oom
-- PURPOSE  End an ambiguous reserve. Leaves a tombstone even for an unknown rid, so that a delayed reserve does nothing.
-- KEYS     C0 C1 L G
-- ARGV     rid
-- RETURNS  OK: stamp, CANCELLED · REPLAYED: it was cancelled before · CONFLICT: stamp, state: it ended otherwise
--          NO_CELL · BAD_SCHEMA
--          CALENDAR_NEEDED: stamp, number of the calendar
-- IDEMPOTENT by rid.
-- COST     one reservation, its lanes and scopes. Runs when memory is full: it repays.

-- @include cell_begin
-- @include codes
-- @include commit
-- @include layout_reservation
-- @include reply_stamp
-- @include reply_transition
-- @include reservation_bury
-- @include reservation_give_back
-- @include reservations_load
-- @include states
-- @include working

local found, code = cell_begin(ARGV[1])
if not found then
  return reply_stamp(code)
end
local reservations, ids_of = reservations_load(found, 2)
local numbers, ids = reservations[1], ids_of[1]
if missing_calendar then
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
local state = numbers and numbers[R_STATE]
if state == CANCELLED then
  return reply_transition(REPLAYED, CANCELLED)
elseif state and state ~= OPEN then
  return reply_transition(CONFLICT, state)
elseif state then
  reservation_give_back(ARGV[1], numbers, ids, false, 0, 0, CANCELLED)
else
  reservation_bury(ARGV[1], tombstone_write(CANCELLED))
end
commit()
return reply_transition(OK, CANCELLED)
