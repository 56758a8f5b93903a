-- Keeps a reservation whose lease ended, with what it holds of money, until that is due.
-- @include working

local function reservation_suspend(rid, record, due)
  reservation_put(rid, record)
  local suspense = ends_begin().suspense_set
  local at = #suspense
  suspense[at + 1], suspense[at + 2] = due, rid
end
