-- A scope record: what every request needs, and as its rest what periods and other settlements need (include/record.lua).
local S_CONFIG, S_SEQ, S_LIMIT, S_HARD, S_UNPRICED_RULE, S_FLAT = 2, 3, 4, 5, 6, 7
local S_START, S_END, S_SETTLED, S_HELD, S_SUSPENSE = 8, 9, 10, 11, 12
local SCOPE_SIZE = 11

local P_CALENDAR, P_SUSPENSE_RULE, P_SUSPENSE_AFTER, P_UNPRICED, P_UNPRICED_COUNT = 1, 2, 3, 4, 5
local P_PREV_START, P_PREV_SETTLED, P_PREV_HELD, P_PREV_SUSPENSE, P_PREV_UNPRICED = 6, 7, 8, 9, 10
local P_LATE = 11
local PERIODS_SIZE = 11

-- A calendar of so much or more is that of a scope which another cell funds: its number less this, and each period begins
-- with a limit of nothing.
local FUNDED = 281474976710656

local RULE_DENY, RULE_FLAT, RULE_METER = 1, 2, 3
local SUSPENSE_CHARGE, SUSPENSE_REFUND, SUSPENSE_HOLD = 1, 2, 3
