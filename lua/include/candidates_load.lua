-- Reads candidates number `from` to `to` and loads what they name: one read of lanes, one of scopes. Returns where the next
-- candidate begins (nil: they cannot be read) and a scope that is not configured, if there is one.
-- @include candidate_read
-- @include lanes_load
-- @include scopes_load

local function candidates_load(candidates, from, to, at, shared, charges)
  local candidate
  if from == to then
    candidate, at = candidate_read(at, shared, charges)
    if not candidate then
      return nil
    end
    candidates[from] = candidate
    lanes_load(candidate.lanes, true)
    return at, scopes_load(candidate.scopes, true)
  end
  local lane_ids, scope_ids = {}, {}
  for i = from, to do
    candidate, at = candidate_read(at, shared, charges)
    if not candidate then
      return nil
    end
    candidates[i] = candidate
    for j = 1, #candidate.lanes do
      lane_ids[#lane_ids + 1] = candidate.lanes[j]
    end
    for j = 1, #candidate.scopes do
      scope_ids[#scope_ids + 1] = candidate.scopes[j]
    end
  end
  lanes_load(lane_ids)
  return at, scopes_load(scope_ids)
end
