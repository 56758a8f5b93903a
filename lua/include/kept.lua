-- Lanes and scopes stay in memory between calls, so that a call need not read and unpack again what this library wrote last.
-- They are used only while the cell's own field in L is, byte for byte, the one that this very copy of the library wrote:
-- every write of a cell changes that field, and `writer` in it tells one copy from all others (another version's, another
-- server's, the same server's before it was started anew). So whoever else wrote, or brought back an older state, is seen.
-- A call that fails leaves its cell without a text, so that nothing of what it had begun is used.
-- @include layout_lane
-- @include working

local KEPT_MAX, CELLS_MAX = 4096, 64 -- records of a cell, twice at most; what is not asked for goes

local cells, cell_count = {}, 0

local function kept_open()
  local kept = cells[L]
  if not kept and cell_count == CELLS_MAX then
    cells, cell_count = {}, 0
  end
  if not kept then
    cell_count = cell_count + 1
  end
  if not kept or kept.text ~= cell.text then
    kept = { now = {}, before = {}, count = 0 }
    cells[L] = kept
  end
  kept.text, cell.kept = nil, kept
  return kept
end

-- The cell was written as `text`. What the call has read and not written is read again: it may have been taken to another
-- period or configuration in memory only, from where the next step is another one than from what is stored.
local function kept_close(text)
  local kept = cell.kept
  if not kept then
    kept = cells[L]
    if kept and kept.text == cell.text then
      kept.text = text
    end
    return
  end
  local count, now, before, seq = kept.count, kept.now, kept.before, cell.seq
  for field, record in pairs(records) do
    if record and record[L_SEQ] == seq then
      if not now[field] then
        now[field], count = record, count + 1
      end
    else
      now[field], before[field] = nil, nil
    end
  end
  if count > KEPT_MAX then
    kept.before, kept.now, count = now, {}, 0
  end
  kept.count, kept.text = count, text
end

-- The call writes nothing.
local function kept_leave()
  local kept = cell.kept
  for field in pairs(records) do
    kept.now[field], kept.before[field] = nil, nil
  end
  kept.text = cell.text
end
