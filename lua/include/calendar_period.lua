-- Start and end of the calendar period that contains `now`. Boundaries come from Python, Redis time chooses among
-- them. Raises `missing_calendar` (before any write) when none of them reaches that far.
-- @include cell_catalogue
-- @include numbers
-- @include working

local function calendar_period(number, now)
  if number == 0 then
    return 0, AMOUNT_MAX
  end
  local packed = redis.call('HGET', cell_catalogue(), 'c:' .. string.format('%.0f', number))
  local bounds = packed and numbers_unpack(packed) or {}
  for i = #bounds - 1, 1, -1 do
    if bounds[i] <= now and now < bounds[i + 1] then
      return bounds[i], bounds[i + 1]
    end
  end
  missing_calendar = number
  return now, now
end
