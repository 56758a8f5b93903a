"""While the store is away workers admit from what was set aside: never more than the limit, whoever is cut off."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pytest

from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.components.set_aside import UNITS, share_of, without
from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    LaneConfig,
    Limit,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
    SuspenseRule,
)
from apikeyrouter.domain.models.system_error import LedgerError, LedgerRefusedError
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.serving import bookkeeping, purses, standby
from apikeyrouter.serving.bookkeeping import Bookkeeper
from apikeyrouter.serving.presence import Presence
from apikeyrouter.serving.standby import KEPT_SECONDS, SHARES, STAND_SECONDS, Standby
from tests.ledger.support import SECOND, START_US, bucket, in_flight, sliding, window

LEASE_S = 30
LIMITS: dict[str, tuple[Limit, ...]] = {
    "window": (window(100),), "sliding": (sliding(100),), "bucket": (bucket(60, burst=30),),
    "concurrency": (in_flight(20),),
}  # fmt: skip
SOFT = ScopeConfig(id="soft", limit_nanousd=10**9, hard=False, period=Period.TOTAL, bounded=True)
COST, BOUND = 5, 8
CHARGE = Charge(input_tokens=1, expected_nanousd=COST, bound_nanousd=BOUND)
LIMIT_NANOUSD = 3_000
HARD = ScopeConfig(
    id="hard", limit_nanousd=LIMIT_NANOUSD, hard=True, period=Period.HOURLY, bounded=True, set_aside=0.4
)  # fmt: skip


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    def time(self) -> float:
        return START_US / 1e6 + self.seconds

    def us(self) -> int:
        return START_US + int(self.seconds * 1e6)


class Way:
    """The way to the store, of one worker: cut or not."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine, self.cut = engine, False

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        if self.cut:
            raise LedgerRefusedError("cut off by the test")
        return await self._engine.run(name, args, pool=pool)


class Worker:
    """The parts of a worker that admit and book."""

    def __init__(self, engine: LocalEngine, lane: LaneConfig, scope: ScopeConfig, clock: Clock) -> None:
        self.scope = scope
        self.way = Way(engine)
        self.ledger = ScriptLedger(self.way)
        self.books = Bookkeeper(self.ledger)
        self.standby = Standby(
            self.ledger, self.books, Presence(self.ledger, self.books, lease_us=LEASE_S * SECOND),
            lanes=lambda: [lane] if lane.set_aside else [], budgets=lambda: [scope] if scope.set_aside else [],
            lane_config=lambda _: lane, scope_config=lambda _: scope,
            snapshot=Snapshot(), now_us=clock.us, lease_us=LEASE_S * SECOND,
        )  # fmt: skip
        self.open: list[bytes] = []

    async def ask(self) -> bool:
        """A request, through the store or, where that is away, from the share; whether it was admitted."""
        candidate = Candidate(lanes=("lane",), charge=CHARGE)
        request = ReserveRequest(
            rid=new_rid(), candidates=(candidate,), scopes=(self.scope.id,), lease_us=LEASE_S * SECOND
        )
        try:
            answer = await self.ledger.reserve(request)
        except LedgerError:
            held = await self.standby.reserve(request)
            if held is None:
                return False
            request, answer = held
        if not isinstance(answer, Admission):
            return False
        note = self.books.held_unheard if answer.standby else self.books.held
        note(request, answer.index)
        self.open.append(request.rid)
        return True

    def end(self) -> bool:
        """One call has its answer; whether one was open."""
        if not self.open:
            return False
        rid = self.open.pop(0)
        self.books.hand_in(Settlement(rid=rid, input_tokens=1, output_tokens=0, cost_nanousd=COST))
        return True

    async def keep_house(self) -> None:
        """What housekeeping does four times a second."""
        try:
            await self.books.tell_unheard()
            self.books.give_up(await self.books.renew(), "its lease was lost")
            while await self.ledger.sweep():
                pass
            await self.standby.tick()
            while self.books.waiting:
                await self.books._flush_some()
        except LedgerError:
            pass


class Provider:
    """Counts what arrives, with arithmetic of its own."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.at: list[float] = []
        self.in_flight = self.over = 0
        self._level, self._level_at = 0.0, 0.0
        self._windows: dict[int, int] = defaultdict(int)

    def arrives(self, now: float) -> None:
        self.at.append(now)
        self.in_flight += 1
        if self._kind == "window":
            self._windows[int((START_US / 1e6 + now) // 60)] += 1
            self.over += max(self._windows.values()) > 100
        elif self._kind == "sliding":
            self.over += sum(at > now - 60 for at in self.at[-200:]) > 100
        elif self._kind == "bucket":
            self._level = max(0.0, self._level - (now - self._level_at)) + 1
            self._level_at = now
            self.over += self._level > 30 + 1e-6
        else:
            self.over += self.in_flight > 20


class Fleet:
    """Four workers, their store and a provider, under cuts that are drawn from a seed."""

    def __init__(self, kind: str, seed: int, clock: Clock, scope: ScopeConfig = SOFT) -> None:
        self.chance, self.clock, self.scope = random.Random(f"{kind}/{seed}"), clock, scope
        self.lane = LaneConfig(id="lane", limits=LIMITS[kind], set_aside=0.4) if kind else LaneConfig(id="lane")
        self.engine = LocalEngine(clock_us=clock.us)
        self.provider = Provider(kind or "window")
        self.spent: dict[int, int] = defaultdict(int)
        """What was billed, by the hour."""
        self.workers: list[Worker] = []
        self.billed = 0

    async def begin(self) -> None:
        for _ in range(4):
            await self.join()
        await self.workers[0].ledger.put(lanes=[self.lane], scopes=[self.scope])
        await self.calm(10)

    async def join(self) -> None:
        worker = Worker(self.engine, self.lane, self.scope, self.clock)
        await worker.ledger.open()
        self.workers.append(worker)

    async def calm(self, seconds: int) -> None:
        for _ in range(seconds):
            await self.step(asks=0)

    async def step(self, asks: int) -> None:
        """A second: so many requests at random workers, some answers, and housekeeping."""
        for _ in range(asks):
            worker = self.chance.choice(self.workers)
            self.clock.seconds += 1 / asks / 2
            if await worker.ask():
                self.provider.arrives(self.clock.seconds)
                self.billed += COST
                self.spent[int(START_US / 1e6 + self.clock.seconds) // 3600] += COST
        for worker in self.workers:
            for _ in range(self.chance.randrange(8)):
                if worker.end():
                    self.provider.in_flight -= 1
        self.clock.seconds = int(self.clock.seconds) + 1.0
        for worker in self.workers:
            await worker.keep_house()

    def cut(self, count: int) -> None:
        """So many of the workers, and no other, have no way to the store."""
        lost = self.chance.sample(self.workers, count)
        for worker in self.workers:
            worker.way.cut = worker in lost

    async def crash(self) -> None:
        """One is killed, and its calls with it; another one begins."""
        dead = self.workers.pop(self.chance.randrange(len(self.workers)))
        self.provider.in_flight -= len(dead.open)
        dead.books.open.clear()
        await self.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What all parts see of time."""
    made = Clock()
    for module in (standby, bookkeeping, purses):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("seed", range(3))
async def test_the_limit_holds_whoever_is_cut_off_and_however_long(kind: str, seed: int, clock: Clock) -> None:
    fleet = Fleet(kind, seed, clock)
    await fleet.begin()
    for _ in range(12):
        fleet.cut(fleet.chance.choice((0, 1, 2, 3, 4, 4)))
        for _ in range(fleet.chance.choice((1, 3, 20, 70))):
            await fleet.step(asks=12)
        if fleet.chance.random() < 0.3:
            await fleet.crash()
    stood = sum(worker.standby.admitted for worker in fleet.workers)
    assert fleet.provider.over == 0
    assert stood > 0


@pytest.mark.parametrize("kind", LIMITS)
async def test_when_the_store_is_back_the_books_have_what_was_billed(kind: str, clock: Clock) -> None:
    fleet = Fleet(kind, 7, clock)
    await fleet.begin()
    fleet.cut(4)
    for _ in range(2 * LEASE_S):
        await fleet.step(asks=10)
    assert all(worker.standby.admitted for worker in fleet.workers)
    fleet.cut(0)
    while any(worker.open for worker in fleet.workers):
        await fleet.step(asks=0)
    await fleet.calm(5)
    reader = fleet.workers[0].ledger
    (state,) = await reader.scopes(["soft"])
    assert (state.settled, state.held, state.suspense) == (fleet.billed, 0, 0)
    assert await reader.audit(lanes=["lane"], scopes=["soft"]) == []


@pytest.mark.parametrize("seed", range(4))
async def test_a_hard_budget_holds_whoever_is_cut_off_and_all_is_booked_in_its_period(seed: int, clock: Clock) -> None:
    fleet = Fleet("", seed, clock, HARD)
    clock.seconds = 3600 * 3 - 120
    await fleet.begin()
    for _ in range(14):
        fleet.cut(fleet.chance.choice((0, 1, 2, 3, 4, 4)))
        for _ in range(fleet.chance.choice((1, 3, 20, 70))):
            await fleet.step(asks=fleet.chance.choice((1, 4, 12)))
        if seed % 2 and fleet.chance.random() < 0.3:
            await fleet.crash()
        assert max(fleet.spent.values()) <= LIMIT_NANOUSD
    assert sum(worker.standby.admitted for worker in fleet.workers) > 0
    fleet.cut(0)
    while any(worker.open for worker in fleet.workers):
        await fleet.step(asks=0)
    await fleet.calm(2 * LEASE_S)
    reader = fleet.workers[0].ledger
    (state,) = await reader.scopes(["hard"])
    assert state.settled + state.held + state.suspense <= LIMIT_NANOUSD
    assert state.settled + state.suspense >= fleet.spent[state.starts_at_us // 3_600_000_000]
    if not seed % 2:  # nobody was killed
        assert (state.settled, state.suspense) == (fleet.spent[state.starts_at_us // 3_600_000_000], 0)
    assert await reader.audit(lanes=["lane"], scopes=["hard"]) == []


async def test_what_a_worker_holds_of_a_hard_budget_is_for_one_outage_and_one_period(clock: Clock) -> None:
    fleet = Fleet("", 1, clock, HARD)
    await fleet.begin()
    share = int(LIMIT_NANOUSD * HARD.set_aside) // 4
    reader = fleet.workers[0].ledger
    (state,) = await reader.scopes(["hard"])
    assert state.held == 4 * share
    worker = fleet.workers[0]
    fleet.cut(4)
    admitted = [await worker.ask() for _ in range(200)]
    assert sum(admitted) == share // BOUND
    while worker.end():
        pass
    again = [await worker.ask() for _ in range(200)]
    assert sum(again) == (share - sum(admitted) * COST) // BOUND, "what calls did not need is there for others"
    while worker.end():
        pass
    fleet.cut(0)
    await fleet.calm(5)
    (state,) = await reader.scopes(["hard"])
    assert (state.settled, state.held) == ((sum(admitted) + sum(again)) * COST, 4 * share)
    fleet.cut(4)
    clock.seconds = 3600.0
    assert not await worker.ask(), "another period has begun, in which others may spend the whole budget"


async def test_money_that_is_refunded_after_a_lease_is_not_spent_then(clock: Clock) -> None:
    scope = replace(HARD, period=Period.TOTAL, suspense=SuspenseRule.REFUND, suspense_after_us=60 * SECOND)
    fleet = Fleet("", 1, clock, scope)
    await fleet.begin()
    fleet.cut(4)
    clock.seconds += LEASE_S
    assert await fleet.workers[0].ask()
    clock.seconds += 61
    assert not await fleet.workers[0].ask()


async def test_a_budget_that_is_used_up_has_no_purse_and_one_that_is_no_longer_bounded_gives_it_back(
    clock: Clock,
) -> None:
    fleet = Fleet("", 1, clock, HARD)
    await fleet.begin()
    worker = fleet.workers[0]
    assert worker.standby.stands
    worker.standby.give_back()
    await worker.keep_house()
    (state,) = await worker.ledger.scopes(["hard"])
    share = int(LIMIT_NANOUSD * HARD.set_aside) // 4
    assert state.held == 3 * share
    for one in fleet.workers:
        one.standby.give_back()
    fleet.workers[1:] = []
    while await worker.ask():
        pass
    await worker.keep_house()
    assert not worker.standby.stands


async def test_shares_are_even_and_nobody_holds_more_than_there_is(clock: Clock) -> None:
    fleet = Fleet("window", 1, clock)
    await fleet.begin()
    assert [worker.standby.units for worker in fleet.workers] == [UNITS // 4] * 4
    await fleet.join()
    await fleet.calm(10)
    assert [worker.standby.units for worker in fleet.workers] == [UNITS // 5] * 5
    (state,) = await fleet.workers[0].ledger.scopes([SHARES])
    assert state.held <= UNITS
    leaving = fleet.workers.pop()
    leaving.standby.give_back()
    await leaving.keep_house()
    leaving.way.cut = True
    await fleet.calm(10)
    assert [worker.standby.units for worker in fleet.workers] == [UNITS // 4] * 4


async def test_who_was_never_there_and_who_stood_too_long_admits_nothing(clock: Clock) -> None:
    fleet = Fleet("window", 2, clock)
    await fleet.begin()
    late = Worker(fleet.engine, fleet.lane, SOFT, clock)
    late.way.cut = True
    assert not await late.ask()
    fleet.cut(4)
    assert await fleet.workers[0].ask()
    clock.seconds += LEASE_S + STAND_SECONDS
    assert not any([await worker.ask() for worker in fleet.workers])
    assert LEASE_S + STAND_SECONDS < KEPT_SECONDS


async def test_units_that_a_dead_worker_used_come_back_when_no_limit_remembers_them(clock: Clock) -> None:
    fleet = Fleet("window", 3, clock)
    await fleet.begin()
    await fleet.crash()
    await fleet.calm(2 * LEASE_S)
    assert sum(worker.standby.units for worker in fleet.workers) == 3 * UNITS // 4
    clock.seconds += KEPT_SECONDS
    await fleet.calm(2 * LEASE_S)
    assert [worker.standby.units for worker in fleet.workers] == [UNITS // 4] * 4


async def test_a_lane_or_a_scope_that_is_closed_admits_nothing(clock: Clock) -> None:
    fleet = Fleet("window", 4, clock)
    await fleet.begin()
    worker = fleet.workers[0]
    fleet.cut(4)
    assert await worker.ask()
    for attribute, closed in (
        ("_lane_config", lambda _: LaneConfig(id="lane", limits=fleet.lane.limits)),
        ("_lane_config", lambda _: LaneConfig(id="lane")),
        ("_scope_config", lambda _: ScopeConfig(id="soft", limit_nanousd=1, hard=True, period=Period.TOTAL)),
        ("_scope_config", lambda _: None),
    ):
        before = getattr(worker.standby, attribute)
        setattr(worker.standby, attribute, closed)
        assert not await worker.ask(), attribute
        setattr(worker.standby, attribute, before)


@pytest.mark.parametrize("amount", [1, 7, 10, 99, 100, 12_345])
@pytest.mark.parametrize("set_aside", [0.01, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_what_is_divided_is_never_more_than_there_was(amount: int, set_aside: float, workers: int) -> None:
    limit = bucket(amount, burst=max(1, amount // 2))
    left, share = without(limit, set_aside), share_of(limit, set_aside, UNITS // workers)
    assert left.amount + workers * share.amount <= amount
    assert (left.burst or 0) + workers * (share.burst or 0) <= (limit.burst or 0)
    assert left.amount > 0
