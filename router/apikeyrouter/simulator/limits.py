"""What a provider lets through: five limiter kinds in exact integer arithmetic, with the time passed in.

This is the simulator's own arithmetic, on purpose naive and independent of the router's: it exists to catch the
router's mistakes. Amounts are integers (requests, tokens, nano-dollars), times are integer nanoseconds since the
Unix epoch. Nothing here reads a clock, and nothing is ever rounded except where a method says so.

A limiter answers one question, :meth:`Limit.wait_ns`, and never takes anything while answering. The caller takes
only when every limiter that applies has said yes, so a refused arrival consumes nothing unless the provider's rule
says that refused arrivals count (:meth:`Limit.drain`).
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

__all__ = ["NEVER", "Bucket", "CalendarWindow", "FixedWindow", "InFlight", "Limit", "RollingWindow"]

NEVER = -1
"""The wait of an amount that no limiter of this size can ever admit."""

_NS_PER_SECOND = 1_000_000_000


class Limit(Protocol):
    """A limiter over time; see the module's text for units."""

    def wait_ns(self, amount: int, now_ns: int) -> int:
        """0 if ``amount`` fits now, else the exact ns until it would (with no other arrivals), or :data:`NEVER`."""

    def take(self, amount: int, now_ns: int) -> None:
        """Count ``amount`` unconditionally; what exceeds the limit becomes debt."""

    def drain(self, amount: int, now_ns: int) -> None:
        """Count up to ``amount``, at most what is left: how a refused arrival is counted."""

    def remaining(self, now_ns: int) -> int:
        """Whole units left now, never below 0 (fractions of a unit are rounded down)."""

    def replenished_in_ns(self, now_ns: int) -> int:
        """ns until the limiter would be as good as new with no other arrivals; 0 if it is."""

    def allowed(self, start_ns: int, now_ns: int) -> int:
        """The most units that the limiter could have admitted from ``start_ns`` to ``now_ns``, starting untouched."""


class Bucket:
    """Token bucket: ``limit`` units per ``period_ns``, refilled continuously, never holding more than ``burst``.

    The level is kept in units × ns (one unit is ``period_ns`` of it, one ns refills ``limit`` of it), so it is an
    exact integer at every instant.
    """

    __slots__ = ("_at_ns", "_full", "_level", "_limit", "_period_ns")

    def __init__(self, *, limit: int, period_ns: int, now_ns: int, burst: int | None = None) -> None:
        self._limit = limit
        self._period_ns = period_ns
        self._full = (limit if burst is None else burst) * period_ns
        self._level = self._full
        self._at_ns = now_ns

    def _refill(self, now_ns: int) -> None:
        if now_ns > self._at_ns:
            self._level = min(self._full, self._level + self._limit * (now_ns - self._at_ns))
            self._at_ns = now_ns

    def wait_ns(self, amount: int, now_ns: int) -> int:
        """See :meth:`Limit.wait_ns`; rounded up to the first whole ns at which the amount fits."""
        self._refill(now_ns)
        need = amount * self._period_ns
        if need <= self._level:
            return 0
        return NEVER if need > self._full else _ceil_div(need - self._level, self._limit)

    def take(self, amount: int, now_ns: int) -> None:
        """See :meth:`Limit.take`; a level below zero is debt and is refilled first."""
        self._refill(now_ns)
        self._level -= amount * self._period_ns

    def drain(self, amount: int, now_ns: int) -> None:
        """See :meth:`Limit.drain`; a fraction of a unit that was there is lost as well."""
        self._refill(now_ns)
        self._level = max(min(self._level, 0), self._level - amount * self._period_ns)

    def remaining(self, now_ns: int) -> int:
        """See :meth:`Limit.remaining`."""
        self._refill(now_ns)
        return max(0, self._level // self._period_ns)

    def replenished_in_ns(self, now_ns: int) -> int:
        """See :meth:`Limit.replenished_in_ns`."""
        self._refill(now_ns)
        return _ceil_div(self._full - self._level, self._limit)

    def allowed(self, start_ns: int, now_ns: int) -> int:
        """See :meth:`Limit.allowed`: the burst, and what was refilled since."""
        return (self._full + self._limit * (now_ns - start_ns)) // self._period_ns


class FixedWindow:
    """``limit`` units in each window ``[k × period, (k + 1) × period)`` of the Unix epoch (minutes begin at :00)."""

    __slots__ = ("_end_ns", "_limit", "_period_ns", "_used")

    def __init__(self, *, limit: int, period_ns: int) -> None:
        self._limit = limit
        self._period_ns = period_ns
        self._used = 0
        self._end_ns = 0

    def _end_of_window(self, now_ns: int) -> int:
        return now_ns - now_ns % self._period_ns + self._period_ns

    def _windows_touched(self, start_ns: int, now_ns: int) -> int:
        return now_ns // self._period_ns - start_ns // self._period_ns + 1

    def _roll(self, now_ns: int) -> None:
        if now_ns >= self._end_ns:
            self._used = 0
            self._end_ns = self._end_of_window(now_ns)

    def wait_ns(self, amount: int, now_ns: int) -> int:
        """See :meth:`Limit.wait_ns`."""
        self._roll(now_ns)
        if self._used + amount <= self._limit:
            return 0
        return NEVER if amount > self._limit else self._end_ns - now_ns

    def take(self, amount: int, now_ns: int) -> None:
        """See :meth:`Limit.take`; debt ends with the window."""
        self._roll(now_ns)
        self._used += amount

    def drain(self, amount: int, now_ns: int) -> None:
        """See :meth:`Limit.drain`."""
        self._roll(now_ns)
        self._used = max(self._used, min(self._limit, self._used + amount))

    def remaining(self, now_ns: int) -> int:
        """See :meth:`Limit.remaining`."""
        self._roll(now_ns)
        return max(0, self._limit - self._used)

    def replenished_in_ns(self, now_ns: int) -> int:
        """See :meth:`Limit.replenished_in_ns`."""
        self._roll(now_ns)
        return self._end_ns - now_ns if self._used else 0

    def allowed(self, start_ns: int, now_ns: int) -> int:
        """See :meth:`Limit.allowed`: each window that was touched counts whole."""
        return self._limit * self._windows_touched(start_ns, now_ns)


class CalendarWindow(FixedWindow):
    """``limit`` units in each calendar day (23 to 25 hours) or month of a time zone."""

    __slots__ = ("_unit", "_zone")

    def __init__(self, *, limit: int, zone: ZoneInfo, unit: Literal["day", "month"] = "day") -> None:
        super().__init__(limit=limit, period_ns=0)
        self._zone = zone
        self._unit = unit

    def _end_of_window(self, now_ns: int) -> int:
        local = datetime.fromtimestamp(now_ns // _NS_PER_SECOND, tz=self._zone)
        first = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        if self._unit == "month":
            first = first.replace(day=1) + timedelta(days=32)
            first = first.replace(day=1) - timedelta(days=1)
        return int((first + timedelta(days=1)).timestamp()) * _NS_PER_SECOND

    def _windows_touched(self, start_ns: int, now_ns: int) -> int:
        first, last = (datetime.fromtimestamp(t // _NS_PER_SECOND, tz=self._zone) for t in (start_ns, now_ns))
        if self._unit == "month":
            return (last.year - first.year) * 12 + last.month - first.month + 1
        return (last.date() - first.date()).days + 1


class RollingWindow:
    """At most ``limit`` units in any span of ``period_ns``: what was taken at t counts until just before t + period.

    An exact log: one entry per arrival that took something, so at most ``limit`` entries besides debt.
    """

    __slots__ = ("_limit", "_log", "_period_ns", "_used")

    def __init__(self, *, limit: int, period_ns: int) -> None:
        self._limit = limit
        self._period_ns = period_ns
        self._log: deque[tuple[int, int]] = deque()
        self._used = 0

    def _forget(self, now_ns: int) -> None:
        while self._log and self._log[0][0] + self._period_ns <= now_ns:
            self._used -= self._log.popleft()[1]

    def wait_ns(self, amount: int, now_ns: int) -> int:
        """See :meth:`Limit.wait_ns`."""
        self._forget(now_ns)
        if self._used + amount <= self._limit:
            return 0
        if amount > self._limit:
            return NEVER
        used = self._used
        for taken_ns, taken in self._log:
            used -= taken
            if used + amount <= self._limit:
                return taken_ns + self._period_ns - now_ns
        raise AssertionError("an empty window admits whatever is not above its limit")

    def take(self, amount: int, now_ns: int) -> None:
        """See :meth:`Limit.take`."""
        self._forget(now_ns)
        if amount > 0:
            self._log.append((now_ns, amount))
            self._used += amount

    def drain(self, amount: int, now_ns: int) -> None:
        """See :meth:`Limit.drain`."""
        self.take(min(amount, self.remaining(now_ns)), now_ns)

    def remaining(self, now_ns: int) -> int:
        """See :meth:`Limit.remaining`."""
        self._forget(now_ns)
        return max(0, self._limit - self._used)

    def replenished_in_ns(self, now_ns: int) -> int:
        """See :meth:`Limit.replenished_in_ns`."""
        self._forget(now_ns)
        return self._log[-1][0] + self._period_ns - now_ns if self._log else 0

    def allowed(self, start_ns: int, now_ns: int) -> int:
        """See :meth:`Limit.allowed`."""
        return self._limit * ((now_ns - start_ns) // self._period_ns + 1)


class InFlight:
    """At most ``limit`` requests at the same time; time plays no part."""

    __slots__ = ("_limit", "now", "peak")

    def __init__(self, *, limit: int | None = None) -> None:
        self._limit = limit
        self.now = 0
        self.peak = 0

    def has_room(self) -> bool:
        """Whether one more may begin."""
        return self._limit is None or self.now < self._limit

    def enter(self) -> None:
        """One begins; the caller has asked :meth:`has_room`."""
        self.now += 1
        self.peak = max(self.peak, self.now)

    def leave(self) -> None:
        """One ends."""
        self.now -= 1


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
