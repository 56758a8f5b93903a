#!lua
-- PURPOSE  Mark or clear doubt about the cell's clock: while it lasts, hard scopes refuse.
-- KEYS     M
-- ARGV     1: callers' clocks disagree with the cell's · 0: they agree again
-- RETURNS  OK: stamp · NO_CELL · BAD_SCHEMA
-- IDEMPOTENT by nature.
-- COST     one hash field.

-- @include working
-- @include numbers
-- @include codes
-- @include clock_now
-- @include cell_begin
-- @include reply_stamp

local code
cell, code = cell_begin()
if not cell then
  return reply_stamp(code)
end
redis.call('HSET', M, 'suspect', ARGV[1] == '1' and 1 or 0)
return reply_stamp(OK)
