#!lua flags=allow-oom
-- PURPOSE  Credit a scope of this cell with what its home granted, and give back what is not needed: the other side of escrow.
-- KEYS     C0 C1 L
-- ARGV     field of the scope · what the home told: start of its period, sums granted to and returned by this cell · sum up to
--          which to return what is free
-- RETURNS  OK: stamp, start of the period, its end, sum it was funded with, sum it returned, settled, held, suspense
--          CONFLICT: stamp, 0: the scope is none that another cell funds · UNKNOWN_SCOPE: stamp, field · NO_CELL · BAD_SCHEMA
--          CALENDAR_NEEDED: stamp, number of the calendar · BAD_ARGUMENT
-- IDEMPOTENT: sums only grow, and the larger of two tellings holds. What belongs to another period is left alone.
-- COST     one scope and its sums. Runs when memory is full: what is returned is free elsewhere.

-- @include argument_amount
-- @include codes
-- @include escrow_begin
-- @include escrow_end
-- @include layout_scope
-- @include reply_stamp

local field, start = ARGV[1], argument_amount(ARGV[2])
local granted, back, recall = argument_amount(ARGV[3]), argument_amount(ARGV[4]), argument_amount(ARGV[5])
if not (start and granted and back and recall) or back > granted then
  return reply_stamp(BAD_ARGUMENT)
end
local scope, sums = escrow_begin(field, false, 3)
if not scope then
  return sums
end
local funded, returned = sums[2], sums[3]
if start == scope[S_START] then
  sums[2], sums[3] = math.max(funded, granted), math.max(returned, back)
  local free = sums[2] - sums[3] - scope[S_SETTLED] - scope[S_HELD] - scope[S_SUSPENSE]
  sums[3] = math.max(sums[3], math.min(recall, sums[3] + free))
end
local grew = sums[2] > funded or sums[3] > returned
if grew then
  scope[S_LIMIT] = sums[2] - sums[3]
end
local reply = escrow_end(field, scope, sums, grew)
reply[8], reply[9] = sums[2], sums[3]
reply[10], reply[11], reply[12] = scope[S_SETTLED], scope[S_HELD], scope[S_SUSPENSE]
return reply
