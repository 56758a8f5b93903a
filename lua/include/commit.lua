-- Writes the working set: one command per structure. The last write is the new seq. A key of another type must fail
-- before the first write: what may not have been read yet is looked at first, but for D, which is written first. Records
-- are packed before that, so that one that cannot be packed leaves nothing behind.
-- @include cell_write
-- @include layout_lane
-- @include layout_scope
-- @include record
-- @include working

local function records_changed(records, seq)
  local changed, count = { nil, nil, nil, nil, nil, nil, nil, nil }, 0
  for id, record in pairs(records) do
    if record and record[seq] == cell.seq + 1 then
      changed[count + 1], changed[count + 2] = id, record_write(record)
      count = count + 2
    end
  end
  return changed
end

local function commit()
  if #graves_set > 0 and not graves_read then
    redis.call('ZCARD', G)
  end
  if #suspense_set + #suspense_gone > 0 then
    redis.call('ZCARD', S)
  end
  local lane_records, scope_records = records_changed(lanes, L_SEQ), records_changed(scopes, S_SEQ)
  if #leases_set > 0 then
    redis.call('ZADD', D, unpack(leases_set))
  end
  if #reservations_gone > 0 then
    redis.call('ZREM', D, unpack(reservations_gone))
  end
  if #scope_records > 0 then
    redis.call('HSET', B, unpack(scope_records))
  end
  if #graves_gone > 0 then -- first, for one that ended again just now has a new tombstone
    redis.call('ZREM', G, unpack(graves_gone))
    redis.call('HDEL', R, unpack(graves_gone))
  end
  if #reservations_set > 0 then
    redis.call('HSET', R, unpack(reservations_set))
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
  local at = #lane_records
  lane_records[at + 1], lane_records[at + 2] = '', cell_pack()
  redis.call('HSET', L, unpack(lane_records))
end
