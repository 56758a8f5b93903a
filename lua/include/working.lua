-- The working set of one script. Everything is read into it, decided in it and changed in it; `commit` writes it at the
-- end. So nothing can fail after the first write: there is only one place that writes, and it decides nothing.
local cell, missing_calendar
local lanes, lanes_dirty, scopes, scopes_dirty = {}, {}, {}, {}
local reservations_set, reservations_gone, leases_set = {}, {}, {}
local suspense_set, suspense_gone, graves_set, graves_gone = {}, {}, {}, {}
