-- The ids that are not in the working set yet. A `first` list, of one candidate, is taken as it is: a table that grows is
-- made anew at each power of two.
local function ids_missing(ids, known, first)
  if first and next(known) == nil then
    return ids
  end
  local missing = {}
  for i = 1, #ids do
    if known[ids[i]] == nil then
      known[ids[i]] = false
      missing[#missing + 1] = ids[i]
    end
  end
  return missing
end
