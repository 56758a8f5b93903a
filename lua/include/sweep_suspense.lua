-- Resolves suspense that is due by each scope's own rule, at most `most` reservations.
local function suspense_resolve(rid, numbers, ids)
  local at = R_HEAD
  for _ = 1, numbers[R_LANES] do
    at = at + 2 + numbers[at + 2] * MARK_SIZE
  end
  local due, waiting = AMOUNT_MAX, false
  for i = 1, numbers[R_SCOPES] do
    local id = ids[numbers[R_LANES] + i]
    local scope = scopes[id]
    local is_due = numbers[at + P_DUE] > 0 and numbers[at + P_DUE] <= cell.now
    if is_due and scope[S_SUSPENSE_RULE] == SUSPENSE_HOLD then
      numbers[at + P_DUE] = AMOUNT_MAX -- the rule has changed since the lease ended
    elseif is_due then
      local amount = numbers[at + P_AMOUNT]
      numbers[at + P_CHARGED] = scope[S_SUSPENSE_RULE] == SUSPENSE_CHARGE and amount or 0
      numbers[at + P_DUE] = 0
      scope_book(scope, numbers[at + P_START], numbers[at + P_CHARGED], 0, -amount, 0)
      scopes_dirty[id] = scope
    end
    if numbers[at + P_DUE] > 0 then
      due, waiting = math.min(due, numbers[at + P_DUE]), true
    end
    at = at + SCOPE_PART
  end
  if waiting then
    reservations_set[#reservations_set + 1] = rid
    reservations_set[#reservations_set + 1] = reservation_write(numbers, ids)
    suspense_set[#suspense_set + 1] = due
    suspense_set[#suspense_set + 1] = rid
  else
    numbers[R_STATE] = EXPIRED
    suspense_gone[#suspense_gone + 1] = rid
    reservation_bury(rid, reservation_write(numbers, ids))
  end
end

local function sweep_suspense(most)
  local rids = redis.call('ZRANGEBYSCORE', S, '-inf', cell.now, 'LIMIT', 0, most)
  for i = 1, #rids do
    local numbers, ids = reservation_load(rids[i])
    suspense_resolve(rids[i], numbers, ids)
  end
  return #rids
end
