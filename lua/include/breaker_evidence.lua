-- Takes one attempt's evidence into a lane: health counts that halve every minute, latency, and the circuit breaker.
-- Only the probe's own outcome moves a breaker that is open; stragglers of before say nothing new.
local function breaker_open(lane)
  local length = math.min(lane[L_BREAK_OPEN] * 2 ^ math.min(lane[L_BREAK_LEVEL], 20), lane[L_BREAK_OPEN_MAX])
  lane[L_BREAK_STATE], lane[L_BREAK_UNTIL] = 1, cell.now + length
  lane[L_BREAK_LEVEL], lane[L_BREAK_FAILURES] = lane[L_BREAK_LEVEL] + 1, 0
end

local function breaker_evidence(lane, outcome, latency, probe)
  local elapsed = cell.now - lane[L_DECAYED]
  local halvings = (elapsed - elapsed % 60000000) / 60000000
  if halvings > 0 then
    lane[L_OK] = math.floor(lane[L_OK] / 2 ^ math.min(halvings, 60))
    lane[L_FAILED] = math.floor(lane[L_FAILED] / 2 ^ math.min(halvings, 60))
    lane[L_DECAYED] = lane[L_DECAYED] + halvings * 60000000
  end
  if probe then
    lane[L_PROBE] = 0
  end
  if outcome == SUCCESS then
    lane[L_OK] = lane[L_OK] + 1
    if latency > 0 then
      lane[L_LATENCY] = lane[L_LATENCY] == 0 and latency
        or lane[L_LATENCY] + math.floor((latency - lane[L_LATENCY]) / 8)
    end
    if probe then
      lane[L_BREAK_STATE], lane[L_BREAK_LEVEL], lane[L_BREAK_UNTIL] = 0, 0, 0
    end
    lane[L_BREAK_FAILURES], lane[L_BREAK_SINCE] = 0, 0 -- the next failure begins a row of its own
  elseif outcome == FAILURE then
    lane[L_FAILED] = lane[L_FAILED] + 1
    lane[L_TOTAL_FAILED] = lane[L_TOTAL_FAILED] + 1
    if lane[L_BREAK_AFTER] == 0 then
      return
    end
    if probe then
      breaker_open(lane)
    elseif lane[L_BREAK_STATE] == 0 then
      if cell.now - lane[L_BREAK_SINCE] > lane[L_BREAK_WINDOW] then
        lane[L_BREAK_SINCE], lane[L_BREAK_FAILURES] = cell.now, 0
      end
      lane[L_BREAK_FAILURES] = lane[L_BREAK_FAILURES] + 1
      if lane[L_BREAK_FAILURES] >= lane[L_BREAK_AFTER] then
        breaker_open(lane)
      end
    end
  end
end
