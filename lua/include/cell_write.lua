-- The cell's own state as the next seq has it, and the write of that, with other fields beside it or alone.
-- @include kept
-- @include numbers
-- @include working

local function cell_pack()
  cell.seq = cell.seq + 1
  return struct.pack(
    '<dddddddddd', SCHEMA, cell.epoch, cell.seq, cell.now, cell.config, cell.slot, cell.suspect, cell.due, writer,
    cell.cautious
  )
end

local function cell_write(...)
  local text = cell_pack()
  redis.call('HSET', L, '', text, ...)
  kept_close(text)
end
