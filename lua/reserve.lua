#!lua
-- PURPOSE  Hold the first candidate that has room in every lane and every scope, or hold nothing.
-- KEYS     C0 C1 L B R D S G F
-- ARGV     rid · config version (0: any) · lease (us) · principal · weight · pool · count of shared scopes, scopes ·
--          count of charges, charges · count of candidates, candidates (see include/candidate_read.lua)
-- RETURNS  ADMITTED: stamp, index (from 0), deadline (us), probe, count of soft scopes exceeded, their ids, losses
--          REPLAYED: as ADMITTED, without losses: this rid is held already
--          DENIED: stamp, losses: count, then reason, id, limit, retry time (us), trust for each candidate in order
--          CONFLICT: stamp, state: this rid has ended · STALE_CONFIG · NO_CELL · BAD_SCHEMA
--          UNKNOWN_SCOPE: stamp, id · CALENDAR_NEEDED: stamp, number of the calendar · BAD_ARGUMENT: no amount, or more
--          than 64 candidates, 6 lanes and 4 scopes each, 8 shared scopes
-- IDEMPOTENT by rid. A denial writes nothing but leases that were due.
-- COST     one read of lanes and scopes for the first candidate, one for all others; at most 8 expired leases.

-- @include argument_amount
-- @include candidate_check
-- @include candidates_load
-- @include cell_begin
-- @include codes
-- @include commit
-- @include fair_gate
-- @include layout_reservation
-- @include probe_lanes
-- @include reasons
-- @include reply_admitted
-- @include reply_stamp
-- @include reply_transition
-- @include reservation_open
-- @include reservation_record
-- @include scopes_exceeded
-- @include states
-- @include sweep_due
-- @include working

local rid, wanted_config, lease = ARGV[1], argument_amount(ARGV[2]), argument_amount(ARGV[3])
local principal, weight = ARGV[4], argument_amount(ARGV[5]) -- the pool is in the name of F
local SHARED = 7
local shared_count = argument_amount(ARGV[SHARED])
local charges = shared_count and SHARED + shared_count + 1
local charge_count = charges and argument_amount(ARGV[charges] or '')
local next_at = charge_count and charges + charge_count * 5 + 1
local count = next_at and argument_amount(ARGV[next_at] or '')
if not (wanted_config and lease and weight and weight > 0 and shared_count and shared_count <= 8
  and count and count > 0 and count <= 64 and charge_count <= 64) then
  return reply_stamp(BAD_ARGUMENT)
end
charges, next_at = charges + 1, next_at + 1

local code
cell, code = cell_begin()
if not cell then
  return reply_stamp(code)
end
local known = redis.call('HGET', R, rid)
if known then
  local numbers = reservation_read(known)
  if numbers[R_STATE] ~= OPEN then
    return reply_transition(CONFLICT, numbers[R_STATE])
  end
  return reply_admitted(REPLAYED, numbers[R_INDEX], numbers[R_DEADLINE], probe_lanes(numbers) > 0, {}, {})
end
if wanted_config > 0 and wanted_config ~= cell.config then
  return reply_stamp(STALE_CONFIG)
end

local swept = cell.now >= cell.due and sweep_due(8) or 0
local candidates, losses = {}, {}
local chosen, holds, modes, soft, fair, charge, counts
for i = 1, count do
  if i <= 2 then -- as they are needed: the first alone, for it mostly has room, then all others together
    local unknown
    next_at, unknown = candidates_load(candidates, i, i == 1 and 1 or count, next_at, SHARED, charges)
    if not next_at then
      return reply_stamp(BAD_ARGUMENT)
    elseif unknown then
      return reply_transition(UNKNOWN_SCOPE, unknown)
    end
  end
  local reason, where, limit, retry, trust
  reason, where, limit, retry, trust, holds, modes, soft = candidate_check(candidates[i])
  if reason == 0 and principal ~= '' then
    local scarce
    scarce, counts, charge = fair_charge(candidates[i], weight)
    if counts then
      fair = fair or fair_read(principal)
    end
    if scarce and not fair_allows(fair, charge) then
      reason, where, limit, retry, trust = FAIR_SHARE, candidates[i].lanes[1], 0, cell.now + 100000, ESTIMATED
    end
  end
  if reason == 0 then
    chosen = i
    break
  end
  local n = #losses
  losses[n + 1], losses[n + 2], losses[n + 3], losses[n + 4], losses[n + 5] = reason, where, limit, retry, trust
end
if missing_calendar then
  return reply_transition(CALENDAR_NEEDED, missing_calendar)
end
if not chosen then
  if swept > 0 then
    commit()
  end
  return reply_losses(reply_stamp(DENIED), losses)
end

local deadline, probe = reservation_open(rid, candidates[chosen], chosen - 1, holds, modes, lease)
local exceeded = soft and scopes_exceeded(candidates[chosen].scopes) or {}
commit()
if counts then
  fair_write(fair, principal, charge)
end
return reply_admitted(ADMITTED, chosen - 1, deadline, probe, exceeded, losses)
