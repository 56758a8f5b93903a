-- The working set of one call. Everything is read into it, decided in it and changed in it; `commit` writes it at the end.
-- So nothing can fail after the first write: there is only one place that writes, and it decides nothing.
local cell, missing_calendar, graves_read
local lanes, scopes, reservations_set, leases_set
local reservations_gone, suspense_set, suspense_gone, graves_set, graves_gone = {}, {}, {}, {}, {}

local function list_empty(list)
  return #list == 0 and list or {}
end

-- Nothing of the call before is left, however it ended.
local function working_begin()
  cell, missing_calendar, graves_read = nil, nil, false
  lanes, scopes, reservations_set, leases_set = {}, {}, { nil, nil }, {}
  reservations_gone, suspense_set = list_empty(reservations_gone), list_empty(suspense_set)
  suspense_gone, graves_set, graves_gone = list_empty(suspense_gone), list_empty(graves_set), list_empty(graves_gone)
end
