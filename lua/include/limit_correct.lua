-- Corrects one earlier charge by `change` (negative gives back), in the window that was charged.
-- A bucket is a queue that drains: of our charge only what has not drained yet can come back, else a late settlement would
-- mint capacity that others already used. Our place in that queue was `where`; it has moved by time and by refunds.
-- @include layout_lane
-- @include layout_reservation
-- @include numbers
-- @include working

local function limit_correct(lane, at, change, where, refunded, numbers)
  local kind = lane[at + D_KIND]
  if change < 0 and numbers[R_SEQ] < lane[at + D_S4] then
    return -- it was charged to a count that is no more
  end
  if kind == BUCKET then
    local scaled = change * lane[at + D_SCALE]
    if scaled < 0 then
      local tick = lane[at + D_TICK]
      local elapsed = cell.now - numbers[R_CREATED]
      local ticks = (elapsed - elapsed % tick) / tick + (tick > 1 and 1 or 0)
      local since = (lane[at + D_S3] - refunded) % REFUND_MODULUS
      local left = math.max(0, where - ticks * lane[at + D_DRAIN] - since)
      scaled = -math.min(-scaled, left, lane[at + D_S1])
      lane[at + D_S3] = (lane[at + D_S3] - scaled) % REFUND_MODULUS
    end
    lane[at + D_S1] = math.min(AMOUNT_MAX, lane[at + D_S1] + scaled)
  elseif kind == SLIDING then
    local back = (lane[at + D_S1] - where) / lane[at + D_SCALE]
    if back <= SLIDING_SLOTS then
      lane[at + D_N + back] = math.max(0, lane[at + D_N + back] + change)
    end
  elseif lane[at + D_S2] == where then
    lane[at + D_S1] = math.max(0, lane[at + D_S1] + change)
  end
end
