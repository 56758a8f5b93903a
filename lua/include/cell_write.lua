-- The cell's own state as the next seq has it, and the write of that alone.
-- @include numbers
-- @include working

local function cell_pack()
  cell.seq = cell.seq + 1
  return struct.pack('<dddddddd', SCHEMA, cell.epoch, cell.seq, cell.now, cell.config, cell.slot, cell.suspect, cell.due)
end

local function cell_write()
  redis.call('HSET', L, '', cell_pack())
end
