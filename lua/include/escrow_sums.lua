-- What was moved between a scope's home and the other cells in one period: its start, then sums that only grow. At home two for
-- each other cell, granted and returned; there the two of its own, funded and returned. In the field `e:` and the scope's id.
-- @include layout_scope
-- @include numbers
-- @include working

local function escrow_field(field)
  return 'e' .. string.sub(field, 2)
end

-- Of the scope's current period, and at least so many.
local function escrow_read(packed, scope, count)
  local sums = packed and numbers_unpack(packed) or {}
  if sums[1] ~= scope[S_START] then
    sums = { scope[S_START] }
  end
  for i = #sums + 1, count do
    sums[i] = 0
  end
  return sums
end

local function escrow_write(field, scope, sums)
  scope[S_SEQ] = cell.seq + 1
  reservation_put(escrow_field(field), numbers_pack(sums))
end
