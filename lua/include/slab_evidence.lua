-- What the calls of a slab told beyond the one outcome that every reservation tells: how many ended well and badly, and how
-- many badly in a row at its end, which is what a breaker counts.
-- @include breaker_evidence
-- @include layout_lane
-- @include record
-- @include states

local SLAB_CALLS, SLAB_TOKENS, SLAB_WELL, SLAB_BADLY, SLAB_ROW = 1, 6, 7, 8, 9
local SLAB_SIZE, SLAB_ROW_MAX = 9, 16

local function slab_evidence(lane, slab, speaks)
  local health = record_rest(lane)
  health[H_TOTAL] = health[H_TOTAL] + slab[SLAB_CALLS] - 1
  health[H_OK] = health[H_OK] + math.max(0, slab[SLAB_WELL] - 1)
  if speaks then
    local before = slab[SLAB_BADLY] - slab[SLAB_ROW]
    health[H_FAILED], health[H_TOTAL_FAILED] = health[H_FAILED] + before, health[H_TOTAL_FAILED] + before
    for _ = 1, slab[SLAB_ROW] do
      breaker_evidence(lane, FAILURE, 0, false)
    end
  end
end
