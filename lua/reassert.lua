#!lua
-- PURPOSE  Book an open reservation again after the store forgot it. Checks no limit: it was admitted once.
-- KEYS     C0 C1 L B R D
-- ARGV     rid · lease (us) · index that was admitted · count of shared scopes, scopes · one charge · one
--          candidate (see include/candidate_read.lua)
-- RETURNS  OK: stamp, OPEN · REPLAYED: stamp, OPEN: the cell knows it · CONFLICT: stamp, state: it has ended
--          UNKNOWN_SCOPE: stamp, id · CALENDAR_NEEDED: stamp, number of the calendar · NO_CELL · BAD_SCHEMA
--          BAD_ARGUMENT
-- IDEMPOTENT by rid.
-- COST     one read of lanes and scopes.

-- @include argument_amount
-- @include candidate_read
-- @include cell_begin
-- @include codes
-- @include commit
-- @include lanes_load
-- @include layout_reservation
-- @include reply_stamp
-- @include reply_transition
-- @include reservation_open
-- @include reservation_record
-- @include scope_hold
-- @include scopes_load
-- @include states
-- @include working

local lease, index = argument_amount(ARGV[2]), argument_amount(ARGV[3])
local shared_count = argument_amount(ARGV[4])
local charges = shared_count and 4 + shared_count + 1
local candidate = charges and charges + 5 <= #ARGV and candidate_read(charges + 5, 4, charges)
if not (lease and index and candidate) then
  return reply_stamp(BAD_ARGUMENT)
end
local code
cell, code = cell_begin()
if not cell then
  return reply_stamp(code)
end
local known = redis.call('HGET', R, ARGV[1])
if known then
  local state = reservation_read(known)[R_STATE]
  return reply_transition(state == OPEN and REPLAYED or CONFLICT, state)
end
lanes_load(candidate.lanes)
local unknown = scopes_load(candidate.scopes)
if unknown then
  return reply_transition(UNKNOWN_SCOPE, unknown)
end
if missing_calendar then
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
local holds, modes = {}, {}
for i = 1, #candidate.scopes do
  local hold, mode = scope_hold(scopes[candidate.scopes[i]], candidate.amounts)
  holds[i], modes[i] = hold or 0, mode or METERED
end
reservation_open(ARGV[1], candidate, index, holds, modes, lease)
commit()
return reply_transition(OK, OPEN)
