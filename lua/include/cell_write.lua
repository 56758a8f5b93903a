-- Writes the cell's own state, as the next seq.
local function cell_write()
  cell.seq = cell.seq + 1
  redis.call('HSET', M, 'cell',
    struct.pack('<ddddddd', SCHEMA, cell.epoch, cell.seq, cell.now, cell.config, cell.slot, cell.suspect))
end
