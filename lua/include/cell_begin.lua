-- The cell's meta state, with a `now` that never runs backwards; nil and a code when the cell is absent or foreign.
local function cell_begin()
  local meta = redis.call('HMGET', M, 'schema', 'epoch', 'seq', 'last_now', 'config', 'slot', 'suspect')
  if not meta[1] then
    return nil, NO_CELL
  end
  if tonumber(meta[1]) ~= SCHEMA then
    return nil, BAD_SCHEMA
  end
  local last_now = tonumber(meta[4])
  local now = clock_now()
  if now < last_now then
    now = last_now
  end
  return {
    epoch = tonumber(meta[2]), seq = tonumber(meta[3]), now = now, config = tonumber(meta[5]),
    slot = tonumber(meta[6]), suspect = meta[7] == '1',
  }
end
