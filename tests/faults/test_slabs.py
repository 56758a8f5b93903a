"""Workers that admit from slabs: never more than the provider's limit or the budget, whoever dies and whatever is lost.

One thread, a clock of the test's, everything drawn from a seed. The provider counts for itself.
"""

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    LaneConfig,
    Limit,
    LimitKind,
    Metric,
    Outcome,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
)
from apikeyrouter.domain.models.system_error import LedgerError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.serving import bookkeeping, slab, slabs
from apikeyrouter.serving.bookkeeping import Bookkeeper, Release
from apikeyrouter.serving.presence import Presence
from apikeyrouter.serving.slabs import Slabs
from tests.ledger.support import SECOND, START_US

LEASE_S = 30
PER_SECOND, AT_ONCE = 60, 300
WINDOW_S = 10


def _limit(kind: LimitKind, amount: int, *, burst: int | None = None) -> Limit:
    metric = Metric.CONCURRENCY if kind is LimitKind.CONCURRENCY else Metric.REQUESTS
    name = "concurrency" if kind is LimitKind.CONCURRENCY else "rpm"
    period_us = SECOND if kind is LimitKind.BUCKET else WINDOW_S * SECOND
    return Limit(name=name, metric=metric, kind=kind, amount=amount, burst=burst, period_us=period_us, slabs=True)


LIMITS = {
    "bucket": _limit(LimitKind.BUCKET, PER_SECOND, burst=AT_ONCE),
    "window": _limit(LimitKind.FIXED, WINDOW_S * PER_SECOND),
    "sliding": _limit(LimitKind.SLIDING, WINDOW_S * PER_SECOND),
    "concurrency": _limit(LimitKind.CONCURRENCY, AT_ONCE),
}
BOUND, COST, LIMIT_NANOUSD = 10, 4, 3_000
HARD = ScopeConfig(id="hard", limit_nanousd=LIMIT_NANOUSD, hard=True, period=Period.TOTAL)
AMPLE = replace(HARD, limit_nanousd=10**12)
CHARGE = Charge(input_tokens=2, output_tokens=3, expected_nanousd=5, bound_nanousd=BOUND)


class Clock:
    """Time that passes when it is told to; what the store thinks of it may be wrong."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.store_ahead_us = 0

    def perf_counter(self) -> float:
        return self.seconds

    def time(self) -> float:
        return START_US / 1e6 + self.seconds

    def us(self) -> int:
        return START_US + int(self.seconds * 1e6) + self.store_ahead_us


class Way:
    """A worker's way to the store: it takes time, and loses calls before or after they ran."""

    def __init__(self, engine: LocalEngine, clock: Clock, chance: random.Random) -> None:
        self._engine, self._clock, self._chance = engine, clock, chance
        self.loses = 0.0

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        self._clock.seconds += self._chance.choice((0.0, 0.0, 0.001, 0.02 if name == "reserve" else 0.0))
        if self._chance.random() < self.loses:
            raise LedgerUnavailableError("lost on the way there")
        reply = await self._engine.run(name, args, pool=pool)
        if self._chance.random() < self.loses:
            raise LedgerUnavailableError("lost on the way back")
        return reply


class Worker:
    """The parts of a worker that admit and book."""

    def __init__(self, fleet: "Fleet") -> None:
        self.fleet = fleet
        self.way = Way(fleet.engine, fleet.clock, fleet.chance)
        self.ledger = ScriptLedger(self.way)
        self.books = Bookkeeper(self.ledger)
        self.ledger.on_unanswered = self.books.cancel
        presence = Presence(self.ledger, self.books, lease_us=LEASE_S * SECOND)
        self.slabs = Slabs(
            self.ledger, self.books, presence, lane_config=lambda _: fleet.lane, scope_config=lambda _: fleet.scope,
            now_us=fleet.clock.us,
        )  # fmt: skip
        self.open: deque[bytes] = deque()
        self.demand = 0
        self.admitted = 0

    async def ask(self) -> None:
        request = ReserveRequest(
            rid=new_rid(), candidates=(Candidate(lanes=("lane",), charge=CHARGE),), scopes=("hard",),
            lease_us=LEASE_S * SECOND, config_version=self.fleet.version,
        )  # fmt: skip
        try:
            answer = await self.slabs.reserve(request)
        except LedgerError:
            return
        if not isinstance(answer, Admission):
            return
        hold = self.books.held(request, answer.index)
        if answer.slab:
            self.slabs.joined(hold, answer.slab)
        self.open.append(request.rid)
        self.admitted += 1
        self.fleet.provider.arrives(self.fleet.clock.seconds)

    def end(self) -> None:
        rid, draw = self.open.popleft(), self.fleet.chance.random()
        self.fleet.provider.in_flight -= 1
        if draw < 0.1:
            self.books.hand_in(Release(rid=rid, sent=True, failed_lanes=1))
            return
        self.fleet.spent += COST
        outcome = Outcome.FAILURE if draw < 0.15 else Outcome.SUCCESS
        self.books.hand_in(
            Settlement(rid=rid, input_tokens=2, output_tokens=1, cost_nanousd=COST, outcome=outcome, failed_lanes=1)
        )

    async def keep_house(self) -> None:
        try:
            await self.ledger.open()
            self.books.give_up(await self.books.renew(), "its lease was lost")
            await self.slabs.tick(wanted=True)
            while self.books.waiting:
                await self.books._flush_some()
            while await self.ledger.sweep():
                pass
        except LedgerError:
            self.ledger.gate.answered()


class Provider:
    """Counts what arrives, with arithmetic of its own."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.in_flight = self.over = self.count = 0
        self._level, self._level_at = 0.0, 0.0
        self._lately: deque[float] = deque()
        self._window, self._used = -1, 0

    def arrives(self, now: float) -> None:
        self.in_flight += 1
        self.count += 1
        if self._kind == "window":
            window = int((START_US / 1e6 + now) // WINDOW_S)
            self._used = self._used + 1 if window == self._window else 1
            self._window = window
            self.over += self._used > WINDOW_S * PER_SECOND
        elif self._kind == "sliding":
            self._lately.append(now)
            while self._lately[0] <= now - WINDOW_S:
                self._lately.popleft()
            self.over += len(self._lately) > WINDOW_S * PER_SECOND
        elif self._kind == "bucket":
            self._level = max(0.0, self._level - (now - self._level_at) * PER_SECOND) + 1
            self._level_at = now
            self.over += self._level > AT_ONCE + 1e-6
        else:
            self.over += self.in_flight > AT_ONCE


class Fleet:
    """Workers, their store and a provider, with demand and faults that are drawn from a seed."""

    def __init__(self, kind: str, seed: int, clock: Clock, scope: ScopeConfig = AMPLE) -> None:
        self.chance, self.clock, self.scope = random.Random(f"{kind}/{seed}"), clock, scope
        self.lane = LaneConfig(id="lane", limits=(LIMITS[kind],))
        self.engine = LocalEngine(clock_us=clock.us)
        self.provider = Provider(kind)
        self.latency = 0.5
        self.workers: list[Worker] = []
        self.spent = self.died_with = self.version = self.by_slab = 0

    async def begin(self, workers: int = 3) -> None:
        for _ in range(workers):
            await self.join()
        await self.workers[0].ledger.put(lanes=[self.lane], scopes=[self.scope])
        self.version = self.workers[0].ledger.stamp.config_version

    async def join(self) -> None:
        worker = Worker(self)
        await worker.ledger.open()
        self.workers.append(worker)

    def crash(self) -> None:
        """One is killed, and its calls with it: the provider goes on with what it has."""
        dead = self.workers.pop(self.chance.randrange(len(self.workers)))
        self.by_slab += dead.slabs.admitted
        self.provider.in_flight -= len(dead.open)
        self.died_with += len(dead.open) * BOUND

    async def run(self, seconds: float, *, demands: Sequence[int] = (0, 50, 50, 120)) -> None:
        """So long, with demands that change; house is kept four times a second."""
        until = self.clock.seconds + seconds
        while self.clock.seconds < until:
            for worker in self.workers:
                if self.chance.random() < 0.2:
                    worker.demand = self.chance.choice(demands)
            await self.quarter()

    async def quarter(self) -> None:
        asks = [worker for worker in self.workers for _ in range(worker.demand // 4)]
        self.chance.shuffle(asks)
        end = self.clock.seconds + 0.25
        for number, worker in enumerate(asks):
            self.clock.seconds = max(self.clock.seconds, end - 0.25 * (1 - number / len(asks)))
            await worker.ask()
            await asyncio.sleep(0)
        self.clock.seconds = max(self.clock.seconds, end)
        for worker in self.workers:
            for _ in range(len(worker.open) - int(worker.demand * self.latency)):
                worker.end()
            await worker.keep_house()
            while any(flow.asking for flow in worker.slabs._flows.values()):
                await asyncio.sleep(0)

    async def calm(self) -> None:
        """Every call ends, and everything is booked."""
        for worker in self.workers:
            worker.way.loses, worker.demand = 0.0, 0
            while worker.open:
                worker.end()
        for _ in range(12):
            await self.quarter()
        for _ in range(400):  # a busy machine may miss the ledger's own deadline
            if not any(worker.books.waiting or worker.slabs.held for worker in self.workers):
                break
            await asyncio.sleep(0.01)
            await self.quarter()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What all parts see of time."""
    made = Clock()
    for module in (slabs, bookkeeping):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("seed", range(2))
async def test_no_limit_is_passed_whoever_dies_and_whatever_is_lost(kind: str, seed: int, clock: Clock) -> None:
    fleet = Fleet(kind, seed, clock)
    await fleet.begin()
    for _ in range(4):
        for worker in fleet.workers:
            worker.way.loses = fleet.chance.choice((0.0, 0.0, 0.05))
        await fleet.run(5)
        if fleet.chance.random() < 0.5:
            fleet.crash()
            await fleet.join()
    fleet.by_slab += sum(worker.slabs.admitted for worker in fleet.workers)
    assert fleet.provider.over == 0
    assert fleet.by_slab > fleet.provider.count / 10, "hardly anything came from slabs"


@pytest.mark.parametrize("seed", range(3))
async def test_a_hard_budget_is_never_passed_and_all_that_was_spent_is_booked(seed: int, clock: Clock) -> None:
    fleet = Fleet("window", seed, clock, scope=HARD)
    await fleet.begin()
    reader = fleet.workers[0].ledger
    for _ in range(40):
        for worker in fleet.workers[1:]:
            worker.way.loses = fleet.chance.choice((0.0, 0.0, 0.05))
        await fleet.run(0.5, demands=(50, 80))
        (state,) = await reader.scopes(["hard"])
        assert state.settled + state.held + state.suspense <= LIMIT_NANOUSD
    for _ in range(8):  # what the last calls did not need is there for others
        await fleet.calm()
        await fleet.run(2, demands=(50, 80))
    await fleet.calm()
    (state,) = await reader.scopes(["hard"])
    assert (state.settled, state.held, state.suspense) == (fleet.spent, 0, 0)
    assert fleet.spent + BOUND > LIMIT_NANOUSD * 0.95, "the rest of the budget was left unused"
    assert sum(worker.slabs.admitted for worker in fleet.workers) > 100
    assert await reader.audit(lanes=["lane"], scopes=["hard"]) == []


async def test_what_a_dead_worker_did_not_tell_is_in_suspense(clock: Clock) -> None:
    fleet = Fleet("window", 5, clock)
    await fleet.begin(2)
    await fleet.run(6, demands=(60,))
    assert all(worker.slabs.held for worker in fleet.workers)
    fleet.crash()
    await fleet.calm()
    (left,) = fleet.workers
    (state,) = await left.ledger.scopes(["hard"])
    dead = state.held
    assert dead >= fleet.died_with
    clock.seconds += LEASE_S
    await fleet.calm()
    (state,) = await left.ledger.scopes(["hard"])
    assert (state.held, state.suspense) == (0, dead)
    (lane,) = await left.ledger.lanes(["lane"])
    assert lane.in_flight == 0


def test_the_module_of_one_slab_reads_no_clock() -> None:
    assert not hasattr(slab, "time")
