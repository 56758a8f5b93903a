-- Looks after leases that are over, at most `most`, in the working set: expires who is open and buries who has ended.
-- Learns when the next one is.
-- @include layout_reservation
-- @include numbers
-- @include reservation_bury
-- @include reservation_expire
-- @include reservations_load
-- @include states
-- @include working

local function sweep_due(most)
  local rids = redis.call('ZRANGEBYSCORE', D, '-inf', cell.now, 'LIMIT', 0, most)
  local following = #rids < most and redis.call('ZRANGE', D, #rids, #rids, 'WITHSCORES') or { '', cell.now }
  cell.due = tonumber(following[2] or AMOUNT_MAX)
  if #rids > 0 then
    local reservations, ids = reservations_load(redis.call('HMGET', L, unpack(rids)), 1)
    for i = 1, #rids do
      local state = reservations[i] and reservations[i][R_STATE]
      if state == OPEN then
        reservation_expire(rids[i], reservations[i], ids[i])
      elseif state and state ~= SUSPENDED and state ~= EXPIRED then -- those are in another index already
        reservation_bury(rids[i], tombstone_write(state))
      end
      lease_end(rids[i])
    end
  end
  return #rids
end
