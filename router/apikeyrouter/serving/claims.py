"""Claims: who was denied for want of room tells the ledger that it will come again, behind the request's back.

A denial writes nothing. Without a word of those that were denied, scarce room would go to whoever asks first after it
was given back, which is whoever has just given it back.
"""

import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from apikeyrouter.domain.models.accounting import Loss, Reason, ReserveRequest, RetryKind, Stamp

__all__ = ["CLAIM_EVERY_US", "Claims", "claim_us"]

CLAIM_EVERY_US = 250_000
"""A principal's claim is told no more often, whatever it asks for: the ledger keeps who was served as long in mind."""
CLAIM_GRACE_US = 1_000_000
"""A caller that was told when to come again is waited for so long after that."""
CLAIM_US_MAX = 10_000_000
_ROOM = (Reason.LIMIT, Reason.FAIR_SHARE)
KNOWN_MAX = 1024


class Claiming(Protocol):
    """What claims ask of a ledger."""

    @property
    def stamp(self) -> Stamp:
        """Where the last answer stood."""
        ...

    def claim(self, request: ReserveRequest, *, stay_us: int) -> Coroutine[Any, Any, Stamp]:
        """Note that this was denied and will be asked for again."""
        ...


class Claims:
    """What this process told of principals that were denied. One event loop owns it."""

    def __init__(self, ledger: Claiming, chore: Callable[[Coroutine[Any, Any, object]], Awaitable[None]]) -> None:
        self._ledger, self._chore = ledger, chore
        self._again: dict[tuple[str, str], float] = {}
        """When a principal's claim to a pool may be told again (`perf_counter`)."""

    def note(self, request: ReserveRequest, binding: Loss) -> None:
        """This was denied."""
        if not request.principal or binding.reason not in _ROOM or binding.retry_kind is RetryKind.NEVER:
            return
        now, who = time.perf_counter(), (request.pool, request.principal)
        if now < self._again.get(who, 0.0):
            return
        if len(self._again) >= KNOWN_MAX:
            self._again = {other: at for other, at in self._again.items() if at > now}
        self._again[who] = now + CLAIM_EVERY_US / 1e6
        stay_us = claim_us(binding.retry_at_us - self._ledger.stamp.now_us)
        self._chore(self._ledger.claim(request, stay_us=stay_us))


def claim_us(wait_us: int) -> int:
    """How long it is waited for who was told to come again in `wait_us`."""
    return min(max(0, wait_us) + CLAIM_GRACE_US, CLAIM_US_MAX)
