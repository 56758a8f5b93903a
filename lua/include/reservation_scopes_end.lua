-- Books a cost in a reservation's scopes instead of what it held. From OPEN the hold goes, from SUSPENDED what is
-- still in suspense, from EXPIRED what the suspense rule had charged meanwhile. A cost that is not known
-- (negative) books what was held; `flat` books exactly that and shows the rest as unpriced; `meter` books nothing.
-- @include layout_reservation
-- @include layout_scope
-- @include record
-- @include scope_book
-- @include states
-- @include working

local function reservation_scopes_end(numbers, ids, at, cost, billed)
  for i = 1, numbers[R_SCOPES] do
    local id = ids[numbers[R_LANES] + i]
    local scope = scopes[id]
    local amount, mode = numbers[at + A_AMOUNT], numbers[at + A_MODE]
    local held, suspense, settled, unpriced = 0, 0, -numbers[at + A_CHARGED], 0
    if numbers[R_STATE] == OPEN then
      held = -amount
    elseif numbers[R_STATE] == SUSPENDED and numbers[at + A_DUE] > 0 then
      suspense = -amount
    end
    if mode == PRICED then
      settled = settled + (cost < 0 and amount or cost)
    elseif billed then
      settled = settled + amount
      unpriced = math.max(0, cost - amount)
      if numbers[at + A_START] == scope[S_START] then
        local rest = record_rest(scope)
        rest[P_UNPRICED_COUNT] = rest[P_UNPRICED_COUNT] + 1
      end
    end
    scope_book(scope, numbers[at + A_START], settled, held, suspense, unpriced)
    scope[S_SEQ] = cell.seq + 1
    at = at + SCOPE_PART
  end
end
