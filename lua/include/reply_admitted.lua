-- Reply of a reserve: what is held and until when, the soft scopes it exceeds, and why others lost.
-- @include working

local function reply_losses(reply, losses)
  local at = #reply + 1
  reply[at] = #losses / 5
  for i = 1, #losses do
    reply[at + i] = losses[i]
  end
  return reply
end

local function reply_admitted(code, index, deadline, probe, exceeded, losses)
  local reply = {
    code, cell.epoch, cell.seq, cell.now, cell.config, index, deadline, probe and 1 or 0, #exceeded, nil,
  }
  for i = 1, #exceeded do
    reply[9 + i] = exceeded[i]
  end
  return reply_losses(reply, losses)
end
