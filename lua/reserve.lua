#!lua
-- PURPOSE  Hold the first candidate that has room in every lane and every scope, or hold nothing.
-- KEYS     C0 C1 L D S G F
-- ARGV     rid · principal · the request (see include/request_read.lua; weight above 0; its pool is in the name of F)
-- RETURNS  ADMITTED: stamp, index (from 0), deadline (us), probe, count of soft scopes exceeded, their fields, losses
--          REPLAYED: as ADMITTED, without losses: this rid is held already
--          DENIED: stamp, losses: count, then reason, field, limit, retry time (us), trust for each candidate in order
--          CONFLICT: stamp, state: this rid has ended · STALE_CONFIG · NO_CELL · BAD_SCHEMA
--          UNKNOWN_SCOPE: stamp, field · CALENDAR_NEEDED: stamp, number of the calendar · BAD_ARGUMENT: no integers, or
--          more than 64 candidates, 6 lanes and 4 scopes each, 8 shared scopes
-- IDEMPOTENT by rid. A denial writes nothing but leases that were due.
-- COST     one read for the first candidate unless it is kept, one for all others; at most 4 expired leases.

-- @include candidate_check
-- @include cell_begin
-- @include codes
-- @include commit
-- @include fair_gate
-- @include forgot_check
-- @include kept
-- @include layout_reservation
-- @include probe_lanes
-- @include reasons
-- @include records_load
-- @include reply_admitted
-- @include reply_stamp
-- @include reply_transition
-- @include request_read
-- @include reservation_open
-- @include reservation_record
-- @include scopes_exceeded
-- @include states
-- @include sweep_due
-- @include working

local rid, principal = ARGV[1], ARGV[2]
local numbers, candidate, others_at = request_read()
if not numbers or numbers[Q_WEIGHT] == 0 then
  return reply_stamp(BAD_ARGUMENT)
end
local fields = { unpack(ARGV, 4, others_at - 1) }
local asked = kept_missing(fields)
local found, code = cell_begin(rid, unpack(asked))
if not found then
  return reply_stamp(code)
end
if found[2] then
  local known = reservation_read(found[2])
  if known[R_STATE] ~= OPEN then
    return reply_transition(CONFLICT, known[R_STATE])
  end
  return reply_admitted(REPLAYED, known[R_INDEX], known[R_DEADLINE], probe_lanes(known) > 0, {}, {})
end
if numbers[Q_CONFIG] > 0 and numbers[Q_CONFIG] ~= cell.config then
  return reply_stamp(STALE_CONFIG)
end

local swept = cell.now >= cell.due and sweep_due(4) or 0
local unknown = records_load(fields, asked, found, 3)
local candidates, losses, index = { candidate }, {}, 1
local holds, modes, soft, fair, charge, stay
while candidate and not unknown do
  local reason, where, limit, retry, trust
  reason, where, limit, retry, trust, holds, modes, soft = candidate_check(candidate)
  if reason == 0 and cell.now < cell.cautious then
    reason, where, limit, retry, trust = forgot_check(candidate, holds)
  end
  if reason == 0 and principal ~= '' then
    local scarce
    scarce, charge, stay = fair_charge(candidate, numbers[Q_WEIGHT])
    if charge then
      fair = fair or fair_read(principal)
    end
    if scarce and not fair_allows(fair, charge) then
      reason, where, limit, retry, trust = FAIR_SHARE, candidate.lanes[1], 0, cell.now + 100000, ESTIMATED
    end
  end
  if reason == 0 then
    break
  end
  local n = #losses
  losses[n + 1], losses[n + 2], losses[n + 3], losses[n + 4], losses[n + 5] = reason, where, limit, retry, trust
  if index == 1 and ARGV[others_at] then -- as they are needed: the first mostly has room, then all others together
    local others = candidates_read(candidates, ARGV[others_at], numbers)
    if not others then
      return reply_stamp(BAD_ARGUMENT)
    end
    unknown = records_load(others)
  end
  index = index + 1
  candidate = candidates[index]
end
if unknown then
  return reply_transition(UNKNOWN_SCOPE, unknown)
end
if missing_calendar then
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
if not candidate then
  if swept > 0 then
    commit()
  else
    kept_leave()
  end
  return reply_losses(reply_stamp(DENIED), losses)
end

local deadline, probe = reservation_open(rid, candidate, index - 1, holds, modes, numbers[Q_LEASE])
local exceeded = soft and scopes_exceeded(candidate.scopes) or {}
commit()
if charge then
  fair_write(fair, principal, charge, stay)
end
return reply_admitted(ADMITTED, index - 1, deadline, probe, exceeded, losses)
