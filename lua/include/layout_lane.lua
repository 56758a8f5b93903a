-- A lane record: head, one block per limit, and as its rest its health (include/record.lua).
local L_CONFIG, L_SEQ, L_IN_FLIGHT, L_BLOCKED, L_FAIR, L_BREAK_STATE, L_BREAK_UNTIL, L_PROBE = 2, 3, 4, 5, 6, 7, 8, 9
local LANE_SIZE = 9

-- Health: the breaker's rules, its evidence, and what was seen of the lane.
local H_BREAK_AFTER, H_BREAK_WINDOW, H_BREAK_OPEN, H_BREAK_OPEN_MAX = 1, 2, 3, 4
local H_FAILURES, H_SINCE, H_LEVEL, H_OK, H_FAILED, H_DECAYED, H_LATENCY = 5, 6, 7, 8, 9, 10, 11
local H_TOTAL, H_TOTAL_FAILED, H_LAST_USED = 12, 13, 14
local HEALTH_SIZE = 14

-- Offsets inside a limit's block. Bucket: scale per unit of amount, drain per tick, tick in us; S1 level (scaled),
-- S2 time of that level, S3 what was refunded (modulo 2^52). Window: scale is the period or the calendar's number; S1 used,
-- S2 start, S3 end. Of all: S4 the seq at which it began to count.
-- Sliding: scale is a slot's length; S1 start of the current slot. Its counters are a block of their own behind it, of
-- kind SLOTS, that limits nothing: from N on they count the current slot and those before it.
local D_NAME, D_METRIC, D_KIND, D_CAPACITY, D_SCALE, D_DRAIN, D_TICK, D_REFUND, D_LEARNED = 1, 2, 3, 4, 5, 6, 7, 8, 9
local D_S1, D_S2, D_S3, D_S4 = 10, 11, 12, 13
local LIMIT_SIZE = 13
local D_N = 17
local SLIDING_SLOTS = 6
local LIMIT_CONFIG_SIZE = 8
local LIMITS_MAX = 8

local BUCKET, FIXED, CALENDAR, SLIDING, CONCURRENCY, SLOTS = 1, 2, 3, 4, 5, 6
local REFUND_MODULUS = 4503599627370496
