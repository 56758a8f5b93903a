#!lua
-- PURPOSE  Book an open reservation again after the store forgot it. Checks no limit: it was admitted once.
-- KEYS     C0 C1 L D
-- ARGV     rid · (nothing) · the request, of one candidate (see include/request_read.lua; the index that was admitted in
--          place of the weight)
-- RETURNS  OK: stamp, OPEN · REPLAYED: stamp, OPEN: the cell knows it · CONFLICT: stamp, state: it has ended
--          UNKNOWN_SCOPE: stamp, field · CALENDAR_NEEDED: stamp, number of the calendar · NO_CELL · BAD_SCHEMA
--          BAD_ARGUMENT
-- IDEMPOTENT by rid.
-- COST     two reads.

-- @include cell_begin
-- @include codes
-- @include commit
-- @include layout_reservation
-- @include layout_scope
-- @include records_load
-- @include reply_stamp
-- @include reply_transition
-- @include request_read
-- @include reservation_open
-- @include reservation_record
-- @include scope_unpriced
-- @include states
-- @include working

local numbers, candidate, others_at = request_read()
if not numbers then
  return reply_stamp(BAD_ARGUMENT)
end
local found, code = cell_begin(ARGV[1])
if not found then
  return reply_stamp(code)
end
if found[2] then
  local state = reservation_read(found[2])[R_STATE]
  return reply_transition(state == OPEN and REPLAYED or CONFLICT, state)
end
local unknown = records_load({ unpack(ARGV, 4, others_at - 1) })
if unknown then
  return reply_transition(UNKNOWN_SCOPE, unknown)
end
if missing_calendar then
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
local holds, modes = {}, {}
for i = 1, #candidate.scopes do
  local scope = records[candidate.scopes[i]]
  local hold, mode = scope[S_HARD] == 1 and candidate.amounts.bound or candidate.amounts.expected, PRICED
  if hold < 0 then
    hold, mode = scope_unpriced(scope)
  end
  holds[i], modes[i] = hold or 0, mode or METERED
end
reservation_open(ARGV[1], candidate, numbers[Q_WEIGHT], holds, modes, numbers[Q_LEASE])
commit()
return reply_transition(OK, OPEN)
