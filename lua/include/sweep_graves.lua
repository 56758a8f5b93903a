-- Takes out tombstones whose time is over, at most `most`, in the working set.
-- @include working

local function sweep_graves(most)
  graves_gone = redis.call('ZRANGEBYSCORE', G, '-inf', cell.now, 'LIMIT', 0, most)
  graves_read = true
  return #graves_gone
end
