-- A reservation record: numbers, then the ids of its lanes and scopes, one a line.
-- Per lane: probe flag and, of a slab, twice its calls beyond the first; count of marks; marks. Per scope: a block of
-- SCOPE_PART numbers.
local R_COUNT, R_STATE, R_CREATED, R_DEADLINE, R_INDEX, R_SEQ, R_LANES, R_SCOPES, R_LEASE = 1, 2, 3, 4, 5, 6, 7, 8, 9
local R_HEAD = 9
local K_NAME, K_KIND, K_SCALE, K_CHARGED, K_WHERE, K_REFUNDED = 1, 2, 3, 4, 5, 6
local MARK_SIZE = 6
local A_AMOUNT, A_START, A_MODE, A_DUE, A_CHARGED = 1, 2, 3, 4, 5
local SCOPE_PART = 5
local PRICED, FLAT, METERED = 0, 1, 2
