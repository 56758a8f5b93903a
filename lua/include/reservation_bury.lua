-- Leaves a tombstone in a reservation's place, so that a repeat gets the same answer and a contradiction a clear one. It
-- goes a minute after its caller has acknowledged it, else after a day. An expired one keeps all its numbers: a late
-- settlement still needs them.
-- @include working

local TOMBSTONE_KEEP, TOMBSTONE_SEEN = 86400000000, 60000000

local function grave_keep(rid, keep)
  local graves = ends_begin().graves_set
  local at = #graves
  graves[at + 1], graves[at + 2] = cell.now + keep, rid
end

local function reservation_bury(rid, record)
  reservation_put(rid, record)
  grave_keep(rid, TOMBSTONE_KEEP)
end

local function tombstone_write(state)
  return struct.pack('<dd', 2, state)
end

-- An open one ends by one write: it is buried when that is acknowledged, else when its lease is over.
local function reservation_end(rid, state)
  reservation_put(rid, tombstone_write(state))
end
