-- Reads reservations, open or buried, and loads all their lanes and scopes: one read each. Returns, in the order of the
-- rids, the numbers of each (false: unknown rid) and its ids. A tombstone without its numbers has no ids.
-- @include lanes_load
-- @include layout_reservation
-- @include reservation_record
-- @include scopes_load

local function reservations_load(rids)
  local packed, ids_of = redis.call('HMGET', R, unpack(rids)), {}
  local lane_ids, scope_ids = {}, {}
  for i = 1, #rids do
    if packed[i] then
      local numbers, ids = reservation_read(packed[i])
      packed[i], ids_of[i] = numbers, ids
      if #numbers >= R_HEAD then
        local count = numbers[R_LANES]
        for j = 1, count do
          lane_ids[#lane_ids + 1] = ids[j]
        end
        for j = count + 1, count + numbers[R_SCOPES] do
          scope_ids[#scope_ids + 1] = ids[j]
        end
      end
    end
  end
  lanes_load(lane_ids)
  scopes_load(scope_ids)
  return packed, ids_of
end
