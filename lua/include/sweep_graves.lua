-- Takes out tombstones whose time is over, at most `most`, in the working set.
local function sweep_graves(most)
  graves_gone = redis.call('ZRANGEBYSCORE', G, '-inf', cell.now, 'LIMIT', 0, most)
  return #graves_gone
end
