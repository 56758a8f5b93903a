-- Charges one candidate's lanes and scopes in the working set and writes its record there. Checks nothing.
local function reservation_open(rid, candidate, index, holds, modes, lease)
  local ids, deadline, probing = {}, cell.now + lease, false
  local numbers = { 0, OPEN, cell.now, deadline, index, cell.seq + 1, #candidate.lanes, #candidate.scopes, lease }
  for i = 1, #candidate.lanes do
    local id = candidate.lanes[i]
    local lane = lanes[id]
    ids[i] = id
    local head = #numbers
    local probe = lane[L_BREAK_STATE] == 1 and lane[L_PROBE] == 0 and cell.now >= lane[L_BREAK_UNTIL]
    numbers[head + 1], numbers[head + 2] = probe and 1 or 0, 0
    if probe then
      lane[L_PROBE], probing = numbers[R_SEQ], true
    end
    for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
      if lane[at + D_KIND] ~= CONCURRENCY then -- that is counted once per lane, below
        local amount = charge_amount(candidate.amounts, lane[at + D_METRIC])
        local where, refunded = limit_charge(lane, at, amount)
        local mark = #numbers
        numbers[mark + K_NAME], numbers[mark + K_KIND] = lane[at + D_NAME], lane[at + D_KIND]
        numbers[mark + K_SCALE], numbers[mark + K_CHARGED] = lane[at + D_SCALE], amount
        numbers[mark + K_WHERE], numbers[mark + K_REFUNDED] = where, refunded
        numbers[head + 2] = numbers[head + 2] + 1
      end
    end
    lane[L_IN_FLIGHT] = lane[L_IN_FLIGHT] + 1
    lanes_dirty[id] = lane
  end
  for i = 1, #candidate.scopes do
    local id = candidate.scopes[i]
    local scope = scopes[id]
    ids[#ids + 1] = id
    local at = #numbers
    numbers[at + P_AMOUNT], numbers[at + P_START], numbers[at + P_MODE] = holds[i], scope[S_START], modes[i]
    numbers[at + P_DUE], numbers[at + P_CHARGED] = 0, 0
    scope[S_HELD] = scope[S_HELD] + holds[i]
    scopes_dirty[id] = scope
  end
  reservations_set[#reservations_set + 1] = rid
  reservations_set[#reservations_set + 1] = reservation_write(numbers, ids)
  leases_set[#leases_set + 1] = deadline
  leases_set[#leases_set + 1] = rid
  return deadline, probing
end
