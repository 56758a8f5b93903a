-- Leaves a tombstone, so that a repeat gets the same answer and a contradiction a clear one. It goes when its caller has
-- acknowledged it, else after a day. An expired one keeps all its numbers: a late settlement still needs them.
local TOMBSTONE_KEEP = 86400000000

local function reservation_bury(rid, record, deadline)
  if not tombstones_set.ids then
    tombstones_set.ids, tombstones_set.times = {}, {}
  end
  tombstones_set.ids[#tombstones_set.ids + 1] = rid
  tombstones_set[#tombstones_set + 1] = rid
  tombstones_set[#tombstones_set + 1] = record
  tombstones_set.times[#tombstones_set.times + 1] = deadline or cell.now + TOMBSTONE_KEEP
  tombstones_set.times[#tombstones_set.times + 1] = rid
end

local function tombstone_write(state)
  return numbers_pack({ 2, state })
end
