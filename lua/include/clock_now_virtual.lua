-- Test builds only: the clock is a field of the cell that the test sets.
local function clock_now()
  return tonumber(redis.call('HGET', L, '\nvirtual_now') or 0)
end
