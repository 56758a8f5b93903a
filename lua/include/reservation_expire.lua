-- Ends a lease that ran out, in the working set. Concurrency comes back, request and token counts stay, a probe counts as
-- failed, money moves to suspense.
-- @include layout_reservation
-- @include layout_scope
-- @include numbers
-- @include probe_lanes
-- @include record
-- @include reservation_bury
-- @include reservation_lanes_end
-- @include reservation_record
-- @include reservation_suspend
-- @include scope_book
-- @include states
-- @include working

local KEEP = { -1, -1, -1, -1, -1, -1 }

local function reservation_expire(rid, numbers, ids)
  local probes = probe_lanes(numbers)
  local at = reservation_lanes_end(numbers, ids, KEEP, true, probes > 0 and FAILURE or NEUTRAL, probes, 0)
  local due = AMOUNT_MAX
  for i = 1, numbers[R_SCOPES] do
    local scope = records[ids[numbers[R_LANES] + i]]
    local rest = record_rest(scope)
    local amount = numbers[at + A_AMOUNT]
    scope_book(scope, numbers[at + A_START], 0, -amount, amount, 0)
    scope[S_SEQ] = cell.seq + 1
    numbers[at + A_DUE] = rest[P_SUSPENSE_RULE] == SUSPENSE_HOLD and AMOUNT_MAX
      or cell.now + rest[P_SUSPENSE_AFTER]
    due = math.min(due, numbers[at + A_DUE])
    at = at + SCOPE_PART
  end
  if numbers[R_SCOPES] == 0 then
    numbers[R_STATE] = EXPIRED
    reservation_bury(rid, reservation_write(numbers, ids))
    return
  end
  numbers[R_STATE] = SUSPENDED
  reservation_suspend(rid, reservation_write(numbers, ids), due)
end
