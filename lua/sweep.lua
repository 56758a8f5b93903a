#!lua flags=allow-oom
-- PURPOSE  Let time do its work: expire leases, resolve suspense, remove tombstones that are due.
-- KEYS     C0 C1 L D S G
-- ARGV     (none)
-- RETURNS  OK: stamp, count of leases that were over, of resolved suspense, of removed tombstones · NO_CELL · BAD_SCHEMA
--          CALENDAR_NEEDED: stamp, number of the calendar
-- IDEMPOTENT by nature: what was due is done once.
-- COST     at most 8 leases, 8 suspended reservations, 64 tombstones. Call again while it finds as many.

-- @include cell_begin
-- @include codes
-- @include commit
-- @include reply_stamp
-- @include reply_transition
-- @include sweep_due
-- @include sweep_graves
-- @include sweep_suspense
-- @include working

local begun, code = cell_begin()
if not begun then
  return reply_stamp(code)
end
local expired = sweep_due(8)
local resolved = expired == 0 and sweep_suspense(8) or 0
if missing_calendar then
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
local removed = #sweep_graves(64)
if expired + resolved + removed > 0 then
  commit()
end
local reply = reply_stamp(OK)
reply[6], reply[7], reply[8] = expired, resolved, removed
return reply
