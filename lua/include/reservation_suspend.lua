-- Keeps a reservation whose lease ended, with what it holds of money, until that is due.
-- @include working

local function reservation_suspend(rid, record, due)
  local at = #reservations_set
  reservations_set[at + 1], reservations_set[at + 2] = rid, record
  local suspense = ends_begin().suspense_set
  at = #suspense
  suspense[at + 1], suspense[at + 2] = due, rid
end
