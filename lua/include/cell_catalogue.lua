-- The hash that holds the active configuration: one of two, the other is where a replacement is staged.
-- @include working

local function cell_catalogue()
  return cell.slot == 0 and C0 or C1
end
