-- Reads the cell's own state, one packed field, and with it what else is named: begins every call. Returns what was found
-- (those fields stand after the first), or nil and a code when the cell is absent or foreign. `now` never runs backwards.
-- No lease ends before `due`. Until `cautious` it is not known what the store forgot.
-- @include clock_now
-- @include codes
-- @include numbers
-- @include working

local function cell_begin(...)
  local found = redis.call('HMGET', L, '', ...)
  if not found[1] then
    return nil, NO_CELL
  end
  local text = found[1]
  local schema, epoch, seq, last_now, config, slot, suspect, due = struct.unpack('<dddddddd', text)
  if schema ~= SCHEMA then
    return nil, BAD_SCHEMA
  end
  local now = clock_now()
  writer = writer or now
  cell = {
    text = text, epoch = epoch, seq = seq, now = now < last_now and last_now or now, config = config, slot = slot,
    suspect = suspect, due = due, cautious = #text > 72 and struct.unpack('<d', text, 73) or 0,
  }
  return found
end
