-- Reads a reservation, open or buried, and loads its lanes and scopes. Returns numbers and ids (nil: unknown rid).
-- A tombstone without its numbers has no ids.
local function reservation_load(rid)
  local packed = redis.call('HGET', R, rid)
  if not packed then
    return nil
  end
  local numbers, ids = reservation_read(packed)
  if #numbers >= R_HEAD then
    local lane_ids, scope_ids = {}, {}
    for i = 1, numbers[R_LANES] do
      lane_ids[i] = ids[i]
    end
    for i = 1, numbers[R_SCOPES] do
      scope_ids[i] = ids[numbers[R_LANES] + i]
    end
    lanes_load(lane_ids)
    scopes_load(scope_ids)
  end
  return numbers, ids
end
