"""What is simulated: lanes and budgets of a small house, the workers that share them, and what their callers ask.

A worker is the library's own parts, put together as a router does it: ledger, books, housekeeping. Only what lies
between it and the store is not real, and the provider, which answers after a while and bills.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from apikeyrouter.domain.components.capacity import CapacityWatch
from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.models.accounting import (
    Admission,
    Breaker,
    Candidate,
    Charge,
    LaneConfig,
    Outcome,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
    SuspenseRule,
)
from apikeyrouter.domain.models.system_error import LedgerError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.serving.bookkeeping import Bookkeeper, Release
from apikeyrouter.serving.housekeeping import Housekeeper
from tests.faults.auditor import Auditor
from tests.faults.books import Place, World
from tests.faults.faults import Kind
from tests.faults.network import Line, Network
from tests.faults.virtual_loop import VirtualLoop
from tests.ledger.support import SECOND, bucket, in_flight, sliding, window

LEASE_US = 5 * SECOND
TRIES = 2
_BREAKER = Breaker(failures=3, window_us=10 * SECOND, open_us=SECOND, open_max_us=8 * SECOND)
LANES = (
    LaneConfig(id="org/a", limits=(bucket(900, burst=30), bucket(500_000, burst=30_000, name="tpm")), fair=True),
    LaneConfig(id="org/b", limits=(window(500), sliding(300_000, name="tpm"))),
    LaneConfig(id="org/c", limits=(sliding(400), bucket(90_000, burst=9_000, name="otpm"))),
    LaneConfig(id="key/a1", limits=(in_flight(14),), breaker=_BREAKER),
    LaneConfig(id="key/a2", limits=(in_flight(9),), breaker=_BREAKER),
    LaneConfig(id="key/b1", limits=(in_flight(20),)),
    LaneConfig(id="key/c1", limits=(in_flight(8),), breaker=_BREAKER),
)
WAYS = (("key/a1", "org/a"), ("key/a2", "org/a"), ("key/b1", "org/b"), ("key/c1", "org/c"))
"""A key, and the quota group that it is metered in."""
SCOPES = (
    ScopeConfig(
        id="all", limit_nanousd=600_000, hard=True, period=Period.HOURLY, suspense_after_us=20 * SECOND,
    ),
    ScopeConfig(id="team", limit_nanousd=120_000, hard=True, period=Period.TOTAL, suspense=SuspenseRule.HOLD),
    ScopeConfig(id="soft", limit_nanousd=30_000, hard=False, period=Period.HOURLY, suspense_after_us=9 * SECOND),
    ScopeConfig(
        id="key", limit_nanousd=500_000, hard=True, period=Period.HOURLY, suspense_after_us=20 * SECOND,
    ),
)  # fmt: skip
CANARY_LANE, CANARY_SCOPE = "canary", "canary"
"""What nobody uses until the end: it must be served then."""
CANARY = (
    LaneConfig(id=CANARY_LANE, limits=(in_flight(10),)),
    ScopeConfig(id=CANARY_SCOPE, limit_nanousd=10**9, hard=True, period=Period.TOTAL),
)


def world() -> World:
    """The house."""
    return World({lane.id: lane for lane in (*LANES, CANARY[0])}, {scope.id: scope for scope in (*SCOPES, CANARY[1])})


@dataclass
class Providers:
    """What providers know: calls that run, and what they bill, whatever becomes of the caller."""

    auditor: Auditor
    running: dict[bytes, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    billed: Counter[Place] = field(default_factory=Counter)
    calls: int = 0
    beyond_max: int = 0
    """Most calls of one key at once beyond its limit: of workers that were stopped longer than their lease."""

    def begin(self, worker: str, request: ReserveRequest, index: int, cost_nanousd: int) -> None:
        """A call arrives, and is billed."""
        rid, lanes = request.rid, request.candidates[index].lanes
        self.running[rid] = (worker, lanes)
        self.calls += 1
        found = self.auditor.books.held_by.get(rid)
        start_of = {part.scope: part.start_us for part in found.parts} if found else {}
        for scope in (*request.scopes, *request.candidates[index].scopes):
            start = start_of.get(scope, self.auditor.world.period_start(scope, self.auditor.books.now_us))
            self.billed[scope, start] += cost_nanousd
        for lane in lanes:
            for limit in self.auditor.world.lanes[lane].limits:
                if limit.name == "concurrency":
                    at_once = sum(lane in others for _, others in self.running.values())
                    self.beyond_max = max(self.beyond_max, at_once - limit.amount)

    def end(self, rid: bytes) -> None:
        """It is over."""
        self.running.pop(rid, None)

    def hung_up(self, worker: str) -> None:
        """A process is gone, and its calls with it."""
        self.running = {rid: call for rid, call in self.running.items() if call[0] != worker}


@dataclass
class Facts:
    """What callers saw in a run."""

    asked: int = 0
    admitted: int = 0
    denied: int = 0
    refused: int = 0
    gone: int = 0
    aborted: int = 0
    calm_since_us: int = 0
    """When a fault began or ended last."""
    slowest_us: int = 0
    """Longest that a reserve took, of workers that were not stopped meanwhile."""
    handed_in: dict[bytes, str] = field(default_factory=dict)
    """Settlements that a worker took, and which one."""


class Worker:
    """One process: it begins, serves its callers, and is killed or closed."""

    def __init__(self, name: str, number: int, stage: "Stage") -> None:
        self.name, self.number, self._stage = name, number, stage
        self.ledger = ScriptLedger(Line(stage.network, name, number), tries=TRIES)
        self.books = Bookkeeper(self.ledger)
        self.ledger.on_unanswered = self.books.cancel
        self.keeper = Housekeeper(
            self.ledger, self.books, Snapshot(), CapacityWatch(), lambda: _LANE_IDS, self._configure, _nothing,
            emit=_emit,
        )  # fmt: skip
        self.keeper.lease_us = (
            LEASE_US if stage.network.ordered else 1
        )  # every answer that is overtaken looks like a loss
        self.calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Open, as long as that takes; then serve."""
        while True:
            with contextlib.suppress(LedgerError):
                await self.ledger.open()
                await self._configure()
                break
            await asyncio.sleep(0.2)
        self.books.start()
        self.keeper.start()

    async def _configure(self) -> None:
        known = self._stage.auditor.world
        await self.ledger.put(lanes=tuple(known.lanes.values()), scopes=tuple(known.scopes.values()))

    def ask(self, request: ReserveRequest, taken: "Taken") -> "asyncio.Task[None]":
        """A caller's request, in a task of this process."""
        task = self._stage.loop.spawn(self.name, self._serve(request, taken))
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        return task

    async def _serve(self, request: ReserveRequest, taken: "Taken") -> None:
        facts, loop = self._stage.facts, self._stage.loop
        facts.asked += 1
        began, stops = loop.now_us, self._stage.stops[self.number]
        try:
            answer = await self.ledger.reserve(request)
        except LedgerError:
            facts.refused += 1
            return
        finally:
            if stops == self._stage.stops[self.number]:
                facts.slowest_us = max(facts.slowest_us, loop.now_us - began)
        if not isinstance(answer, Admission):
            facts.denied += 1
            return
        facts.admitted += 1
        hold = self.books.held(request, answer.index)
        await self._call(request, answer.index, taken, lambda abort: setattr(hold, "abort", abort))

    async def _call(
        self, request: ReserveRequest, index: int, taken: "Taken", watch: "Callable[[Callable[[str], None]], None]"
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if taken.unsent:
            self.books.hand_in(Release(rid=request.rid, sent=False))
            return
        watch(lambda _why: self._abort(task))
        providers = self._stage.providers
        providers.begin(self.name, request, index, taken.cost_nanousd)
        try:
            await asyncio.sleep(taken.seconds)
        except asyncio.CancelledError:
            self._stage.facts.gone += 1
        finally:
            providers.end(request.rid)
            self._hand_in(request.rid, taken)

    def _abort(self, task: "asyncio.Task[None]") -> None:
        self._stage.facts.aborted += 1
        task.cancel()

    def _hand_in(self, rid: bytes, taken: "Taken") -> None:
        failed = Outcome.FAILURE if taken.failed else Outcome.SUCCESS
        self._stage.facts.handed_in[rid] = self.name
        self._stage.auditor.costs[rid] = taken.cost_nanousd
        self.books.hand_in(
            Settlement(
                rid=rid, input_tokens=taken.input_tokens, output_tokens=taken.output_tokens,
                cost_nanousd=taken.cost_nanousd, outcome=failed, failed_lanes=int(taken.failed), latency_us=1000,
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Taken:
    """How a call will go, if it is admitted."""

    seconds: float
    input_tokens: int
    output_tokens: int
    cost_nanousd: int
    failed: bool = False
    unsent: bool = False
    leaves_after: float | None = None
    """Its caller goes away then."""


@dataclass
class Stage:
    """What all of a run share."""

    loop: VirtualLoop
    network: Network
    auditor: Auditor
    providers: Providers
    facts: Facts = field(default_factory=Facts)
    workers: dict[int, Worker] = field(default_factory=dict)
    stops: Counter[int] = field(default_factory=Counter)
    """How often each worker was stopped or killed."""


class Caller:
    """Asks one thing after the other, of whichever worker is there. What it asks, is drawn from a seed of its own."""

    def __init__(self, number: int, seed: str, stage: Stage) -> None:
        self._number, self._stage = number, stage
        self._random = random.Random(f"{seed}/caller/{number}")
        self._asked = 0

    async def run(self) -> None:
        """Ask until the run ends."""
        chance, stage = self._random, self._stage
        while True:
            await asyncio.sleep(chance.expovariate(5.0))
            request, taken = self._draw()
            worker = stage.workers.get(chance.randrange(len(stage.workers)))
            if worker is None:
                continue
            stage.auditor.requests[request.rid] = request
            task = worker.ask(request, taken)
            if taken.leaves_after is not None:
                await asyncio.sleep(taken.leaves_after)
                task.cancel()

    def _draw(self) -> tuple[ReserveRequest, Taken]:
        chance = self._random
        self._asked += 1
        tokens, output = chance.randint(1, 900), chance.randint(1, 400)
        bound = chance.randint(50, 900)
        charge = Charge(
            input_tokens=tokens, output_tokens=output, expected_nanousd=bound // 2, bound_nanousd=bound,
            metered_tokens=chance.choice((None, tokens + 2 * output)),
        )  # fmt: skip
        ways = chance.sample(WAYS, chance.randint(1, len(WAYS)))
        candidates = tuple(Candidate(lanes=way, scopes=("key",), charge=charge) for way in ways)
        request = ReserveRequest(
            rid=self._number.to_bytes(8, "big") + self._asked.to_bytes(8, "big"), candidates=candidates,
            scopes=chance.choice((("all",), ("all", "team"), ("all", "soft"))), lease_us=LEASE_US,
            principal=chance.choice(("", f"p{self._number % 3}")),
        )  # fmt: skip
        taken = Taken(
            seconds=chance.choice((0.02, 0.1, 0.3, 1.0, 7.0)) * chance.uniform(0.5, 1.5),
            input_tokens=max(0, tokens + chance.randint(-200, 100)), output_tokens=chance.randint(0, 2 * output),
            cost_nanousd=chance.randint(0, bound), failed=chance.random() < 0.15, unsent=chance.random() < 0.05,
            leaves_after=self._leaves_after(),
        )  # fmt: skip
        return request, taken

    def _leaves_after(self) -> float | None:
        leaves = self._random.randrange(1000) < max(30, self._stage.network.odds(Kind.CANCEL, -1))
        return self._random.choice((0.0, 0.0005, 0.002, 0.1, 1.0)) if leaves else None


async def canary(worker: Worker, rid: bytes, stage: Stage) -> bool:
    """Whether a request is served for which there is room."""
    candidate = Candidate(lanes=(CANARY_LANE,), charge=Charge(expected_nanousd=1, bound_nanousd=1))
    request = ReserveRequest(rid=rid, candidates=(candidate,), scopes=(CANARY_SCOPE,), lease_us=LEASE_US)
    stage.auditor.requests[rid] = request
    try:
        answer = await worker.ledger.reserve(request)
    except LedgerUnavailableError:
        return False
    if not isinstance(answer, Admission):
        return False
    worker.books.held(request, 0)
    worker.books.hand_in(Release(rid=rid, sent=False))
    return True


_LANE_IDS = [lane.id for lane in LANES]


async def _nothing() -> None:
    """Nothing is due by time here."""


def _emit(*_: object, **__: object) -> None:
    """Nobody listens."""
