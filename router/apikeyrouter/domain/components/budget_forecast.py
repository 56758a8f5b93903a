"""How fast a budget is spent, and when it will be used up: the burn of what was seen of it. Pure."""

from datetime import datetime, timedelta

from apikeyrouter.domain.components.forecast import Burn, crossing
from apikeyrouter.domain.models.accounting import Period
from apikeyrouter.domain.models.budget import BudgetForecast
from apikeyrouter.domain.models.cost_estimate import dollars

__all__ = ["SpendHistory"]

HORIZON_SECONDS = 10 * 366 * 86_400.0
"""What is not used up by then is not used up."""
CONFIDENCE = 0.8
"""The probability that `earliest` … `latest` holds the truth."""
PERIOD_SECONDS = {
    Period.HOURLY: 3600.0, Period.DAILY: 86_400.0, Period.WEEKLY: 7 * 86_400.0, Period.MONTHLY: 30 * 86_400.0,
    Period.TOTAL: 86_400.0,
}  # fmt: skip
"""What a burn is learned for; of a budget that never resets, a day."""
HOUR = 3600.0


class SpendHistory:
    """What one budget had spent at some moments. What it learned of the rate outlives the period."""

    def __init__(self, period: Period, *, unspent_us: int = 0) -> None:
        self._burn = Burn.of_window(PERIOD_SECONDS[period])
        self._young = Burn.of_window(HOUR)
        """What the first hour says, in slots that are short enough for it."""
        self._start_us = -1
        self._spent = 0
        self._unspent_us = unspent_us
        """When it was last known to be unspent, or not to be there. 0: never, so that it began with its period."""
        self._first_us = self._last_us = 0

    def see(self, at_us: int, spent_nanousd: int, *, start_us: int) -> None:
        """Note a sample, in the period that began at `start_us` (0: there is none) with nothing spent."""
        if self._first_us == 0:
            self._begin(at_us, spent_nanousd, start_us=start_us)
        elif at_us > self._last_us:
            before = self._spent if start_us == self._start_us else 0
            for burn in (self._burn, self._young):
                burn.add(max(0, spent_nanousd - before), at_us / 1e6)
        self._start_us, self._spent = start_us, spent_nanousd
        self._last_us = max(self._last_us, at_us)

    def _begin(self, at_us: int, spent_nanousd: int, *, start_us: int) -> None:
        """The first sample, or the first with something spent."""
        if not spent_nanousd:
            self._unspent_us = at_us
            return
        self._first_us = self._unspent_us or start_us or at_us
        for burn in (self._burn, self._young):
            burn.add(0, at_us / 1e6)
        elapsed = (at_us - self._first_us) / 1e6
        if self._unspent_us:
            self._young.prime(spent_nanousd / max(elapsed, self._young.slot_seconds), at_us / 1e6)
        elif elapsed > 0:
            self._burn.prime(spent_nanousd / elapsed, at_us / 1e6)

    def _best(self) -> Burn:
        """The burn of the period once it has seen a slot of it, before that the one of the first hour."""
        return self._burn if self._burn.slots else self._young

    def forecast(self, now: datetime, free_nanousd: int, resets_at: datetime | None) -> BudgetForecast | None:
        """When `free_nanousd` will be spent; None while nothing is known of the rate."""
        burn = self._best()
        if not burn.slots:
            return None
        left = HORIZON_SECONDS if resets_at is None else max(1.0, (resets_at - now).total_seconds())
        end = crossing(burn, free_nanousd, reset_seconds=left, confidence=CONFIDENCE)
        hour = burn.demand(HOUR)
        lasts = end.chance < 0.5
        return BudgetForecast(
            burn_per_hour=dollars(round(hour.expected)), burn_error=dollars(round(hour.error)),
            observed_seconds=(self._last_us - self._first_us) / 1e6, lasts=lasts,
            confidence=1 - end.chance if lasts else end.chance, used_up_at=_after(now, end.expected),
            earliest=_after(now, end.earliest), latest=_after(now, end.latest),
        )  # fmt: skip


def _after(now: datetime, seconds: float | None) -> datetime | None:
    return None if seconds is None else now + timedelta(seconds=seconds)
