#!lua
-- PURPOSE  Change the configuration: `put` into the active one, or `begin`, `stage` and `flip` to replace it whole.
-- KEYS     C0 C1 L
-- ARGV     mode (put, begin, stage, flip, calendar) · token or expected version · entries, at most 64, each: field,
--          count of numbers, numbers
-- RETURNS  OK: stamp · CONFLICT: stamp, 0: another change came first · NO_CELL · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT: a put that changes nothing makes no new version; a flip happens once per token.
-- COST     one command per page of entries. A flip is one write, however many lanes there are: each lane takes its new
--          configuration over when it is next used.

-- @include argument_amount
-- @include cell_begin
-- @include cell_catalogue
-- @include cell_write
-- @include codes
-- @include numbers
-- @include reply_stamp
-- @include reply_transition
-- @include working

local mode, token = ARGV[1], argument_amount(ARGV[2])
local entries, at = {}, 3
while at <= #ARGV and #entries <= 128 do
  local count = argument_amount(ARGV[at + 1] or '')
  if not count or count < 1 or count > 1024 or at + 1 + count > #ARGV then
    return reply_stamp(BAD_ARGUMENT)
  end
  local numbers = {}
  for i = 1, count do
    numbers[i] = argument_amount(ARGV[at + 1 + i])
    if not numbers[i] then
      return reply_stamp(BAD_ARGUMENT)
    end
  end
  entries[#entries + 1] = ARGV[at]
  entries[#entries + 1] = numbers_pack(numbers)
  at = at + count + 2
end
if not token or #entries > 128 then
  return reply_stamp(BAD_ARGUMENT)
end
local begun, code = cell_begin()
if not begun then
  return reply_stamp(code)
end
local other = cell.slot == 0 and C1 or C0

if mode == 'put' or mode == 'calendar' then
  local changed = false
  for i = 1, #entries, 2 do
    changed = changed or redis.call('HGET', cell_catalogue(), entries[i]) ~= entries[i + 1]
  end
  if changed then
    if mode == 'put' then -- first: lanes that look anew find what they had, and a repeat finds its change still to be made
      cell.config = cell.config + 1
      cell_write()
    end
    redis.call('HSET', cell_catalogue(), unpack(entries))
  end
  return reply_stamp(OK)
elseif mode == 'begin' then
  redis.call('UNLINK', other)
  redis.call('HSET', other, 'staging', token)
  return reply_stamp(OK)
elseif redis.call('HGET', other, 'staging') ~= ARGV[2] then
  return reply_transition(CONFLICT, 0)
elseif mode == 'stage' and #entries > 0 then
  redis.call('HSET', other, unpack(entries))
  return reply_stamp(OK)
elseif mode == 'flip' then
  if tonumber(ARGV[4 + 1]) ~= cell.config then
    return reply_transition(CONFLICT, 0)
  end
  cell.config, cell.slot = cell.config + 1, 1 - cell.slot
  redis.call('HDEL', other, 'staging')
  cell_write()
  return reply_stamp(OK)
end
return reply_stamp(BAD_ARGUMENT)
