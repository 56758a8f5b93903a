-- Reply codes. The Python side names the same numbers once, in infrastructure/ledger/codes.py; a test compares them.
local ADMITTED, REPLAYED, DENIED, CONFLICT, UNMATCHED, OK = 1, 2, 3, 4, 5, 6
local STALE_CONFIG, NO_CELL, UNKNOWN_SCOPE, CALENDAR_NEEDED, BAD_ARGUMENT, BAD_SCHEMA = 7, 8, 9, 10, 11, 12
