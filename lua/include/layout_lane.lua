-- A lane record: header, then one block per limit. The first nine header fields come from configuration.
local L_CONFIG, L_SEQ, L_IN_FLIGHT, L_BLOCKED, L_FAIR = 1, 2, 3, 4, 5
local L_BREAK_AFTER, L_BREAK_WINDOW, L_BREAK_OPEN, L_BREAK_OPEN_MAX = 6, 7, 8, 9
local L_BREAK_STATE, L_BREAK_UNTIL, L_BREAK_FAILURES, L_BREAK_SINCE, L_BREAK_LEVEL, L_PROBE = 10, 11, 12, 13, 14, 15
local L_OK, L_FAILED, L_DECAYED, L_LATENCY, L_TOTAL, L_TOTAL_FAILED, L_LAST_USED = 16, 17, 18, 19, 20, 21, 22
local LANE_SIZE = 22

-- Offsets inside a limit's block. Bucket: scale per unit of amount, drain per tick, tick in us; S1 level (scaled),
-- S2 time of that level, S3 what was refunded (modulo 2^52). Window: scale is the period or the calendar's number; S1 used,
-- S2 start, S3 end. Of both: S4 the seq at which it began to count.
-- Sliding: scale is a slot's length; S1 start of the current slot, S2 … S8 its counter and those of the six before it.
local D_NAME, D_METRIC, D_KIND, D_CAPACITY, D_SCALE, D_DRAIN, D_TICK, D_REFUND, D_LEARNED = 1, 2, 3, 4, 5, 6, 7, 8, 9
local D_S1, D_S2, D_S3, D_S4, D_S8 = 10, 11, 12, 13, 17
local LIMIT_SIZE = 17
local LIMIT_CONFIG_SIZE = 8
local LIMITS_MAX = 8

local BUCKET, FIXED, CALENDAR, SLIDING, CONCURRENCY = 1, 2, 3, 4, 5
local REFUND_MODULUS = 4503599627370496
local SLIDING_SLOTS = 6
