"""How providers write durations and dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["ceil_ms", "ceil_seconds", "first_of_next_month", "go_duration", "next_day", "rfc3339"]

_NS_PER_MS = 1_000_000
_NS_PER_SECOND = 1_000_000_000


def ceil_seconds(duration_ns: int) -> int:
    """Whole seconds, rounded up."""
    return -(-duration_ns // _NS_PER_SECOND)


def ceil_ms(duration_ns: int) -> int:
    """Whole milliseconds, rounded up."""
    return -(-duration_ns // _NS_PER_MS)


def go_duration(duration_ns: int) -> str:
    """As Go prints a duration rounded up to the millisecond: ``0s``, ``12ms``, ``8.64s``, ``6m0s``, ``1h0m2.5s``."""
    total_ms = ceil_ms(duration_ns)
    if total_ms == 0:
        return "0s"
    if total_ms < 1_000:
        return f"{total_ms}ms"
    minutes, ms = divmod(total_ms, 60_000)
    seconds = f"{ms // 1_000}.{ms % 1_000:03d}".rstrip("0").rstrip(".") + "s"
    if minutes == 0:
        return seconds
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}" if hours else f"{minutes}m{seconds}"


def rfc3339(at_ns: int) -> str:
    """``2025-08-21T12:41:00Z``, rounded up to the second."""
    return datetime.fromtimestamp(ceil_seconds(at_ns), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def next_day(at_ns: int) -> str:
    """``YYYY-MM-DD`` of the first midnight UTC that is not before ``at_ns``."""
    at = datetime.fromtimestamp(ceil_seconds(at_ns), tz=UTC)
    midnight = at.replace(hour=0, minute=0, second=0)
    return (midnight if midnight == at else midnight + timedelta(days=1)).strftime("%Y-%m-%d")


def first_of_next_month(now_ns: int) -> str:
    """``YYYY-MM-01``: when monthly limits reset, UTC."""
    now = datetime.fromtimestamp(now_ns // _NS_PER_SECOND, tz=UTC)
    return (now.replace(day=1) + timedelta(days=32)).strftime("%Y-%m-01")
