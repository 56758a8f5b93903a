-- Charges one candidate's lanes and scopes in the working set and writes its record there. Checks nothing.
-- @include layout_lane
-- @include layout_reservation
-- @include layout_scope
-- @include limit_charge
-- @include numbers
-- @include states
-- @include working

local numbers_scratch = {} -- written over by every call: one that grew again each time would cost as much as the rest

local function reservation_open(rid, candidate, index, holds, modes, lease)
  local ids, deadline, probing = { nil, nil, nil, nil, nil, nil, nil, nil }, cell.now + lease, false
  local numbers, seq = numbers_scratch, cell.seq + 1
  numbers[R_STATE], numbers[R_CREATED], numbers[R_DEADLINE], numbers[R_INDEX] = OPEN, cell.now, deadline, index
  numbers[R_SEQ], numbers[R_LANES], numbers[R_SCOPES], numbers[R_LEASE] = seq, #candidate.lanes, #candidate.scopes, lease
  local last = R_HEAD
  for i = 1, #candidate.lanes do
    local id = candidate.lanes[i]
    local lane = lanes[id]
    ids[i] = id
    local head = last
    local probe = lane[L_BREAK_STATE] == 1 and lane[L_PROBE] == 0 and cell.now >= lane[L_BREAK_UNTIL]
    if probe then
      lane[L_PROBE], probing = seq, true
    end
    last = head + 2
    for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
      local kind = lane[at + D_KIND]
      if kind < CONCURRENCY then -- that is counted once per lane, below; slots are part of another
        local amount = candidate.amounts[lane[at + D_METRIC]]
        local where, refunded = limit_charge(lane, at, amount)
        numbers[last + K_NAME], numbers[last + K_KIND], numbers[last + K_SCALE] = lane[at + D_NAME], kind, lane[at + D_SCALE]
        numbers[last + K_CHARGED], numbers[last + K_WHERE], numbers[last + K_REFUNDED] = amount, where, refunded
        last = last + MARK_SIZE
      end
    end
    numbers[head + 1], numbers[head + 2] = probe and 1 or 0, (last - head - 2) / MARK_SIZE
    lane[L_IN_FLIGHT], lane[L_SEQ] = lane[L_IN_FLIGHT] + 1, seq
  end
  for i = 1, #candidate.scopes do
    local id = candidate.scopes[i]
    local scope = scopes[id]
    ids[#ids + 1] = id
    numbers[last + A_AMOUNT], numbers[last + A_START], numbers[last + A_MODE] = holds[i], scope[S_START], modes[i]
    numbers[last + A_DUE], numbers[last + A_CHARGED] = 0, 0
    scope[S_HELD], scope[S_SEQ] = scope[S_HELD] + holds[i], seq
    last = last + SCOPE_PART
  end
  numbers[R_COUNT] = last
  local at = #reservations_set
  reservations_set[at + 1] = rid
  reservations_set[at + 2] = struct.pack(formats[last], unpack(numbers, 1, last)) .. table.concat(ids, '\n')
  cell.due = math.min(cell.due, deadline)
  leases_set = { deadline, rid }
  return deadline, probing
end
