"""Until when what was charged to limits and budgets at a time is counted in the same window, slot or period. Pure."""

from collections.abc import Iterable
from math import ceil

from apikeyrouter.domain.models.accounting import AMOUNT_MAX, Limit, LimitKind, Period, ScopeConfig
from apikeyrouter.infrastructure.ledger.calendars import boundaries, calendar_number
from apikeyrouter.infrastructure.ledger.encoding import SLIDING_SLOTS

__all__ = ["window_ends_us"]


def window_ends_us(limits: Iterable[Limit], scopes: Iterable[ScopeConfig], now_us: int) -> int:
    """The first end of a window, slot or budget period that contains `now_us`; AMOUNT_MAX: none ends."""
    ends = [AMOUNT_MAX]
    for limit in limits:
        if limit.kind is LimitKind.FIXED:
            ends.append(_end(limit.period_us, now_us))
        elif limit.kind is LimitKind.SLIDING:
            ends.append(_end(ceil(limit.period_us / SLIDING_SLOTS), now_us))
        elif limit.kind is LimitKind.CALENDAR:
            ends.append(_period_end(limit.calendar, limit.timezone, now_us))
    ends.extend(_period_end(scope.period, scope.timezone, now_us) for scope in scopes)
    return min(ends)


def _end(length_us: int, now_us: int) -> int:
    return now_us - now_us % length_us + length_us


def _period_end(period: Period, timezone: str, now_us: int) -> int:
    return AMOUNT_MAX if period is Period.TOTAL else boundaries(calendar_number(period, timezone), now_us)[1]
