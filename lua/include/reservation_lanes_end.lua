-- Takes a reservation out of its lanes. `actuals` says per metric what was really used (negative: keep what was
-- charged); `arrived` false means that the provider never saw it, so that everything comes back.
-- `slab`: of a slab, what a limit that refunds nothing keeps of its calls, per metric, and what they told (SLAB_…): what no
-- call took comes back, whatever the rule. Returns where the scopes' numbers begin.
-- @include breaker_evidence
-- @include layout_lane
-- @include layout_reservation
-- @include limit_correct
-- @include record
-- @include slab_evidence
-- @include states
-- @include working

local function reservation_lanes_end(numbers, ids, actuals, arrived, outcome, failed_lanes, latency, slab)
  local at = R_HEAD
  for i = 1, numbers[R_LANES] do
    local lane = records[ids[i]]
    local kept, marks = numbers[at + 1], numbers[at + 2]
    local probe = kept == 1 or kept > 1 and kept % 2 == 1
    at = at + 2
    for _ = 1, marks do
      for limit = LANE_SIZE, #lane - 1, LIMIT_SIZE do
        if lane[limit + D_NAME] == numbers[at + K_NAME] and lane[limit + D_KIND] == numbers[at + K_KIND]
          and lane[limit + D_SCALE] == numbers[at + K_SCALE] then
          local actual = actuals[lane[limit + D_METRIC]]
          if slab and (actual < 0 or lane[limit + D_REFUND] ~= 1) then
            actual = slab[lane[limit + D_METRIC]]
          end
          local change = actual - numbers[at + K_CHARGED]
          if actual >= 0 and (change > 0 or not arrived or slab or lane[limit + D_REFUND] == 1) then
            limit_correct(lane, limit, change, numbers[at + K_WHERE], numbers[at + K_REFUNDED], numbers)
          end
        end
      end
      at = at + MARK_SIZE
    end
    if numbers[R_STATE] == OPEN then
      lane[L_IN_FLIGHT] = lane[L_IN_FLIGHT] - 1
      if kept > 1 then
        lane[L_IN_FLIGHT] = lane[L_IN_FLIGHT] - math.floor(kept / 2)
      end
      if arrived then
        local health = record_rest(lane)
        health[H_TOTAL], health[H_LAST_USED] = health[H_TOTAL] + 1, cell.now
      end
      local own = outcome
      if outcome == FAILURE and math.floor(failed_lanes / 2 ^ (i - 1)) % 2 == 0 then
        own = NEUTRAL
      end
      breaker_evidence(lane, own, latency, probe and lane[L_PROBE] == numbers[R_SEQ])
      if slab then
        slab_evidence(lane, slab, math.floor(failed_lanes / 2 ^ (i - 1)) % 2 == 1)
      end
    end
    lane[L_SEQ] = cell.seq + 1
  end
  return at
end
