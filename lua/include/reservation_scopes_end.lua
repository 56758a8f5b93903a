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
  local state, before, seq = numbers[R_STATE], numbers[R_LANES], cell.seq + 1
  for i = before + 1, before + numbers[R_SCOPES] do
    local scope, amount, start = records[ids[i]], numbers[at + A_AMOUNT], numbers[at + A_START]
    local settled, unpriced = cost < 0 and amount or cost, 0
    if numbers[at + A_MODE] ~= PRICED then
      settled = 0
      if billed then
        settled, unpriced = amount, math.max(0, cost - amount)
        if start == scope[S_START] then
          local rest = record_rest(scope)
          rest[P_UNPRICED_COUNT] = rest[P_UNPRICED_COUNT] + 1
        end
      end
    end
    if state == OPEN then
      scope_book(scope, start, settled, -amount, 0, unpriced)
    else
      local waits = state == SUSPENDED and numbers[at + A_DUE] > 0
      scope_book(scope, start, settled - numbers[at + A_CHARGED], 0, waits and -amount or 0, unpriced)
    end
    scope[S_SEQ], at = seq, at + SCOPE_PART
  end
end
