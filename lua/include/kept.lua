-- Lanes and scopes stay in memory between calls, so that a call need not read and unpack what this library wrote last. They
-- are used only while the cell's own field in L is, byte for byte, what this very copy of the library wrote: every write of a
-- cell changes that field, and `writer` in it tells one copy from all others (another version's, another server's, the same
-- server's before it started anew). So whoever else wrote, or brought an older state back, is seen.
-- A call that fails leaves its cell without a text: nothing of what it had begun is used.
-- What is written thrice among some hundred others is kept (one request writes twice), so that ten thousand lanes that come
-- by now and then cost nothing: neither their place nor the collector's way through it.
-- @include layout_lane
-- @include working

local KEPT_MAX, LATELY_MAX = 1024, 512 -- records of all cells; then all are let go

local cells, kept_count = {}, 0
local lately, lately_count = {}, 0 -- how often

local function kept_worth(field)
  local times = lately[field] or 0
  if times == 0 then
    if lately_count == LATELY_MAX then
      lately, lately_count = {}, 0
    end
    lately_count = lately_count + 1
  end
  lately[field] = times + 1
  return times > 1
end

-- Those that will have to be read, as far as one can tell before the cell is.
local function kept_missing(fields)
  local kept, missing = cells[L], {}
  local known = kept and kept.text and kept.records or missing
  for i = 1, #fields do
    if not known[fields[i]] then
      missing[#missing + 1] = fields[i]
    end
  end
  return missing
end

local function kept_open()
  if kept_count > KEPT_MAX then
    cells, kept_count = {}, 0
  end
  local kept = cells[L]
  if not kept or kept.text ~= cell.text then
    kept, kept_count = { records = {} }, kept_count + 1
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
  local stay, seq = kept.records, cell.seq
  for field, record in pairs(records) do
    if not record or record[L_SEQ] ~= seq then
      stay[field] = nil
    elseif not stay[field] and kept_worth(field) then
      stay[field], kept_count = record, kept_count + 1
    end
  end
  kept.text = text
end

-- The call writes nothing.
local function kept_leave()
  local kept = cell.kept
  for field in pairs(records) do
    kept.records[field] = nil
  end
  kept.text = cell.text
end
