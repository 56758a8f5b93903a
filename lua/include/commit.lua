-- Writes the working set: what comes into an index, then all fields with one command, the new seq among them, then what goes
-- out of an index. So whichever command a server refuses, nothing that counts is in no index, and what is in one too many is
-- dropped when it is due. A key of another type must fail before the first write: what may not have been read yet is looked
-- at first. Records are packed before that, so that one that cannot be packed leaves nothing behind.
-- @include cell_write
-- @include kept
-- @include layout_lane
-- @include record
-- @include working

-- Puts what changed behind the reservations that did. Lanes and scopes have their seq in the same place.
local function fields_changed()
  local fields, count, seq = reservations_set, #reservations_set, cell.seq + 1
  for field, record in pairs(records) do
    if record[L_SEQ] == seq then
      fields[count + 1], fields[count + 2] = field, record_write(record)
      count = count + 2
    end
  end
  fields[count + 1], fields[count + 2] = '', cell_pack()
  return fields
end

local function commit()
  local fields = fields_changed()
  if ends then
    if #ends.leases_gone > 0 then
      redis.call('ZCARD', D)
    end
    if #ends.graves_set > 0 and not ends.graves_read then
      redis.call('ZCARD', G)
    end
    if #ends.suspense_set + #ends.suspense_gone > 0 then
      redis.call('ZCARD', S)
    end
  end
  if lease_set then
    redis.call('ZADD', D, unpack(lease_set))
  end
  if ends then
    if #ends.graves_set > 0 then
      redis.call('ZADD', G, unpack(ends.graves_set))
    end
    if #ends.suspense_set > 0 then
      redis.call('ZADD', S, unpack(ends.suspense_set))
    end
  end
  redis.call('HSET', L, unpack(fields))
  kept_close(fields[#fields])
  if ends then
    if #ends.leases_gone > 0 then
      redis.call('ZREM', D, unpack(ends.leases_gone))
    end
    if #ends.suspense_gone > 0 then
      redis.call('ZREM', S, unpack(ends.suspense_gone))
    end
    if #ends.graves_gone > 0 then
      redis.call('HDEL', L, unpack(ends.graves_gone))
      redis.call('ZREM', G, unpack(ends.graves_gone))
    end
  end
end
