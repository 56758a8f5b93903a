-- Writes the working set: one command per structure. The last write is the new seq. A structure that may not have been
-- read yet is looked at first: a key of another type fails there, before the first write.
local function commit()
  if #leases_set + #reservations_gone > 0 then
    redis.call('ZCARD', D)
  end
  if #graves_set > 0 then
    redis.call('ZCARD', G)
  end
  if #suspense_set + #suspense_gone > 0 then
    redis.call('ZCARD', S)
  end
  local seq = cell.seq + 1
  local list = {}
  for id, lane in pairs(lanes_dirty) do
    lane[L_SEQ] = seq
    list[#list + 1] = id
    list[#list + 1] = numbers_pack(lane)
  end
  if #list > 0 then
    redis.call('HSET', L, unpack(list))
    list = {}
  end
  for id, scope in pairs(scopes_dirty) do
    scope[S_SEQ] = seq
    list[#list + 1] = id
    list[#list + 1] = numbers_pack(scope)
  end
  if #list > 0 then
    redis.call('HSET', B, unpack(list))
  end
  if #graves_gone > 0 then -- first, for one that ended again just now has a new tombstone
    redis.call('ZREM', G, unpack(graves_gone))
    redis.call('HDEL', R, unpack(graves_gone))
  end
  if #reservations_set > 0 then
    redis.call('HSET', R, unpack(reservations_set))
  end
  if #leases_set > 0 then
    redis.call('ZADD', D, unpack(leases_set))
  end
  if #reservations_gone > 0 then
    redis.call('ZREM', D, unpack(reservations_gone))
  end
  if #graves_set > 0 then
    redis.call('ZADD', G, unpack(graves_set))
  end
  if #suspense_set > 0 then
    redis.call('ZADD', S, unpack(suspense_set))
  end
  if #suspense_gone > 0 then
    redis.call('ZREM', S, unpack(suspense_gone))
  end
  cell_write()
end
