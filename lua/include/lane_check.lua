-- Whether a lane (loaded) admits these amounts now. Returns 0, or a reason, retry time, trust and limit name.
-- Of several full limits the one that ends last binds.
local function lane_check(lane, amounts)
  if cell.now < lane[L_BLOCKED] then
    return COOLDOWN, lane[L_BLOCKED], EXACT, 0
  end
  if lane[L_BREAK_STATE] == 1 then
    if cell.now < lane[L_BREAK_UNTIL] then
      return BREAKER_OPEN, lane[L_BREAK_UNTIL], EXACT, 0
    elseif lane[L_PROBE] ~= 0 then
      return PROBE_IN_FLIGHT, cell.now + math.max(10000, lane[L_LATENCY]), ESTIMATED, 0
    end
  end
  local reason, retry, trust, name = 0, 0, EXACT, 0
  for at = LANE_SIZE, #lane - 1, LIMIT_SIZE do
    local when, kind = limit_wait(lane, at, charge_amount(amounts, lane[at + D_METRIC]), cell.now)
    if when > retry then
      reason, retry, trust, name = kind == NEVER and NEVER_FITS or LIMIT, when, kind, lane[at + D_NAME]
    end
  end
  return reason, retry, trust, name
end
