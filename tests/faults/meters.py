"""What a limit has counted, from the definition of its kind: the auditor's own arithmetic.

A charge that was given back, in whole or in part, is taken to have been of that size from the beginning. What a ledger
admits must fit that as well: giving back may free what was not used, never more.
"""

from collections import deque
from copy import copy
from dataclasses import dataclass, field, replace

from apikeyrouter.domain.models.accounting import Limit, LimitKind


@dataclass(frozen=True, slots=True)
class Charge:
    """An amount that was counted at an instant, for a reservation."""

    at_us: int
    rid: bytes
    amount: int


@dataclass(slots=True)
class Meter:
    """Charges of one limit, oldest first, and of a bucket how full it was before them."""

    limit: Limit
    charges: deque[Charge] = field(default_factory=deque)
    level: int = 0
    level_at_us: int = 0

    def fork(self) -> "Meter":
        """A copy that nothing changes."""
        twin = copy(self)
        twin.charges = self.charges.copy()
        return twin

    @property
    def capacity(self) -> int:
        """What fits at once."""
        return self.limit.amount if self.limit.burst is None else self.limit.burst

    def over(self, now_us: int) -> int:
        """By how much more is counted now than the limit allows; at most 0 when all is well."""
        self._forget(now_us)
        if self.limit.kind is LimitKind.BUCKET:
            period = self.limit.period_us
            return -(-(self._level(now_us) - self.capacity * period) // period)
        return sum(charge.amount for charge in self.charges if self._counts(charge, now_us)) - self.limit.amount

    def charge(self, rid: bytes, amount: int, now_us: int) -> None:
        """Count an amount."""
        self.charges.append(Charge(now_us, rid, amount))

    def correct(self, rid: bytes, actual: int, now_us: int, *, only_more: bool) -> None:
        """What a reservation took is known now. In a bucket more than was charged flows in now; `only_more`: less does
        not count."""
        own = [at for at, charge in enumerate(self.charges) if charge.rid == rid]
        if not own:
            return
        change = actual - sum(self.charges[at].amount for at in own)
        if change > 0 and self.limit.kind is LimitKind.BUCKET:
            self.charges.append(Charge(now_us, rid, change))
        elif change > 0 or not only_more:
            first = self.charges[own[0]]
            self.charges[own[0]] = replace(first, amount=first.amount + change)

    def _counts(self, charge: Charge, now_us: int) -> bool:
        period = self.limit.period_us
        if self.limit.kind is LimitKind.FIXED:
            return charge.at_us // period == now_us // period
        return charge.at_us > now_us - period

    def _level(self, now_us: int) -> int:
        """Of a bucket, in amounts times microseconds of its period."""
        level, at_us = self.level, self.level_at_us
        for charge in self.charges:
            level = (
                max(0, level - max(0, charge.at_us - at_us) * self.limit.amount) + charge.amount * self.limit.period_us
            )
            at_us = max(at_us, charge.at_us)
        return max(0, level - max(0, now_us - at_us) * self.limit.amount)

    def _forget(self, now_us: int) -> None:
        """Of what has drained, or left its window, nothing can come back."""
        kept_us = 2 * self.limit.period_us
        while self.charges and self.charges[0].at_us < now_us - kept_us:
            charge = self.charges.popleft()
            passed = (charge.at_us - self.level_at_us) * self.limit.amount
            self.level = max(0, self.level - passed) + charge.amount * self.limit.period_us
            self.level_at_us = charge.at_us
