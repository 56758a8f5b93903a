#!lua
-- PURPOSE  Take in what a provider said about a lane: re-sync its limits, learn new ones, cool it. Or what an operator knows
--          better: that a limit has counted nothing, that the lane need not cool.
-- KEYS     C0 C1 L D S G
-- ARGV     field of the lane · cool for (us, 0: not, -1: no more) · observations: name, metric, kind, capacity, scale,
--          drain, tick, used (-1: not told, -2: begin anew), full again in (us, 0: not told) for each
-- RETURNS  OK: stamp · NO_CELL · BAD_SCHEMA · BAD_ARGUMENT · CALENDAR_NEEDED: stamp, number of the calendar
-- IDEMPOTENT by nature: what a provider says only ever raises usage and lengthens cooling.
-- COST     one lane.

-- @include argument_amount
-- @include cell_begin
-- @include codes
-- @include commit
-- @include lane_observe
-- @include layout_lane
-- @include records_load
-- @include reply_stamp
-- @include reply_transition
-- @include working

local id, cool = ARGV[1], ARGV[2] == '-1' and -1 or argument_amount(ARGV[2])
local observations = {}
for at = 3, #ARGV, 9 do
  local observation = {}
  for field = 1, 9 do
    local value = ARGV[at + field - 1]
    observation[field] = field == 8 and USED_SPECIAL[value] or argument_amount(value or '')
    if not observation[field] then
      return reply_stamp(BAD_ARGUMENT)
    end
  end
  observations[#observations + 1] = observation
end
if not cool or #observations > 8 then
  return reply_stamp(BAD_ARGUMENT)
end
local begun, code = cell_begin()
if not begun then
  return reply_stamp(code)
end
records_load({ id })
if missing_calendar then
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
local lane = records[id]
if cool < 0 then
  lane[L_BLOCKED] = 0
elseif cool > 0 then
  lane[L_BLOCKED] = math.max(lane[L_BLOCKED], cell.now + cool)
end
for i = 1, #observations do
  lane_observe(id, lane, observations[i])
end
if missing_calendar then -- of a limit that one of them brought back
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
lane[L_SEQ] = cell.seq + 1
commit()
return reply_stamp(OK)
