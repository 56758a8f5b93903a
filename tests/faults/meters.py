"""What a limit has counted, from the definition of its kind: the auditor's own arithmetic.

A charge that was given back, in whole or in part, is taken to have been of that size from the beginning. What a ledger
admits must fit that as well: giving back may free what was not used, never more.
"""

from dataclasses import dataclass, field

from apikeyrouter.domain.models.accounting import Limit, LimitKind


@dataclass(slots=True)
class Meter:
    """Charges of one limit, the oldest first. What they come to is kept, and only what has changed is added up anew."""

    limit: Limit
    at_us: list[int] = field(default_factory=list)
    amounts: list[int] = field(default_factory=list)
    places: dict[bytes, tuple[int, ...]] = field(default_factory=dict)
    """Where the charges of a reservation are."""
    levels: list[int] = field(default_factory=list)
    """Of a bucket, how full it was after each charge, as far as that is known: amounts times microseconds of its
    period."""
    used: int = 0
    """Of a window, the sum of what counts: all from `counts_from` on."""
    counts_from: int = 0
    kept_us: int = 0
    """What was charged before cannot be corrected any more."""

    def fork(self) -> "Meter":
        """A copy that nothing changes."""
        return Meter(
            self.limit, self.at_us.copy(), self.amounts.copy(), self.places.copy(), self.levels.copy(), self.used,
            self.counts_from, self.kept_us,
        )  # fmt: skip

    @property
    def capacity(self) -> int:
        """What fits at once."""
        return self.limit.amount if self.limit.burst is None else self.limit.burst

    def over(self, now_us: int) -> int:
        """By how much more is counted now than the limit allows; at most 0 when all is well. Time never runs back."""
        period = self.limit.period_us
        self.kept_us = now_us - 2 * period
        if self.limit.kind is LimitKind.BUCKET:
            return -(-(self._level(now_us) - self.capacity * period) // period)
        self._leave_behind(now_us)
        return self.used - self.limit.amount

    def charge(self, rid: bytes, amount: int, now_us: int) -> None:
        """Count an amount."""
        self.places[rid] = (*self.places.get(rid, ()), len(self.amounts))
        self.at_us.append(now_us)
        self.amounts.append(amount)
        self.used += amount

    def correct(self, rid: bytes, actual: int, now_us: int, *, only_more: bool) -> None:
        """What a reservation took is known now. In a bucket more than was charged flows in now; `only_more`: less does
        not count."""
        own = [at for at in self.places.get(rid, ()) if self.at_us[at] >= self.kept_us]
        if not own:
            return
        change = actual - sum(self.amounts[at] for at in own)
        if change > 0 and self.limit.kind is LimitKind.BUCKET:
            self.charge(rid, change, now_us)
        elif change > 0 or not only_more:
            first = own[0]
            self.amounts[first] += change
            del self.levels[first:]
            if first >= self.counts_from:
                self.used += change

    def _leave_behind(self, now_us: int) -> None:
        """What is no longer in the window does not count."""
        period, fixed = self.limit.period_us, self.limit.kind is LimitKind.FIXED
        begins_us = now_us - now_us % period if fixed else now_us - period + 1
        while self.counts_from < len(self.at_us) and self.at_us[self.counts_from] < begins_us:
            self.used -= self.amounts[self.counts_from]
            self.counts_from += 1

    def _level(self, now_us: int) -> int:
        """Of a bucket, now."""
        levels, rate, period = self.levels, self.limit.amount, self.limit.period_us
        for at in range(len(levels), len(self.amounts)):
            drained = (self.at_us[at] - self.at_us[at - 1]) * rate if at else 0
            levels.append(max(0, (levels[at - 1] if at else 0) - drained) + self.amounts[at] * period)
        return max(0, levels[-1] - (now_us - self.at_us[-1]) * rate) if levels else 0
