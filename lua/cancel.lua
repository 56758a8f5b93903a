#!lua flags=allow-oom
-- PURPOSE  End an ambiguous reserve. Leaves a tombstone even for an unknown rid, so that a delayed reserve does nothing.
-- KEYS     M C0 C1 L B R D S G
-- ARGV     rid
-- RETURNS  OK: stamp, CANCELLED · REPLAYED: it was cancelled before · CONFLICT: stamp, state: it ended otherwise
--          NO_CELL · BAD_SCHEMA
--          CALENDAR_NEEDED: stamp, number of the calendar
-- IDEMPOTENT by rid.
-- COST     one reservation, its lanes and scopes. Runs when memory is full: it repays.

-- @include working
-- @include numbers
-- @include codes
-- @include states
-- @include layout_lane
-- @include layout_scope
-- @include layout_reservation
-- @include clock_now
-- @include cell_begin
-- @include reply_stamp
-- @include reply_transition
-- @include cell_catalogue
-- @include calendar_period
-- @include limit_advance
-- @include limit_used
-- @include limit_correct
-- @include lanes_load
-- @include scopes_load
-- @include scope_book
-- @include breaker_evidence
-- @include reservation_record
-- @include reservation_lanes_end
-- @include reservation_scopes_end
-- @include reservation_bury
-- @include reservation_load
-- @include reservation_give_back
-- @include cell_write
-- @include commit

local code
cell, code = cell_begin()
if not cell then
  return reply_stamp(code)
end
local numbers, ids = reservation_load(ARGV[1])
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
