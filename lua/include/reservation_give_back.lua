-- Ends an open reservation without cost. What was sent may have been counted by the provider: requests and tokens stay.
-- @include reservation_bury
-- @include reservation_lanes_end
-- @include reservation_scopes_end
-- @include states

local NOTHING = { 0, 0, 0, 0, 0, 0 }
local NO_SPEND = { -1, -1, -1, -1, 0, -1 }

local function reservation_give_back(rid, numbers, ids, sent, failed_lanes, latency, state)
  local outcome = failed_lanes > 0 and FAILURE or NEUTRAL
  local at = reservation_lanes_end(numbers, ids, sent and NO_SPEND or NOTHING, sent, outcome, failed_lanes, latency)
  reservation_scopes_end(numbers, ids, at, 0, false)
  reservation_end(rid, state)
end
