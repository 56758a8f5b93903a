#!lua flags=allow-oom
-- PURPOSE  Book what a reservation really used, in the windows that were charged. More than was held is debt.
-- KEYS     M C0 C1 L B R D S T G U
-- ARGV     rid · input tokens · output tokens · cost (nano-dollars, -1: unknown) · outcome · failed lanes (bits) ·
--          latency (us)
-- RETURNS  OK: stamp, SETTLED · REPLAYED: it was settled before · CONFLICT: stamp, state: it was released or cancelled
--          UNMATCHED: stamp, 0: the rid is unknown; listed, not added · NO_CELL · BAD_SCHEMA
--          CALENDAR_NEEDED: stamp, number of the calendar · BAD_ARGUMENT
-- IDEMPOTENT by rid: the tombstone answers a repeat.
-- COST     one reservation, its lanes and scopes; at most 4 tombstones removed. Runs when memory is full: it repays.

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
-- @include limit_start
-- @include limit_correct
-- @include lane_configure
-- @include lanes_load
-- @include scopes_load
-- @include scope_book
-- @include breaker_evidence
-- @include reservation_record
-- @include reservation_lanes_end
-- @include reservation_scopes_end
-- @include reservation_bury
-- @include reservation_load
-- @include sweep_graves
-- @include commit

local rid, input, output = ARGV[1], argument_amount(ARGV[2]), argument_amount(ARGV[3])
local cost = ARGV[4] == '-1' and -1 or argument_amount(ARGV[4])
local outcome, failed_lanes, latency = argument_amount(ARGV[5]), argument_amount(ARGV[6]), argument_amount(ARGV[7])
if not (input and output and cost and outcome and failed_lanes and latency) then
  return reply_stamp(BAD_ARGUMENT)
end
local code
cell, code = cell_begin()
if not cell then
  return reply_stamp(code)
end
local numbers, ids = reservation_load(rid)
if missing_calendar then
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
if not numbers then
  if redis.call('HSETNX', U, rid, numbers_pack({ cell.now, input, output, cost })) == 1 then
    commit()
  end
  return reply_transition(UNMATCHED, 0)
end
local state = numbers[R_STATE]
if state == SETTLED then
  return reply_transition(REPLAYED, SETTLED)
elseif state == RELEASED or state == CANCELLED then
  return reply_transition(CONFLICT, state)
end

local at = reservation_lanes_end(numbers, ids, { -1, input + output, input, output, cost, -1 }, true,
  outcome, failed_lanes, latency)
reservation_scopes_end(numbers, ids, at, cost, true)
if state == OPEN then
  reservations_gone[1] = rid
elseif state == SUSPENDED then
  suspense_gone[1] = rid
end
reservation_bury(rid, tombstone_write(SETTLED))
commit()
sweep_graves(4)
return reply_transition(OK, SETTLED)
