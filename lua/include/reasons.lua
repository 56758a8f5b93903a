-- Why a candidate was not admitted, and how far its retry time can be trusted.
local LIMIT, COOLDOWN, BREAKER_OPEN, PROBE_IN_FLIGHT, BUDGET = 1, 2, 3, 4, 5
local UNPRICED, FAIR_SHARE, NEVER_FITS, CLOCK_SUSPECT, STORE_FORGOT = 6, 7, 8, 9, 10
local EXACT, ESTIMATED, NEVER = 1, 2, 3
