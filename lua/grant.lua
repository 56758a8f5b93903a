#!lua
-- PURPOSE  Set money of a scope aside for another cell, and take back what that cell gave back: the home side of escrow.
-- KEYS     C0 C1 L
-- ARGV     field of the scope · number of the other cell (1 to 63) · what that cell told: start of its period, sum it was
--          funded with, sum it returned · amount asked for · the least of it that is of use
-- RETURNS  OK: stamp, start of the period, its end, limit, settled, held (grants among it), suspense, then for each cell from 1
--          on the sums granted and returned · CONFLICT: stamp, 0: another cell is its home · UNKNOWN_SCOPE: stamp, field
--          CALENDAR_NEEDED: stamp, number of the calendar · NO_CELL · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT: sums only grow, and the larger of two tellings holds; a grant is made to a cell that has told of all before it.
-- COST     one scope and its sums. Grants stand in what the scope holds, so that `reserve` counts them as it counts holds.

-- @include argument_amount
-- @include codes
-- @include escrow_begin
-- @include escrow_end
-- @include layout_scope
-- @include numbers
-- @include reply_stamp
-- @include working

local CELLS_MAX = 63
local field, number = ARGV[1], argument_amount(ARGV[2])
local start, funded, back = argument_amount(ARGV[3]), argument_amount(ARGV[4]), argument_amount(ARGV[5])
local asked, least = argument_amount(ARGV[6]), argument_amount(ARGV[7])
if not (number and start and funded and back and asked and least) or number < 1 or number > CELLS_MAX or back > funded then
  return reply_stamp(BAD_ARGUMENT)
end
local at = 2 * number
local scope, sums = escrow_begin(field, true, at + 1)
if not scope then
  return sums
end
local granted, returned = sums[at], sums[at + 1]
if start == scope[S_START] then
  sums[at], sums[at + 1] = math.max(granted, funded), math.max(returned, back)
  scope[S_HELD] = scope[S_HELD] + sums[at] - sums[at + 1] - (granted - returned)
  local free = scope[S_LIMIT] - scope[S_SETTLED] - scope[S_HELD] - scope[S_SUSPENSE]
  local amount = math.min(asked, free, AMOUNT_MAX - sums[at])
  if amount > 0 and amount >= least and funded == sums[at] and cell.suspect ~= 1 then
    sums[at] = sums[at] + amount
    scope[S_HELD] = scope[S_HELD] + amount
  end
end
local reply = escrow_end(field, scope, sums, sums[at] > granted or sums[at + 1] > returned)
reply[8], reply[9], reply[10], reply[11] = scope[S_LIMIT], scope[S_SETTLED], scope[S_HELD], scope[S_SUSPENSE]
for i = 2, #sums do
  reply[10 + i] = sums[i]
end
return reply
