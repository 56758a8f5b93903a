-- Reply of a transition: the stamp, then the state the reservation is in now (0: unknown to the cell).
-- @include reply_stamp

local function reply_transition(code, state)
  local reply = reply_stamp(code)
  reply[6] = state
  return reply
end
