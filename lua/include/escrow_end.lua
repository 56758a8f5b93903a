-- Ends one side of an exchange: writes its sums where one of them grew, and begins the reply with the scope's period.
-- @include codes
-- @include commit
-- @include escrow_sums
-- @include kept
-- @include layout_scope
-- @include reply_stamp

local function escrow_end(field, scope, sums, grew)
  if grew then
    escrow_write(field, scope, sums)
    commit()
  else
    kept_leave()
  end
  local reply = reply_stamp(OK)
  reply[6], reply[7] = scope[S_START], scope[S_END]
  return reply
end
