#!lua flags=allow-oom
-- PURPOSE  Give back what a reservation held, when it was certainly not billed.
-- KEYS     C0 C1 L
-- ARGV     rid · sent (1: the provider may have counted request and tokens, they stay) · failed lanes (bits) ·
--          latency (us)
-- RETURNS  OK: stamp, RELEASED · REPLAYED: it was released before · CONFLICT: stamp, state: it ended otherwise
--          UNMATCHED: stamp, 0: the rid is unknown · NO_CELL · BAD_SCHEMA
--          CALENDAR_NEEDED: stamp, number of the calendar · BAD_ARGUMENT
-- IDEMPOTENT by rid.
-- COST     one reservation, its lanes and scopes. Runs when memory is full: it repays.

-- @include argument_amount
-- @include cell_begin
-- @include codes
-- @include commit
-- @include layout_reservation
-- @include reply_stamp
-- @include reply_transition
-- @include reservation_give_back
-- @include reservations_load
-- @include states
-- @include working

local sent, failed_lanes, latency = ARGV[2] == '1', argument_amount(ARGV[3]), argument_amount(ARGV[4])
if not (failed_lanes and latency) then
  return reply_stamp(BAD_ARGUMENT)
end
local found, code = cell_begin(ARGV[1])
if not found then
  return reply_stamp(code)
end
local reservations, ids_of = reservations_load(found, 2)
local numbers, ids = reservations[1], ids_of[1]
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
