#!lua
-- PURPOSE  Hold the first candidate that has room in every lane and every scope, or hold nothing.
-- KEYS     M C0 C1 L B R D S G F
-- ARGV     rid · config version (0: any) · lease (us) · principal · weight · pool · count of shared scopes, scopes ·
--          count of charges, charges · count of candidates, candidates (see include/candidate_read.lua)
-- RETURNS  ADMITTED: stamp, index (from 0), deadline (us), probe, count of soft scopes exceeded, their ids, losses
--          REPLAYED: as ADMITTED, without losses: this rid is held already
--          DENIED: stamp, losses: count, then reason, id, limit, retry time (us), trust for each candidate in order
--          CONFLICT: stamp, state: this rid has ended · STALE_CONFIG · NO_CELL · BAD_SCHEMA
--          UNKNOWN_SCOPE: stamp, id · CALENDAR_NEEDED: stamp, number of the calendar · BAD_ARGUMENT: no amount, or more
--          than 64 candidates, 4 lanes and 4 scopes each, 8 shared scopes
-- IDEMPOTENT by rid. A denial writes nothing but leases that were due.
-- COST     one read of lanes and scopes for the first candidate, one for all others; at most 8 expired leases.

-- @include working
-- @include numbers
-- @include codes
-- @include reasons
-- @include states
-- @include layout_lane
-- @include layout_scope
-- @include layout_reservation
-- @include argument_amount
-- @include clock_now
-- @include cell_begin
-- @include reply_stamp
-- @include reply_transition
-- @include cell_catalogue
-- @include calendar_period
-- @include limit_advance
-- @include limit_used
-- @include limit_wait
-- @include limit_charge
-- @include lanes_load
-- @include scopes_load
-- @include charge_amount
-- @include lane_check
-- @include lane_scarce
-- @include fair_gate
-- @include scope_hold
-- @include scope_check
-- @include reservation_record
-- @include probe_lanes
-- @include reservation_open
-- @include cell_write
-- @include commit
-- @include candidate_read

local rid, wanted_config, lease = ARGV[1], argument_amount(ARGV[2]), argument_amount(ARGV[3])
local principal, weight = ARGV[4], argument_amount(ARGV[5]) -- the pool is in the name of F
local shared, charges = names_read(7, 8)
local charge_count = shared and argument_amount(ARGV[charges])
local next_at = charge_count and charges + charge_count * 5 + 1
local count = next_at and argument_amount(ARGV[next_at])
if not (wanted_config and lease and weight and weight > 0 and count and count > 0 and count <= 64 and charge_count <= 64) then
  return reply_stamp(BAD_ARGUMENT)
end
charges, next_at = charges + 1, next_at + 1

local code
cell, code = cell_begin()
if not cell then
  return reply_stamp(code)
end

local function reply_admitted(admitted, index, deadline, probe, soft)
  local reply = reply_transition(admitted, index)
  reply[7], reply[8], reply[9] = deadline, probe and 1 or 0, #soft
  for i = 1, #soft do
    reply[9 + i] = soft[i]
  end
  return reply
end

local known = redis.call('HGET', R, rid)
if known then
  local numbers = reservation_read(known)
  if numbers[R_STATE] ~= OPEN then
    return reply_transition(CONFLICT, numbers[R_STATE])
  end
  local reply = reply_admitted(REPLAYED, numbers[R_INDEX], numbers[R_DEADLINE], probe_lanes(numbers) > 0, {})
  reply[#reply + 1] = 0
  return reply
end
if wanted_config > 0 and wanted_config ~= cell.config then
  return reply_stamp(STALE_CONFIG)
end

-- Candidates are read as they are needed: the first alone, for it mostly has room, then all others together.
local candidates = {}
local function load(from, to)
  local lane_ids, scope_ids = {}, {}
  for i = from, to do
    local candidate
    candidate, next_at = candidate_read(next_at, shared, charges)
    if not candidate then
      return nil, true
    end
    candidates[i] = candidate
    for j = 1, #candidate.lanes do
      lane_ids[#lane_ids + 1] = candidate.lanes[j]
    end
    for j = (i == 1 and 1 or #shared + 1), #candidate.scopes do
      scope_ids[#scope_ids + 1] = candidate.scopes[j]
    end
  end
  lanes_load(lane_ids)
  return scopes_load(scope_ids)
end

local losses = {}
local function lose(reason, where, limit, retry, trust)
  local n = #losses
  losses[n + 1], losses[n + 2], losses[n + 3], losses[n + 4], losses[n + 5] = reason, where, limit, retry, trust
end

-- Of all that stands against a candidate, what ends last binds; nil when nothing does.
local function binding(candidate)
  local reason, where, limit, retry, trust = 0, '', 0, 0, EXACT
  for i = 1, #candidate.lanes do
    local why, when, kind, name = lane_check(lanes[candidate.lanes[i]], candidate.amounts)
    if why ~= 0 and when > retry then
      reason, where, limit, retry, trust = why, candidate.lanes[i], name, when, kind
    end
  end
  local holds, modes = {}, {}
  for i = 1, #candidate.scopes do
    local amount, why, when, kind = scope_check(scopes[candidate.scopes[i]], candidate.amounts)
    if amount then
      holds[i], modes[i] = amount, why
    elseif when > retry then
      reason, where, limit, retry, trust = why, candidate.scopes[i], 0, when, kind
    end
  end
  return reason, where, limit, retry, trust, holds, modes
end

local fair
local function fair_charge(candidate)
  local scarce, share = false, 0
  for i = 1, #candidate.lanes do
    local lane = lanes[candidate.lanes[i]]
    if lane[L_FAIR] == 1 then
      local lane_is, lane_share = lane_scarce(lane, candidate.amounts)
      scarce, share = scarce or lane_is, math.max(share, lane_share)
    end
  end
  return scarce, math.max(1, math.ceil(share / weight))
end

-- What only a due lease needs is defined only then: defining it costs as much as a read.
local function sweep_first()
  local rids = redis.call('ZRANGEBYSCORE', D, '-inf', cell.now, 'LIMIT', 0, 8)
  if #rids == 0 then
    return 0
  end
  -- @include limit_correct
  -- @include scope_book
  -- @include breaker_evidence
  -- @include reservation_lanes_end
  -- @include reservation_bury
  -- @include reservation_load
  -- @include reservation_expire
  for i = 1, #rids do
    local numbers, ids = reservation_load(rids[i])
    reservation_expire(rids[i], numbers, ids)
  end
  return #rids
end

local swept = sweep_first()
local chosen, holds, modes, charge
for i = 1, count do
  if i <= 2 then
    local unknown, unreadable = load(i, i == 1 and 1 or count)
    if unreadable then
      return reply_stamp(BAD_ARGUMENT)
    elseif unknown then
      local reply = reply_stamp(UNKNOWN_SCOPE)
      reply[6] = unknown
      return reply
    end
  end
  local reason, where, limit, retry, trust, amounts, kinds = binding(candidates[i])
  if reason == 0 and principal ~= '' then
    local scarce
    scarce, charge = fair_charge(candidates[i])
    fair = fair or fair_read(principal)
    if scarce and not fair_allows(fair, charge) then
      reason, where, limit, retry, trust = FAIR_SHARE, candidates[i].lanes[1], 0, cell.now + 100000, ESTIMATED
    end
  end
  if reason == 0 then
    chosen, holds, modes = i, amounts, kinds
    break
  end
  lose(reason, where, limit, retry, trust)
end
if missing_calendar then
  local reply = reply_stamp(CALENDAR_NEEDED)
  reply[6] = missing_calendar
  return reply
end

local reply
if chosen then
  local deadline, probe = reservation_open(rid, candidates[chosen], chosen - 1, holds, modes, lease)
  local soft = {}
  for i = 1, #candidates[chosen].scopes do
    local scope = scopes[candidates[chosen].scopes[i]]
    if scope[S_HARD] == 0 and scope[S_SETTLED] + scope[S_HELD] + scope[S_SUSPENSE] > scope[S_LIMIT] then
      soft[#soft + 1] = candidates[chosen].scopes[i]
    end
  end
  commit()
  if fair then
    fair_write(fair, principal, charge)
  end
  reply = reply_admitted(ADMITTED, chosen - 1, deadline, probe, soft)
else
  if swept > 0 then
    commit()
  end
  reply = reply_stamp(DENIED)
end
reply[#reply + 1] = #losses / 5
for i = 1, #losses do
  reply[#reply + 1] = losses[i]
end
return reply
