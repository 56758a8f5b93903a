-- Resolves suspense that is due by each scope's own rule, at most `most` reservations.
-- @include layout_reservation
-- @include layout_scope
-- @include numbers
-- @include record
-- @include reservation_bury
-- @include reservation_record
-- @include reservation_suspend
-- @include reservations_load
-- @include scope_book
-- @include states
-- @include working

local function suspense_resolve(rid, numbers, ids)
  local at = R_HEAD
  for _ = 1, numbers[R_LANES] do
    at = at + 2 + numbers[at + 2] * MARK_SIZE
  end
  local due, waiting = AMOUNT_MAX, false
  for i = 1, numbers[R_SCOPES] do
    local id = ids[numbers[R_LANES] + i]
    local scope = records[id]
    local rule = record_rest(scope)[P_SUSPENSE_RULE]
    local is_due = numbers[at + A_DUE] > 0 and numbers[at + A_DUE] <= cell.now
    if is_due and rule == SUSPENSE_HOLD then
      numbers[at + A_DUE] = AMOUNT_MAX -- the rule has changed since the lease ended
    elseif is_due then
      local amount = numbers[at + A_AMOUNT]
      numbers[at + A_CHARGED] = rule == SUSPENSE_CHARGE and amount or 0
      numbers[at + A_DUE] = 0
      scope_book(scope, numbers[at + A_START], numbers[at + A_CHARGED], 0, -amount, 0)
      scope[S_SEQ] = cell.seq + 1
    end
    if numbers[at + A_DUE] > 0 then
      due, waiting = math.min(due, numbers[at + A_DUE]), true
    end
    at = at + SCOPE_PART
  end
  if waiting then
    reservation_suspend(rid, reservation_write(numbers, ids), due)
  else
    numbers[R_STATE] = EXPIRED
    suspense_end(rid)
    reservation_bury(rid, reservation_write(numbers, ids))
  end
end

local function sweep_suspense(most)
  local rids = redis.call('ZRANGEBYSCORE', S, '-inf', cell.now, 'LIMIT', 0, most)
  if #rids > 0 then
    local reservations, ids = reservations_load(redis.call('HMGET', L, unpack(rids)), 1)
    for i = 1, #rids do
      if reservations[i] and reservations[i][R_STATE] == SUSPENDED then
        suspense_resolve(rids[i], reservations[i], ids[i])
      else
        suspense_end(rids[i])
      end
    end
  end
  return #rids
end
