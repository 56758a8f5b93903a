-- Charges one candidate's lanes and scopes in the working set and writes its record there. Checks nothing.
-- @include layout_lane
-- @include layout_reservation
-- @include layout_scope
-- @include limit_charge
-- @include numbers
-- @include states
-- @include working

local numbers_scratch = {} -- written over by every call: one that grew again each time would cost as much as the rest

-- Charges a lane's limits and marks behind `last` where they counted. Returns where the marks end.
local function lane_charge(lane, amounts, numbers, last)
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    local kind = lane[at + D_KIND]
    if kind < CONCURRENCY then -- that is counted once per lane; slots are part of another
      local amount = amounts[lane[at + D_METRIC]]
      local where, refunded = limit_charge(lane, at, amount)
      numbers[last + K_NAME], numbers[last + K_KIND], numbers[last + K_SCALE] = lane[at + D_NAME], kind, lane[at + D_SCALE]
      numbers[last + K_CHARGED], numbers[last + K_WHERE], numbers[last + K_REFUNDED] = amount, where, refunded
      last = last + MARK_SIZE
    end
  end
  return last
end

local function reservation_open(rid, candidate, index, holds, modes, lease)
  local named, booked, seq, now = candidate.lanes, candidate.scopes, cell.seq + 1, cell.now
  local numbers, deadline, probing, calls = numbers_scratch, now + lease, false, candidate.amounts[1]
  numbers[R_STATE], numbers[R_CREATED], numbers[R_DEADLINE], numbers[R_INDEX] = OPEN, now, deadline, index
  numbers[R_SEQ], numbers[R_LANES], numbers[R_SCOPES], numbers[R_LEASE] = seq, #named, #booked, lease
  local last = R_HEAD
  for i = 1, #named do
    local lane, probe = records[named[i]], 0
    if lane[L_BREAK_STATE] == 1 and lane[L_PROBE] == 0 and now >= lane[L_BREAK_UNTIL] then
      lane[L_PROBE], probe, probing = seq, 1, true
    end
    local marks_end = lane_charge(lane, candidate.amounts, numbers, last + 2)
    numbers[last + 1], numbers[last + 2] = probe + 2 * calls - 2, (marks_end - last - 2) / MARK_SIZE
    lane[L_IN_FLIGHT], lane[L_SEQ], last = lane[L_IN_FLIGHT] + calls, seq, marks_end
  end
  for i = 1, #booked do
    local scope, hold = records[booked[i]], holds[i]
    numbers[last + A_AMOUNT], numbers[last + A_START], numbers[last + A_MODE] = hold, scope[S_START], modes[i]
    numbers[last + A_DUE], numbers[last + A_CHARGED] = 0, 0
    scope[S_HELD], scope[S_SEQ], last = scope[S_HELD] + hold, seq, last + SCOPE_PART
  end
  numbers[R_COUNT] = last
  local ids = table.concat(named, '\n') .. '\n' .. table.concat(booked, '\n')
  reservation_put(rid, struct.pack(formats[last], unpack(numbers, 1, last)) .. ids)
  if deadline < cell.due then
    cell.due = deadline
  end
  lease_begin(deadline, rid)
  return deadline, probing
end
