"""Money for when the store is away: what a worker holds beforehand of each hard budget that is `bounded` (law 10).

A purse is an ordinary reservation in the budget itself, so that settled + held + suspense ≤ limit in the ledger,
whoever is cut off, and however long. While the store is away the worker's own accounting admits from it. Afterwards it
is settled at what its calls did cost, in the period that it was held in, and another one is held.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import floor

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import (
    Candidate,
    Charge,
    Denial,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
    SuspenseRule,
)
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger
from apikeyrouter.infrastructure.ledger.windows import window_ends_us
from apikeyrouter.serving.bookkeeping import OpenHold, Release
from apikeyrouter.serving.spread_books import AnyBooks

__all__ = ["Purses"]

PURSES = "w:purses"
"""The lane that their reservations are in; it has no limits."""
PAUSE_SECONDS = 5.0
"""A purse that was not to be had is asked for again after so long."""


@dataclass(slots=True, eq=False)
class Purse:
    """One of a budget. `before`: what calls from earlier ones did cost, by this worker's own accounting; `until`: the
    end of the period that it was held in, by the monotonic clock."""

    scope: ScopeConfig
    hold: OpenHold
    amount: int
    before: int
    until: float
    used: bool = False
    closing: bool = False


class Purses:
    """The purses of one worker. `local`: its own accounting, which is opened before the first tick."""

    def __init__(
        self, ledger: AnyLedger, books: AnyBooks, local: ScriptLedger, *, lease_us: int, stand_seconds: float
    ) -> None:
        self._ledger, self._books, self._local = ledger, books, local
        self._lease_us, self._stand_seconds = lease_us, stand_seconds
        self._purses: dict[str, Purse] = {}
        self._not_before: dict[str, float] = {}

    # --- while the store is away ---------------------------------------------------------------------------------

    def has(self, scope: ScopeConfig) -> bool:
        """Whether calls in that budget may be admitted from here now."""
        purse = self._purses.get(scope.id)
        return purse is not None and purse.scope == scope and self._is_good(purse)

    @property
    def stand(self) -> bool:
        """Whether some call could be."""
        return any(self._is_good(purse) for purse in self._purses.values())

    def _is_good(self, purse: Purse) -> bool:
        """Its period lasts, and what it holds is surely still counted: what is refunded after its lease is not."""
        scope = purse.scope
        counted = scope.suspense_after_us / 1e6 if scope.suspense is SuspenseRule.REFUND else self._stand_seconds
        now, last = time.perf_counter(), purse.hold.renew_at + self._lease_us * 2 / 3e6
        return not purse.closing and now < purse.until and now < last + min(counted, self._stand_seconds)

    def note_use(self, scopes: Iterable[str]) -> bool:
        """A call was admitted in these budgets; whether each has a purse that pays for it."""
        purses = [self._purses.get(id_) for id_ in scopes]
        for purse in purses:
            if purse is not None:
                purse.used = True
        return None not in purses

    # --- while it is there ---------------------------------------------------------------------------------------

    async def tick(self, scopes: Iterable[ScopeConfig], *, workers: int) -> None:
        """Hold a purse of each of these budgets; settle those that were used, or are not right. Errors: LedgerError."""
        wanted, now = {scope.id: scope for scope in scopes}, time.perf_counter()
        for id_, purse in list(self._purses.items()):
            right = wanted.get(id_) == purse.scope and purse.amount == _fair(purse.scope, workers)
            if purse.used or purse.closing or not right or now >= purse.until:
                await self._settle(purse)
        for id_, scope in wanted.items():
            if id_ not in self._purses and now >= self._not_before.get(id_, 0.0):
                await self._fill(scope, _fair(scope, workers))

    async def _fill(self, scope: ScopeConfig, amount: int) -> None:
        """Hold that much of a budget, if there is so much."""
        self._not_before[scope.id] = time.perf_counter() + PAUSE_SECONDS
        if amount < 1:
            return
        charge = Charge(expected_nanousd=amount, bound_nanousd=amount)
        request = ReserveRequest(
            rid=new_rid(), candidates=(Candidate(lanes=(PURSES,), charge=charge),), scopes=(scope.id,),
            lease_us=self._lease_us,
        )  # fmt: skip
        sent = time.perf_counter()
        answer = await self._ledger.reserve(request)
        if isinstance(answer, Denial):
            return
        hold = self._books.held(request, 0)
        now_us = answer.stamp.now_us
        until = sent + (window_ends_us((), (scope,), now_us) - now_us) / 1e6
        before, _ = await self._stop(scope)
        purse = Purse(scope, hold, amount, before, until)
        hold.abort = lambda _why: self._lost(purse)
        await self._allow(scope, purse.before + amount)
        self._purses[scope.id] = purse
        del self._not_before[scope.id]

    async def _settle(self, purse: Purse) -> None:
        """Let nobody in any more; when its last call has ended, settle it at what all did cost."""
        purse.closing = True
        settled, is_open = await self._stop(purse.scope)
        if is_open:
            return
        del self._purses[purse.scope.id]
        rid, cost = purse.hold.request.rid, settled - purse.before
        if cost:
            self._books.hand_in(Settlement(rid=rid, input_tokens=0, output_tokens=0, cost_nanousd=cost))
        else:
            self._books.hand_in(Release(rid=rid, sent=False))

    async def _stop(self, scope: ScopeConfig) -> tuple[int, bool]:
        """Let nobody in; what calls from purses of a budget did cost until now, and whether one is open still."""
        await self._allow(scope, 0)
        states = await self._local.scopes([scope.id])
        return sum(state.settled for state in states), any(state.held or state.suspense for state in states)

    async def _allow(self, scope: ScopeConfig, nanousd: int) -> None:
        """So much may be spent by this worker's own accounting, since it began."""
        ours = replace(scope, limit_nanousd=nanousd, period=Period.TOTAL, timezone="UTC", suspense=SuspenseRule.HOLD)
        await self._local.put(scopes=[ours])

    def _lost(self, purse: Purse) -> None:
        """The ledger gave up its lease, or we close. What was used is in suspense there until it is settled."""
        purse.closing = True
        if not purse.used and self._purses.get(purse.scope.id) is purse:
            del self._purses[purse.scope.id]
            self._books.hand_in(Release(rid=purse.hold.request.rid, sent=False))

    # --- ends ----------------------------------------------------------------------------------------------------

    def give_back(self) -> None:
        """Hold none any more. What was used, and not settled yet, is left to its lease: it goes to suspense."""
        for rid in self._rids(used=False):
            self._books.hand_in(Release(rid=rid, sent=False))
        for rid in self._rids(used=True):
            self._books.forget(rid)
        self._purses.clear()

    def _rids(self, *, used: bool) -> Iterator[bytes]:
        return (purse.hold.request.rid for purse in self._purses.values() if purse.used is used)

    def begin_anew(self) -> None:
        """What was held is another loop's, or a parent process's."""
        self._purses.clear()


def _fair(scope: ScopeConfig, workers: int) -> int:
    """What a worker holds of a budget: its part of what is set aside."""
    return floor(scope.limit_nanousd * scope.set_aside) // workers
