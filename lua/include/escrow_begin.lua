-- Begins one side of an exchange: the scope, rolled, and at least `count` of its sums; or nil and what to reply. A scope that is
-- at home here is no other cell's to fund, and the other way round.
-- @include cell_begin
-- @include codes
-- @include escrow_sums
-- @include kept
-- @include layout_scope
-- @include record
-- @include records_load
-- @include reply_stamp
-- @include reply_transition
-- @include working

local function escrow_begin(field, at_home, count)
  local found, code = cell_begin(escrow_field(field))
  if not found then
    return nil, reply_stamp(code)
  end
  local unknown = records_load({ field })
  if unknown then
    return nil, reply_transition(UNKNOWN_SCOPE, unknown)
  elseif missing_calendar then
    return nil, reply_transition(CALENDAR_NEEDED, missing_calendar)
  end
  local scope = records[field]
  if (record_rest(scope)[P_CALENDAR] < FUNDED) ~= at_home then
    kept_leave()
    return nil, reply_transition(CONFLICT, 0)
  end
  return scope, escrow_read(found[2], scope, count)
end
