-- Which lanes of a reservation it probes, as bits: bit 0 is its first lane.
-- @include layout_reservation

local function probe_lanes(numbers)
  local mask, at = 0, R_HEAD
  for i = 1, numbers[R_LANES] do
    mask = mask + numbers[at + 1] % 2 * 2 ^ (i - 1)
    at = at + 2 + numbers[at + 2] * MARK_SIZE
  end
  return mask
end
