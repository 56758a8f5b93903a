-- Leaves a tombstone in a reservation's place, so that a repeat gets the same answer and a contradiction a clear one. It
-- goes when its caller has acknowledged it, else after a day. An expired one keeps all its numbers: a late settlement
-- still needs them.
-- @include working

local TOMBSTONE_KEEP = 86400000000

local function reservation_bury(rid, record)
  local at = #reservations_set
  reservations_set[at + 1], reservations_set[at + 2] = rid, record
  local graves = ends_begin().graves_set
  at = #graves
  graves[at + 1], graves[at + 2] = cell.now + TOMBSTONE_KEEP, rid
end

local function tombstone_write(state)
  return struct.pack('<dd', 2, state)
end
