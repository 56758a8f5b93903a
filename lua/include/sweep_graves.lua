-- Takes out tombstones whose time is over, at most `most`, in the working set. Returns which.
-- @include working

local function sweep_graves(most)
  local gone = redis.call('ZRANGEBYSCORE', G, '-inf', cell.now, 'LIMIT', 0, most)
  ends_begin()
  ends.graves_gone, ends.graves_read = gone, true
  return gone
end
