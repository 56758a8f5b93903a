-- Takes reservations that were read, open or buried, `found` from `at` on, and brings all their lanes and scopes: one read.
-- Returns, in that order, the numbers of each (false: unknown rid) and its fields. A tombstone without its numbers has none.
-- @include records_load
-- @include reservation_record

local function reservations_load(found, at)
  local numbers_of, fields_of, all, count = {}, {}, {}, 0
  for i = 1, #found - at + 1 do
    local packed = found[at + i - 1]
    numbers_of[i] = false
    if packed then
      local numbers, fields = reservation_read(packed)
      numbers_of[i], fields_of[i] = numbers, fields
      for j = 1, #fields do
        count = count + 1
        all[count] = fields[j]
      end
    end
  end
  records_load(all)
  return numbers_of, fields_of
end
