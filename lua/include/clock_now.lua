-- Redis TIME in integer microseconds, read once per script.
local function clock_now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end
