-- Of all that stands against a candidate, what ends last binds: reason (0: nothing), id, limit, retry time, trust. Then
-- what each scope would hold, how it is booked, and whether one of them is soft.
-- @include lane_check
-- @include layout_scope
-- @include reasons
-- @include scope_check
-- @include working

local function candidate_check(candidate)
  local reason, where, limit, retry, trust = 0, '', 0, 0, EXACT
  local amounts, named = candidate.amounts, candidate.lanes
  for i = 1, #named do
    local why, when, kind, name = lane_check(lanes[named[i]], amounts)
    if why ~= 0 and when > retry then
      reason, where, limit, retry, trust = why, named[i], name, when, kind
    end
  end
  named = candidate.scopes
  local holds, modes, soft = { nil, nil, nil, nil }, { nil, nil, nil, nil }, false
  for i = 1, #named do
    local scope = scopes[named[i]]
    local amount, why, when, kind = scope_check(scope, amounts)
    soft = soft or scope[S_HARD] == 0
    if amount then
      holds[i], modes[i] = amount, why
    elseif when > retry then
      reason, where, limit, retry, trust = why, named[i], 0, when, kind
    end
  end
  return reason, where, limit, retry, trust, holds, modes, soft
end
