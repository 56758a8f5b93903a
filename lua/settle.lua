#!lua flags=allow-oom
-- PURPOSE  Book what reservations really used, in the windows that were charged. More than was held is debt.
-- KEYS     C0 C1 L S G U
-- ARGV     for each of at most 32 settlements: rid · integers as packed: input tokens, output tokens, cost (nano-dollars,
--          -1: unknown), outcome, failed lanes (bits), latency (us); of a slab also what stays of its calls where
--          nothing is refunded (calls, metered, input and output tokens, cost), the metered tokens that they used, and how
--          many ended well, badly, badly in a row at its end
-- RETURNS  OK: stamp, then code and state for each: OK, SETTLED · REPLAYED, SETTLED: it was settled before · CONFLICT,
--          state: it was released or cancelled · UNMATCHED, 0: the rid is unknown; listed, not added
--          CALENDAR_NEEDED: stamp, number of the calendar · NO_CELL · BAD_SCHEMA · BAD_ARGUMENT
-- IDEMPOTENT by rid, one by one: the tombstone answers a repeat.
-- COST     each reservation once, each lane and scope once for all. Runs when memory is full: it repays.

-- @include cell_begin
-- @include codes
-- @include commit
-- @include layout_reservation
-- @include numbers
-- @include reply_stamp
-- @include reply_transition
-- @include reservation_bury
-- @include reservation_lanes_end
-- @include reservation_scopes_end
-- @include reservations_load
-- @include slab_evidence
-- @include slab_read
-- @include states
-- @include working

local settlements, rids = {}, {}
for at = 1, #ARGV, 2 do
  local numbers = integers_unpack(ARGV[at + 1] or '')
  local input, output, _, outcome, failed, latency = unpack(numbers or {}, 1, 6)
  if not latency or math.min(input, output, outcome, failed, latency) < 0
    or #numbers > SETTLEMENT_SIZE and not slab_read(numbers) then
    return reply_stamp(BAD_ARGUMENT)
  end
  rids[#rids + 1] = ARGV[at]
  settlements[#rids] = numbers
end
if #rids == 0 or #rids > 32 then
  return reply_stamp(BAD_ARGUMENT)
end
local found, code = cell_begin(unpack(rids))
if not found then
  return reply_stamp(code)
end

local unmatched, ended = {}, {}
local function settle(rid, numbers, ids, slab, input, output, cost, outcome, failed, latency)
  if ended[rid] then
    return REPLAYED, SETTLED -- twice in one call
  elseif not numbers then
    unmatched[#unmatched + 1] = rid
    unmatched[#unmatched + 1] = numbers_pack({ cell.now, input, output, cost })
    return UNMATCHED, 0
  end
  local state = numbers[R_STATE]
  if state == SETTLED then
    return REPLAYED, SETTLED
  elseif state == RELEASED or state == CANCELLED then
    return CONFLICT, state
  elseif missing_calendar then
    return CALENDAR_NEEDED, 0
  end
  local actuals = { -1, slab and slab[SLAB_TOKENS] or input + output, input, output, cost, -1 }
  local at = reservation_lanes_end(numbers, ids, actuals, true, outcome, failed, latency, slab)
  reservation_scopes_end(numbers, ids, at, cost, true)
  if state == OPEN then
    reservation_end(rid, SETTLED)
  else
    if state == SUSPENDED then
      suspense_end(rid)
    end
    reservation_bury(rid, tombstone_write(SETTLED))
  end
  ended[rid] = true
  return OK, SETTLED
end

local reservations, ids_of = reservations_load(found, 2)
local results = {}
for i = 1, #rids do
  local result, state = settle(rids[i], reservations[i], ids_of[i], settlements[i].slab, unpack(settlements[i], 1, 6))
  results[#results + 1], results[#results + 2] = result, state
end
if missing_calendar then
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
local news = 0
for i = 1, #unmatched, 2 do
  news = news + 1 - redis.call('HEXISTS', U, unmatched[i])
end
if next(ended) or news > 0 then
  commit()
end
for i = 1, #unmatched, 2 do
  redis.call('HSETNX', U, unmatched[i], unmatched[i + 1])
end
local reply = reply_stamp(OK)
for i = 1, #results do
  reply[#reply + 1] = results[i]
end
return reply
