-- Takes one attempt's evidence into a lane: health counts that halve every minute, latency, and the circuit breaker.
-- Only the probe's own outcome moves a breaker that is open; stragglers of before say nothing new.
-- @include layout_lane
-- @include record
-- @include states
-- @include working

local function breaker_open(lane, health)
  local length = math.min(health[H_BREAK_OPEN] * 2 ^ math.min(health[H_LEVEL], 20), health[H_BREAK_OPEN_MAX])
  lane[L_BREAK_STATE], lane[L_BREAK_UNTIL] = 1, cell.now + length
  health[H_LEVEL], health[H_FAILURES] = health[H_LEVEL] + 1, 0
end

local function breaker_evidence(lane, outcome, latency, probe)
  local health = record_rest(lane)
  local elapsed = cell.now - health[H_DECAYED]
  local halvings = (elapsed - elapsed % 60000000) / 60000000
  if halvings > 0 then
    health[H_OK] = math.floor(health[H_OK] / 2 ^ math.min(halvings, 60))
    health[H_FAILED] = math.floor(health[H_FAILED] / 2 ^ math.min(halvings, 60))
    health[H_DECAYED] = health[H_DECAYED] + halvings * 60000000
  end
  if probe then
    lane[L_PROBE] = 0
  end
  if outcome == SUCCESS then
    health[H_OK] = health[H_OK] + 1
    if latency > 0 then
      health[H_LATENCY] = health[H_LATENCY] == 0 and latency
        or health[H_LATENCY] + math.floor((latency - health[H_LATENCY]) / 8)
    end
    if probe then
      lane[L_BREAK_STATE], health[H_LEVEL], lane[L_BREAK_UNTIL] = 0, 0, 0
    end
    health[H_FAILURES], health[H_SINCE] = 0, 0 -- the next failure begins a row of its own
  elseif outcome == FAILURE then
    health[H_FAILED] = health[H_FAILED] + 1
    health[H_TOTAL_FAILED] = health[H_TOTAL_FAILED] + 1
    if health[H_BREAK_AFTER] == 0 then
      return
    end
    if probe then
      breaker_open(lane, health)
    elseif lane[L_BREAK_STATE] == 0 then
      if cell.now - health[H_SINCE] > health[H_BREAK_WINDOW] then
        health[H_SINCE], health[H_FAILURES] = cell.now, 0
      end
      health[H_FAILURES] = health[H_FAILURES] + 1
      if health[H_FAILURES] >= health[H_BREAK_AFTER] then
        breaker_open(lane, health)
      end
    end
  end
end
