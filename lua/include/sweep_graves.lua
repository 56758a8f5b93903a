-- Removes tombstones whose time is over, at most `most`.
local function sweep_graves(most)
  local rids = redis.call('ZRANGEBYSCORE', G, '-inf', cell.now, 'LIMIT', 0, most)
  if #rids > 0 then
    redis.call('ZREM', G, unpack(rids))
    redis.call('HDEL', R, unpack(rids))
  end
  return #rids
end
