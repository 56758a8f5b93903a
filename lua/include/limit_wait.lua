-- When `amount` fits this limit (already advanced): 0 for now, else a time in us and how far it can be trusted.
-- @include layout_lane
-- @include limit_used
-- @include numbers
-- @include reasons
-- @include record

local function limit_wait(lane, at, amount, now)
  local kind, capacity = lane[at + D_KIND], lane[at + D_CAPACITY]
  if kind == SLOTS then
    return 0, EXACT
  elseif amount > capacity then
    return AMOUNT_MAX, NEVER
  end
  if kind == BUCKET then
    local over = lane[at + D_S1] + (amount - capacity) * lane[at + D_SCALE]
    if over <= 0 then
      return 0, EXACT
    end
    local drain = lane[at + D_DRAIN]
    if drain == 0 then
      return AMOUNT_MAX, NEVER
    end
    local ticks = (over + (drain - over % drain) % drain) / drain
    return lane[at + D_S2] + ticks * lane[at + D_TICK], EXACT
  end
  local over = limit_used(lane, at) + amount - capacity
  if over <= 0 then
    return 0, EXACT
  end
  if kind == CONCURRENCY then
    local turn = record_rest(lane)[H_LATENCY] / capacity
    return now + math.max(10000, turn - turn % 1), ESTIMATED
  elseif kind == SLIDING then
    local leaves = lane[at + D_S1]
    for slot = at + D_N + SLIDING_SLOTS, at + D_N, -1 do
      leaves = leaves + lane[at + D_SCALE]
      over = over - lane[slot]
      if over <= 0 then
        return leaves, EXACT
      end
    end
  end
  return lane[at + D_S3], EXACT
end
