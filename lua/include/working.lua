-- The working set of one call. Everything is read into it, decided in it and changed in it; `commit` writes it at the end.
-- So nothing can fail after the first write: there is only one place that writes, and it decides nothing.
-- `records` has lanes (`l:` and id) and scopes (`s:` and id) by the field that keeps them.
-- `ends` is what reservations that end write; nil until one does.
-- `writer` is the time at which this copy of the library was called first.
local cell, missing_calendar, writer
local records, reservations_set, lease_set, ends

-- What the record of a reservation becomes.
local function reservation_put(rid, record)
  local at = #reservations_set
  reservations_set[at + 1], reservations_set[at + 2] = rid, record
end

local function ends_begin()
  if not ends then
    ends = { leases_gone = {}, suspense_set = {}, suspense_gone = {}, graves_set = {}, graves_gone = {} }
  end
  return ends
end

local function lease_end(rid)
  local gone = ends_begin().leases_gone
  gone[#gone + 1] = rid
end

-- Who is opened keeps its lease, also if one of that name was over: of a call that failed halfway.
local function lease_begin(deadline, rid)
  lease_set = { deadline, rid }
  for i = ends and #ends.leases_gone or 0, 1, -1 do
    if ends.leases_gone[i] == rid then
      table.remove(ends.leases_gone, i)
    end
  end
end

local function suspense_end(rid)
  local gone = ends_begin().suspense_gone
  gone[#gone + 1] = rid
end

-- Nothing of the call before is left, however it ended.
local function working_begin()
  cell, missing_calendar, lease_set, ends = nil, nil, nil, nil
  records, reservations_set = {}, {}
end
