-- The soft scopes among these (charged already) that are over their limit now.
-- @include layout_scope
-- @include working

local function scopes_exceeded(ids)
  local exceeded = {}
  for i = 1, #ids do
    local scope = records[ids[i]]
    if scope[S_HARD] == 0 and scope[S_SETTLED] + scope[S_HELD] + scope[S_SUSPENSE] > scope[S_LIMIT] then
      exceeded[#exceeded + 1] = ids[i]
    end
  end
  return exceeded
end
