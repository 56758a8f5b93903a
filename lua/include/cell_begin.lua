-- The cell's own state, one packed field, with a `now` that never runs backwards; nil and a code when the cell is absent
-- or foreign. No lease ends before `due`.
-- @include clock_now
-- @include codes
-- @include numbers

local function cell_begin()
  local packed = redis.call('HGET', L, '')
  if not packed then
    return nil, NO_CELL
  end
  local schema, epoch, seq, last_now, config, slot, suspect, due = struct.unpack('<dddddddd', packed)
  if schema ~= SCHEMA then
    return nil, BAD_SCHEMA
  end
  local now = clock_now()
  return {
    epoch = epoch, seq = seq, now = now < last_now and last_now or now, config = config, slot = slot, suspect = suspect,
    due = due,
  }
end
