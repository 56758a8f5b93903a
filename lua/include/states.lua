-- States of a reservation, and what an attempt says about the health of its lanes.
local OPEN, SUSPENDED, SETTLED, RELEASED, CANCELLED, EXPIRED = 1, 2, 3, 4, 5, 6
local NEUTRAL, SUCCESS, FAILURE = 0, 1, 2
