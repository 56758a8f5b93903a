#!lua flags=allow-oom
-- PURPOSE  Mark or clear doubt about the cell's clock: while it lasts, hard scopes refuse.
-- KEYS     L
-- ARGV     1: callers' clocks disagree with the cell's · 0: they agree again
-- RETURNS  OK: stamp · NO_CELL · BAD_SCHEMA
-- IDEMPOTENT by nature.
-- COST     one hash field.

-- @include cell_begin
-- @include cell_write
-- @include codes
-- @include reply_stamp
-- @include working

local begun, code = cell_begin()
if not begun then
  return reply_stamp(code)
end
cell.suspect = ARGV[1] == '1' and 1 or 0
cell_write()
return reply_stamp(OK)
