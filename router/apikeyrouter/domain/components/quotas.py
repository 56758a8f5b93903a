"""A key's own quotas as the ledger counts them, and when they begin anew. Pure.

A quota whose window begins where calendars have a boundary is a calendar window: Redis time rolls it. Any other (a
billing month from the 17th, a day from 13:37) is a window without end that is set back when its time has come: under
the other of its two names it is a new limit that has counted nothing, put into force in one write.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apikeyrouter.domain.models.accounting import Limit, LimitKind, LimitState, Metric, Period
from apikeyrouter.domain.models.quota_state import Quota, QuotaUnit, TimeWindow
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["COUNTED_ONLY", "due", "limit_of", "next_due", "quota_of", "told_name", "unit_of", "window_of"]

COUNTED_ONLY = 2**50
"""A capacity that nobody reaches: the quota is counted and refuses nothing."""
WINDOWS_CAUGHT_UP_MAX = 100_000
_OFFSETS = range(-12, 15)
_SPANS = {
    TimeWindow.Hourly: timedelta(hours=1), TimeWindow.Daily: timedelta(days=1), TimeWindow.Weekly: timedelta(weeks=1),
}  # fmt: skip
_BY_LETTER = {"h": TimeWindow.Hourly, "d": TimeWindow.Daily}


def quota_of(
    window: TimeWindow, unit: QuotaUnit, total_capacity: int | None, reset_at: datetime | None, now: datetime
) -> Quota:
    """The quota that somebody declares. `reset_at`: when the present window ends; None: at the calendar's end in UTC.

    Raises:
        InvalidRequestError: `reset_at` is without a time zone, is past, is further away than a window, or was given
            for a window that never ends.
    """
    if reset_at is None:
        return Quota(time_window=window, unit=unit, total_capacity=total_capacity)
    if not isinstance(reset_at, datetime) or reset_at.tzinfo is None:
        raise InvalidRequestError("must be a datetime with a time zone", field="reset_at")
    if window is TimeWindow.Total:
        raise InvalidRequestError("a total never begins anew; leave reset_at out", field="reset_at")
    if not now < reset_at <= _later(now, window) + timedelta(days=1):
        raise InvalidRequestError(f"must be ahead, and no further than one {window.value} window", field="reset_at")
    zone = _aligned(reset_at, window)
    if zone is not None:
        return Quota(time_window=window, unit=unit, total_capacity=total_capacity, timezone=zone)
    zone = getattr(reset_at.tzinfo, "key", None) or "UTC"
    at = reset_at.astimezone(UTC)
    return Quota(
        time_window=window, unit=unit, total_capacity=total_capacity, timezone=zone, anchor_at=at, resets_at=at
    )


def limit_of(quota: Quota) -> Limit:
    """The limit that counts it."""
    period = Period.TOTAL if quota.resets_at is not None else quota.time_window.period
    turn = "~" if quota.resets % 2 else ""
    return Limit(
        name=f"{quota.unit.value}_{quota.time_window.value}{turn}", metric=Metric(quota.unit.value),
        kind=LimitKind.CALENDAR, amount=COUNTED_ONLY if quota.total_capacity is None else quota.total_capacity,
        calendar=period, timezone=quota.timezone,
    )  # fmt: skip


def due(quotas: Iterable[Quota], now: datetime) -> tuple[Quota, ...] | None:
    """The quotas after those whose time has come were set back; None: none has."""
    found = [_advanced(quota, now) if _is_due(quota, now) else quota for quota in quotas]
    return tuple(found) if any(before is not after for before, after in zip(quotas, found, strict=True)) else None


def next_due(quotas: Iterable[Quota]) -> datetime | None:
    """When the first of them is to be set back; None: none ever is."""
    return min((quota.resets_at for quota in quotas if quota.resets_at is not None), default=None)


def window_of(limit: LimitState) -> TimeWindow | None:
    """The window that a limit is counted in; None: shorter than an hour, or no window."""
    _, _, period = told_name(limit.name).rpartition("_")
    window = TimeWindow.lookup(period)
    if window is not None:
        return window
    if limit.metric in (Metric.SPEND, Metric.CONCURRENCY):
        return None
    return _BY_LETTER.get(limit.name[-1])


def unit_of(limit: LimitState) -> str:
    """What a limit counts, in the documents' words."""
    return "nano-dollars" if limit.metric is Metric.SPEND else limit.metric.value


def told_name(name: str) -> str:
    """A limit's name as people know it, whichever turn it is."""
    return name.removesuffix("~")


def _is_due(quota: Quota, now: datetime) -> bool:
    return quota.resets_at is not None and quota.resets_at <= now


def _advanced(quota: Quota, now: datetime) -> Quota:
    assert quota.anchor_at is not None
    zone = ZoneInfo("UTC" if quota.time_window is TimeWindow.Hourly else quota.timezone)
    at = first = quota.anchor_at.astimezone(zone)
    count = 0
    while at <= now and count < WINDOWS_CAUGHT_UP_MAX:
        count += 1
        at = _later(first, quota.time_window, count)
    return quota.model_copy(update={"resets_at": at.astimezone(UTC), "resets": quota.resets + 1})


def _later(moment: datetime, window: TimeWindow, count: int = 1) -> datetime:
    """So many windows later by the clock on the wall; a month that is too short ends on its last day."""
    if window in _SPANS:
        return moment + count * _SPANS[window]
    months = moment.month - 1 + count
    first = moment.replace(year=moment.year + months // 12, month=months % 12 + 1, day=1)
    last = ((first + timedelta(days=32)).replace(day=1) - timedelta(days=1)).day
    return first.replace(day=min(moment.day, last))


def _aligned(reset_at: datetime, window: TimeWindow) -> str | None:
    """A time zone in which a window of the calendar begins then; its own first."""
    own: str | None = getattr(reset_at.tzinfo, "key", None)
    for zone in (*([own] if own else []), "UTC", *(f"Etc/GMT{-hours:+d}" for hours in _OFFSETS if hours)):
        if _is_boundary(reset_at.astimezone(ZoneInfo(zone)), window):
            return zone
    return None


def _is_boundary(local: datetime, window: TimeWindow) -> bool:
    if (local.minute, local.second, local.microsecond) != (0, 0, 0):
        return False
    if window is TimeWindow.Hourly:
        return True
    if local.hour:
        return False
    return not (window is TimeWindow.Weekly and local.weekday()) and not (
        window is TimeWindow.Monthly and local.day != 1
    )
