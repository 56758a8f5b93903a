"""Admission while the store is away, from a share that was set aside in the ledger beforehand (law 10).

Of a lane that is `bounded` the ledger admits only a part; the rest is divided among the workers that are there. A
worker's share is an ordinary reservation in a scope of its own, in units of a millionth: nobody can hold more than
there is, a worker that was never there holds nothing, and the units of one that is cut off stay in suspense for longer
than it uses them.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from msgspec import structs

from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.components.set_aside import UNITS, share_of
from apikeyrouter.domain.models.accounting import (
    CELL_AT,
    Admission,
    Candidate,
    Charge,
    Denial,
    LaneConfig,
    Limit,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
    SuspenseRule,
)
from apikeyrouter.domain.models.system_error import LedgerError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.serving.bookkeeping import End, OpenHold, Release
from apikeyrouter.serving.presence import Presence
from apikeyrouter.serving.purses import Purses
from apikeyrouter.serving.spread_books import AnyBooks

__all__ = ["SHARES", "Standby"]

SHARES = "w:shares"
"""The lane and the scope in which it holds its units."""
STAND_SECONDS = 24 * 3600.0
"""So long after its lease a worker goes on that the store cannot tell otherwise."""
KEPT_SECONDS = 26 * 3600
"""So long its units are kept from others: longer than it goes on, and than any limit that it used them in."""
TICK_SECONDS = 1.0
_SCOPE = ScopeConfig(
    id=SHARES, limit_nanousd=UNITS, hard=True, period=Period.TOTAL, suspense=SuspenseRule.REFUND,
    suspense_after_us=KEPT_SECONDS * 1_000_000,
)  # fmt: skip
_log = EventLog("apikeyrouter")


class Standby:
    """A worker's share. `lane_config`, `scope_config`: what is declared now; `version` tells when that changes."""

    def __init__(
        self,
        ledger: AnyLedger,
        books: AnyBooks,
        presence: Presence,
        *,
        lanes: Callable[[], Iterable[LaneConfig]],
        budgets: Callable[[], Iterable[ScopeConfig]],
        lane_config: Callable[[str], LaneConfig],
        scope_config: Callable[[str], ScopeConfig | None],
        snapshot: Snapshot,
        now_us: Callable[[], int],
        lease_us: int,
    ) -> None:
        self._ledger, self._books, self._snapshot, self._lease_us = ledger, books, snapshot, lease_us
        self._lanes, self._budgets, self._lane_config, self._scope_config = lanes, budgets, lane_config, scope_config
        self._local = ScriptLedger(LocalEngine(clock_us=now_us))
        self._purses = Purses(ledger, books, self._local, lease_us=lease_us, stand_seconds=STAND_SECONDS)
        self._opened = False
        self._armed: tuple[list[LaneConfig], int] = ([], 0)
        self._put: dict[str, tuple[Limit, ...]] = {}
        self._scopes_put: set[ScopeConfig] = set()
        self._presence, self._declared = presence, False
        self._share: OpenHold | None = None
        self._used_at = -float(KEPT_SECONDS)
        self._next_at = 0.0
        self._ended: list[End] = []
        self.units = 0
        """What this worker holds now, in millionths of what is set aside."""
        self.admitted = 0
        """Requests that were admitted from it."""
        books.hear(standby=self._ended.append)

    @property
    def stands(self) -> bool:
        """Whether something could be admitted while the store is away."""
        return self._has_share or self._purses.stand

    @property
    def _has_share(self) -> bool:
        return self._share is not None and time.perf_counter() < self._until(self._share)

    def _until(self, share: OpenHold) -> float:
        """Its lease was renewed last a third of it before the next renewal is due."""
        return share.renew_at + self._lease_us * 2 / 3e6 + STAND_SECONDS

    # --- while the store is there --------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Once a second: be counted, hold what is ours, give up what is too much. Errors: LedgerError."""
        now = time.perf_counter()
        if now < self._next_at:
            return
        self._next_at = now + TICK_SECONDS
        lanes = [lane for lane in self._lanes() if lane.set_aside]
        budgets = list(self._budgets())
        if not lanes and not budgets:
            self.give_back()
            return
        if not self._opened:
            await self._local.open()
            self._opened = True
        await self._presence.be_there(self)
        await self._end()
        await self._purses.tick(budgets, workers=self._presence.count)
        if lanes:
            await self._hold_share(lanes)
        else:
            self._release_share()

    async def _hold_share(self, lanes: list[LaneConfig]) -> None:
        if not self._declared:
            await self.declare()
            self._declared = True
        await self._balance()
        if (lanes, self.units) != self._armed:
            await self._arm(lanes)

    async def declare(self) -> None:
        """Put the scope of the shares into the ledger."""
        await self._ledger.put(scopes=[_SCOPE])

    async def _balance(self) -> None:
        (shares,) = await self._scope()
        fair = UNITS // self._presence.count
        if self._share is not None and self._unused and (self.units > fair or self.units < fair <= self.units + shares):
            self._release_share()
        elif self._share is None and min(fair, shares) > 0:
            self._share = await self._hold(SHARES, (SHARES,), min(fair, shares))
            self.units = min(fair, shares) if self._share is not None else 0

    async def _scope(self) -> tuple[int]:
        states = await self._ledger.scopes([SHARES])
        return (UNITS - sum(state.settled + state.held + state.suspense for state in states),)

    @property
    def _unused(self) -> bool:
        return time.perf_counter() - self._used_at > KEPT_SECONDS

    async def _hold(self, lane: str, scopes: tuple[str, ...], units: int) -> OpenHold | None:
        charge = Charge(expected_nanousd=units, bound_nanousd=units)
        candidate = Candidate(lanes=(lane,), charge=charge)
        request = ReserveRequest(rid=new_rid(), candidates=(candidate,), scopes=scopes, lease_us=self._lease_us)
        answer = await self._ledger.reserve(request)
        if isinstance(answer, Denial):
            return None
        hold = self._books.held(request, 0)
        hold.abort = lambda _why: self._lost(hold)
        return hold

    def _lost(self, hold: OpenHold) -> None:
        """The ledger gave up its lease, or we close. Units that were used stay there until that is over."""
        if hold is self._share:
            self._share, self.units = None, 0
            if not self._unused:
                self._books.forget(hold.request.rid)
        self._books.hand_in(Release(rid=hold.request.rid, sent=False))

    def _release_share(self) -> None:
        if self._share is not None:
            self._lost(self._share)

    def give_back(self) -> None:
        """Hold nothing any more."""
        self._purses.give_back()
        self._release_share()
        self._presence.leave(self)

    def begin_anew(self) -> None:
        """What was held is another loop's, or a parent process's."""
        self._share = None
        self._purses.begin_anew()
        self.units, self._ended[:] = 0, []

    async def _arm(self, lanes: list[LaneConfig]) -> None:
        """Take over the limits of our share into the accounting of this process. What was used of them stays used."""
        ours = [_share(lane, self.units) for lane in lanes]
        gone = [LaneConfig(id=id_) for id_ in self._put.keys() - {lane.id for lane in lanes}]
        await self._local.put(lanes=[*ours, *gone])
        self._put = {lane.id: lane.limits for lane in lanes}
        self._armed = (lanes, self.units)

    # --- while it is away ----------------------------------------------------------------------------------------

    async def reserve(self, request: ReserveRequest) -> tuple[ReserveRequest, Admission] | None:
        """Hold the first candidate that our share has room for, under an id of its own; None: there is none."""
        if not self.stands:
            return None
        await self._end()
        scopes = await self._bounded(request.scopes)
        places = [at for at, one in enumerate(request.candidates) if scopes and await self._is_ours(request, one)]
        if not places:
            return None
        asked = structs.replace(
            request, rid=new_rid(request.rid[CELL_AT]), candidates=tuple(request.candidates[at] for at in places),
            config_version=0, principal="",
        )  # fmt: skip
        answer = await self._local.reserve(asked)
        if isinstance(answer, Denial):
            return None
        index = places[answer.index]
        held = structs.replace(request, rid=asked.rid, config_version=0)
        paid = self._paid((*request.scopes, *request.candidates[index].scopes))
        if paid:
            if not self._purses.note_use(paid):  # it was given up in this moment
                await self._local.release(asked.rid, sent=False)
                return None
            held = _without(held, paid)
        self._used_at = time.perf_counter()
        self.admitted += 1
        return held, structs.replace(answer, index=index, standby=True)

    def _paid(self, scopes: Iterable[str]) -> set[str]:
        """Those in which a call is paid out of a purse: the ledger hears of them by its settlement."""
        return {id_ for id_ in scopes if (scope := self._scope_config(id_)) is not None and scope.hard}

    async def _is_ours(self, request: ReserveRequest, candidate: Candidate) -> bool:
        """Whether everything that limits a candidate is bounded, and something does."""
        bounded = bool(self._paid((*request.scopes, *candidate.scopes)))
        for id_ in candidate.lanes:
            lane, seen = self._lane_config(id_), self._snapshot.lanes.get(id_)
            if lane.set_aside and lane.limits == self._put.get(id_) and self._has_share:
                bounded = True
            elif lane.limits or (seen is not None and seen.limits):
                return False
        return bounded and await self._bounded(candidate.scopes)

    async def _bounded(self, scopes: Iterable[str]) -> bool:
        for id_ in scopes:
            scope = self._scope_config(id_)
            if scope is None or not scope.bounded or (scope.hard and not self._purses.has(scope)):
                return False
            if not scope.hard and scope not in self._scopes_put:
                await self._local.put(scopes=[scope])
                self._scopes_put.add(scope)
        return True

    async def _end(self) -> None:
        """What ended gives its slots and tokens back to our share."""
        ended, self._ended[:] = list(self._ended), []
        for end in ended:
            try:
                if isinstance(end, Settlement):
                    await self._local.settle(end)
                elif isinstance(end, Release):
                    await self._local.release(end.rid, sent=end.sent)
                await self._local.acknowledge([end.rid])
            except LedgerError as exc:
                _log.error("standby.end_failed", rid=end.rid.hex(), error=str(exc))


def _without(request: ReserveRequest, scopes: set[str]) -> ReserveRequest:
    """A request as the ledger is told it: not in these scopes."""
    candidates = tuple(
        Candidate(lanes=one.lanes, scopes=_left(one.scopes, scopes), charge=one.charge) for one in request.candidates
    )
    return structs.replace(request, scopes=_left(request.scopes, scopes), candidates=candidates)


def _left(ids: tuple[str, ...], without: set[str]) -> tuple[str, ...]:
    return tuple(id_ for id_ in ids if id_ not in without)


def _share(lane: LaneConfig, units: int) -> LaneConfig:
    """A lane of this process's own accounting."""
    limits = tuple(share_of(limit, lane.set_aside, units) for limit in lane.limits)
    return replace(lane, limits=limits, set_aside=0.0)
