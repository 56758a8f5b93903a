"""Calendar periods as boundaries in microseconds, in any time zone.

The scripts know no time zones: they ask for the boundaries of a numbered calendar around *their own* now, and Redis
time alone chooses among them. A client whose clock is a day ahead opens nothing.
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import blake2b
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from apikeyrouter.domain.models.accounting import AMOUNT_MAX, Period
from apikeyrouter.domain.models.system_error import LedgerConfigError

BOUNDARIES_AHEAD = 32
FUNDED = 2**48
"""Added to the number of a calendar where another cell funds the scope (`lua/include/layout_scope.lua`)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def calendar_number(period: Period, timezone: str) -> int:
    """A stable number for (period, time zone), the same in every process; 0 never ends.

    Raises:
        LedgerConfigError: the time zone is unknown.
    """
    if period is Period.TOTAL:
        return 0
    _zone(timezone)
    number = int.from_bytes(blake2b(f"{period}@{timezone}".encode(), digest_size=6).digest(), "big") or 1
    _known[number] = (period, timezone)
    return number


_known: dict[int, tuple[Period, str]] = {}
"""Calendars by number. Those that only another process has named are found by trying all."""


def _calendar(number: int) -> tuple[Period, str]:
    if number not in _known:
        for name in available_timezones():
            for period in (Period.HOURLY, Period.DAILY, Period.WEEKLY, Period.MONTHLY):
                calendar_number(period, name)
    return _known[number]


def boundaries(number: int, now_us: int) -> list[int]:
    """Starts of the periods of calendar `number` around `now_us`, in microseconds since 1970, ascending.

    The first is the start of the period that contains `now_us`; the last ends the furthest known one.
    """
    number %= FUNDED
    if not number:
        return [0, AMOUNT_MAX]
    period, timezone = _calendar(number)
    start = _floor((_EPOCH + timedelta(microseconds=now_us)).astimezone(_zone(timezone)), period)
    found = [_to_us(start)]
    while len(found) < BOUNDARIES_AHEAD:
        start = _next(start, period)
        found.append(_to_us(start))
    return found


@cache
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise LedgerConfigError(f"unknown time zone {name!r}: use an IANA name such as Europe/Berlin") from exc


def _to_us(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // _MICROSECOND


def _floor(local: datetime, period: Period) -> datetime:
    if period is Period.HOURLY:
        # in absolute time: where clocks go back an hour happens twice, and is two periods
        past = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
        start = (local.astimezone(UTC) - past).astimezone(local.tzinfo)
        return start if start.utcoffset() == local.utcoffset() else _changed(start, local)
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if period is Period.WEEKLY:
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period is Period.MONTHLY else day


def _changed(before: datetime, after: datetime) -> datetime:
    """When the zone's offset changed between two moments: a boundary too, for some zones change by half an hour."""
    low, high = before.astimezone(UTC), after.astimezone(UTC)
    while high - low > _MICROSECOND:
        middle = low + (high - low) // 2
        if middle.astimezone(before.tzinfo).utcoffset() == before.utcoffset():
            low = middle
        else:
            high = middle
    return high.astimezone(before.tzinfo)


def _next(start: datetime, period: Period) -> datetime:
    if period is Period.HOURLY:
        later = (start.astimezone(UTC) + timedelta(hours=1)).astimezone(start.tzinfo)
        return _floor(later, period)
    if period is Period.MONTHLY:
        return (start.replace(day=28) + timedelta(days=4)).replace(day=1)
    return start + timedelta(days=7 if period is Period.WEEKLY else 1)
