#!lua
-- PURPOSE  Note that a principal asked in vain: until it comes again, what is scarce is kept for it when it is its turn.
-- KEYS     L F
-- ARGV     principal · for how long it is present (us); its pool is in the name of F
-- RETURNS  OK: stamp · NO_CELL · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT by nature. Writes nothing that counts: a denial wrote nothing either.
-- COST     four commands on F; at most 8 that are not present leave.

-- @include argument_amount
-- @include cell_begin
-- @include codes
-- @include fair_gate
-- @include lane_scarce
-- @include reply_stamp
-- @include working

local principal, stay = ARGV[1], argument_amount(ARGV[2] or '')
if not stay or principal == '' then
  return reply_stamp(BAD_ARGUMENT)
end
local begun, code = cell_begin()
if not begun then
  return reply_stamp(code)
end
local state = fair_read(principal)
stay = math.min(stay, FAIR_STAY)
redis.call('ZADD', F, 'GT', state.mine, 'c' .. principal, FAIR_TIMES + cell.now + stay, 't' .. principal)
fair_leave(state)
return reply_stamp(OK)
