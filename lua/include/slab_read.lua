-- Takes what a slab's settlement says beyond any other's out of its numbers; false when that is not what they are.
-- @include slab_evidence

local SETTLEMENT_SIZE = 6

local function slab_read(numbers)
  local slab = { unpack(numbers, SETTLEMENT_SIZE + 1) }
  numbers.slab = slab
  return #slab == SLAB_SIZE and math.min(unpack(slab)) >= 0
    and slab[SLAB_ROW] <= math.min(slab[SLAB_BADLY], SLAB_ROW_MAX)
end
