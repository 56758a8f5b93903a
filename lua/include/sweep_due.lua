-- Expires leases that are due, at most `most`, in the working set, and learns when the next one is.
-- @include numbers
-- @include reservation_expire
-- @include reservations_load
-- @include working

local function sweep_due(most)
  local rids = redis.call('ZRANGEBYSCORE', D, '-inf', cell.now, 'LIMIT', 0, most)
  local following = #rids < most and redis.call('ZRANGE', D, #rids, #rids, 'WITHSCORES') or { '', cell.now }
  cell.due = tonumber(following[2] or AMOUNT_MAX)
  if #rids > 0 then
    local reservations, ids = reservations_load(redis.call('HMGET', L, unpack(rids)), 1)
    for i = 1, #rids do
      reservation_expire(rids[i], reservations[i], ids[i])
    end
  end
  return #rids
end
