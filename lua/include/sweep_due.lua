-- Expires leases that are due, at most `most`, in the working set.
local function sweep_due(most)
  local rids = redis.call('ZRANGEBYSCORE', D, '-inf', cell.now, 'LIMIT', 0, most)
  for i = 1, #rids do
    local numbers, ids = reservation_load(rids[i])
    reservation_expire(rids[i], numbers, ids)
  end
  return #rids
end
