#!lua flags=allow-oom
-- PURPOSE  Give back what a reservation held, when it was certainly not billed.
-- KEYS     M C0 C1 L B R D S G
-- ARGV     rid · sent (1: the provider may have counted request and tokens, they stay) · failed lanes (bits) ·
--          latency (us)
-- RETURNS  OK: stamp, RELEASED · REPLAYED: it was released before · CONFLICT: stamp, state: it ended otherwise
--          UNMATCHED: stamp, 0: the rid is unknown · NO_CELL · BAD_SCHEMA
--          CALENDAR_NEEDED: stamp, number of the calendar · BAD_ARGUMENT
-- IDEMPOTENT by rid.
-- COST     one reservation, its lanes and scopes. Runs when memory is full: it repays.

-- @include working
-- @include numbers
-- @include codes
-- @include states
-- @include layout_lane
-- @include layout_scope
-- @include layout_reservation
-- @include argument_amount
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

local sent, failed_lanes, latency = ARGV[2] == '1', argument_amount(ARGV[3]), argument_amount(ARGV[4])
if not (failed_lanes and latency) then
  return reply_stamp(BAD_ARGUMENT)
end
local code
cell, code = cell_begin()
if not cell then
  return reply_stamp(code)
end
local numbers, ids = reservation_load(ARGV[1])
if missing_calendar then
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
if not numbers then
  return reply_transition(UNMATCHED, 0)
end
local state = numbers[R_STATE]
if state == RELEASED then
  return reply_transition(REPLAYED, RELEASED)
elseif state ~= OPEN then
  return reply_transition(CONFLICT, state)
end
reservation_give_back(ARGV[1], numbers, ids, sent, failed_lanes, latency, RELEASED)
commit()
return reply_transition(OK, RELEASED)
