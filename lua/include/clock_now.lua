-- Redis TIME in integer microseconds, read once per script.
local function clock_now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
