-- Whether a lane (loaded) admits these amounts now. Returns 0, or a reason, retry time, trust and limit name.
-- Of all that keeps them out, what ends last binds.
-- @include layout_lane
-- @include limit_wait
-- @include reasons
-- @include record
-- @include working

local function lane_check(lane, amounts)
  local reason, retry, trust, name = 0, 0, EXACT, 0
  if cell.now < lane[L_BLOCKED] then
    reason, retry = COOLDOWN, lane[L_BLOCKED]
  end
  if lane[L_BREAK_STATE] == 1 then
    local opened, waits = lane[L_BREAK_UNTIL], cell.now + math.max(10000, record_rest(lane)[H_LATENCY])
    if cell.now < opened and opened > retry then
      reason, retry = BREAKER_OPEN, opened
    elseif cell.now >= opened and lane[L_PROBE] ~= 0 and waits > retry then
      reason, retry, trust = PROBE_IN_FLIGHT, waits, ESTIMATED
    end
  end
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    local when, kind = limit_wait(lane, at, amounts[lane[at + D_METRIC]], cell.now)
    if when > retry then
      reason, retry, trust, name = kind == NEVER and NEVER_FITS or LIMIT, when, kind, lane[at + D_NAME]
    end
  end
  return reason, retry, trust, name
end
