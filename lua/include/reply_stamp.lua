-- Every reply begins alike: code, epoch, seq, now, configuration version.
-- @include working

local function reply_stamp(code)
  if not cell then
    return { code, 0, 0, 0, 0 }
  end
  return { code, cell.epoch, cell.seq, cell.now, cell.config }
end
