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
from apikeyrouter.domain.components.quota_ends import QuotaEnds
from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    Denial,
    Outcome,
    ReserveRequest,
    Settlement,
    candidate_at,
)
from apikeyrouter.domain.models.system_error import LedgerError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.serving.bookkeeping import Bookkeeper, OpenHold, Release
from apikeyrouter.serving.housekeeping import Housekeeper, cell_now_us
from apikeyrouter.serving.presence import Presence
from apikeyrouter.serving.slabs import Slabs
from tests.faults.auditor import Auditor, ViolationError
from tests.faults.books import Place
from tests.faults.faults import Kind
from tests.faults.houses import CANARY_LANE, CANARY_SCOPE, House
from tests.faults.network import Line, Network
from tests.faults.virtual_loop import VirtualLoop
from tests.ledger.support import SECOND

LEASE_US = 5 * SECOND
TRIES = 2
_SCOPES = (("all",), ("all", "team"), ("all", "soft"))


@dataclass
class Providers:
    """What providers know: calls that run, and what they bill, whatever becomes of the caller."""

    auditor: Auditor
    running: dict[bytes, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    at_once: Counter[str] = field(default_factory=Counter)
    """Calls that run, by lane."""
    billed: Counter[Place] = field(default_factory=Counter)
    calls: int = 0
    beyond_max: int = 0
    """Most calls of one key at once beyond its limit: of workers that were stopped longer than their lease."""

    def begin(self, worker: str, request: ReserveRequest, index: int, cost_nanousd: int, held_by: bytes) -> None:
        """A call arrives, and is billed. `held_by`: the reservation that holds what it takes, its own or a slab."""
        rid, lanes = request.rid, request.candidates[index].lanes
        self.running[rid] = (worker, lanes)
        self.calls += 1
        found = self.auditor.books.held_by.get(held_by)
        start_of = {part.scope: part.start_us for part in found.parts} if found else {}
        for scope in (*request.scopes, *request.candidates[index].scopes):
            start = start_of.get(scope, self.auditor.world.period_start(scope, self.auditor.books.now_us))
            self.billed[scope, start] += cost_nanousd
        for lane in lanes:
            self.at_once[lane] += 1
            for limit in self.auditor.world.lanes[lane].limits:
                if limit.name == "concurrency":
                    self.beyond_max = max(self.beyond_max, self.at_once[lane] - limit.amount)

    def end(self, rid: bytes) -> None:
        """It is over."""
        call = self.running.pop(rid, None)
        if call is not None:
            self.at_once.subtract(call[1])

    def hung_up(self, worker: str) -> None:
        """A process is gone, and its calls with it."""
        for rid in [rid for rid, call in self.running.items() if call[0] == worker]:
            self.end(rid)


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


class ToldLedger(ScriptLedger):
    """A ledger of which the auditor hears what it is asked to hold, by whomever."""

    def __init__(self, line: Line, auditor: Auditor) -> None:
        super().__init__(line, tries=TRIES)
        self._auditor = auditor

    async def reserve(self, request: ReserveRequest) -> Admission | Denial:
        """Hold, as ever."""
        self._auditor.requests[request.rid] = request
        return await super().reserve(request)


class ToldBooks(Bookkeeper):
    """Books of which the stage hears which slabs were handed in."""

    def __init__(self, ledger: ScriptLedger, handed_in: Callable[[bytes], None]) -> None:
        super().__init__(ledger)
        self._told = handed_in

    def hand_in(self, end: Settlement | Release) -> None:
        """Note an end, as ever."""
        if isinstance(end, Settlement) and end.slab is not None:
            self._told(end.rid)
        super().hand_in(end)


class Worker:
    """One process: it begins, serves its callers, and is killed or closed."""

    def __init__(self, name: str, number: int, stage: "Stage") -> None:
        self.name, self.number, self._stage = name, number, stage
        self.ledger = ToldLedger(Line(stage.network, name, number), stage.auditor)
        self.books = ToldBooks(self.ledger, lambda rid: stage.facts.handed_in.update({rid: name}))
        self.ledger.on_unanswered = self.books.cancel
        self.keeper = Housekeeper(
            self.ledger, self.books, Snapshot(), CapacityWatch(), lambda: stage.lane_ids, self._configure, _nothing,
            ends=QuotaEnds({}), emit=_emit,
        )  # fmt: skip
        world = stage.house.world
        self.slabs = Slabs(
            self.ledger, self.books, Presence(self.ledger, self.books, lease_us=LEASE_US),
            lane_config=world.lanes.__getitem__, scope_config=world.scopes.get,
            now_us=lambda: cell_now_us(self.ledger),
        )  # fmt: skip
        self.admits: ToldLedger | Slabs = self.ledger
        if stage.house.slabs:
            self.admits, self.keeper.slabs = self.slabs, lambda: self.slabs.tick(wanted=True)
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
            answer = await self.admits.reserve(request)
        except LedgerError:
            facts.refused += 1
            return
        finally:
            busy = began < self._stage.resumed_us[self.number] + SECOND
            if stops == self._stage.stops[self.number] and not busy:
                facts.slowest_us = max(facts.slowest_us, loop.now_us - began)
        if not isinstance(answer, Admission):
            facts.denied += 1
            return
        facts.admitted += 1
        hold = self.books.held(request, answer.index)
        if answer.slab:
            self._stage.took(answer.slab, request)
            self.slabs.joined(hold, answer.slab)
        await self._call(request, answer, taken, hold)

    async def _call(self, request: ReserveRequest, answer: Admission, taken: "Taken", hold: OpenHold) -> None:
        task = asyncio.current_task()
        assert task is not None
        if taken.unsent:
            if answer.slab:
                self._stage.auditor.slabs.ended(answer.slab, request.rid, None)
            self.books.hand_in(Release(rid=request.rid, sent=False))
            return
        hold.abort = lambda _why: self._abort(task)
        providers = self._stage.providers
        providers.begin(self.name, request, answer.index, taken.cost_nanousd, answer.slab or request.rid)
        try:
            await asyncio.sleep(taken.seconds)
        except asyncio.CancelledError:
            self._stage.facts.gone += 1
        finally:
            providers.end(request.rid)
            self._hand_in(request.rid, taken, answer.slab)

    def _abort(self, task: "asyncio.Task[None]") -> None:
        self._stage.facts.aborted += 1
        task.cancel()

    def _hand_in(self, rid: bytes, taken: "Taken", slab: bytes) -> None:
        failed = Outcome.FAILURE if taken.failed else Outcome.SUCCESS
        if slab:
            self._stage.auditor.slabs.ended(slab, rid, taken.cost_nanousd)
        else:
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

    house: House
    loop: VirtualLoop
    network: Network
    auditor: Auditor
    providers: Providers
    facts: Facts = field(default_factory=Facts)
    workers: dict[int, Worker] = field(default_factory=dict)
    stops: Counter[int] = field(default_factory=Counter)
    """How often each worker was stopped or killed."""
    resumed_us: Counter[int] = field(default_factory=Counter)
    """When each worker that was stopped went on: it has much to do then, and is late for that."""

    def __post_init__(self) -> None:
        canary = (CANARY_LANE,)
        self.lane_ids = [id_ for id_ in self.house.world.lanes if id_ not in canary]

    def took(self, slab: bytes, request: ReserveRequest) -> None:
        """A call was admitted from a slab."""
        auditor, charge = self.auditor, request.candidates[0].charge
        now_us = max(self.network.store.clock(), auditor.books.written_us)
        wrong = auditor.slabs.take(
            slab, request.rid, charge, auditor.books, now_us=now_us, true_us=self.loop.now_us
        )  # fmt: skip
        if wrong and auditor.violation is None:
            auditor.violation = ViolationError(wrong)


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
            await asyncio.sleep(chance.expovariate(stage.house.per_second))
            worker = stage.workers.get(int(chance.random() * len(stage.workers)))
            if worker is None:
                continue
            request, taken = self._draw(worker.ledger.stamp.config_version)
            task = worker.ask(request, taken)
            if taken.leaves_after is not None:
                await asyncio.sleep(taken.leaves_after)
                task.cancel()

    def _draw(self, version: int) -> tuple[ReserveRequest, Taken]:
        chance, house = self._random, self._stage.house
        self._asked += 1
        tokens, output, bound = 1 + self._below(900), 1 + self._below(400), 50 + self._below(851)
        charge = Charge(
            input_tokens=tokens, output_tokens=output, expected_nanousd=bound // 2, bound_nanousd=bound,
            metered_tokens=chance.choice((None, tokens + 2 * output)),
        )  # fmt: skip
        scopes, principal = chance.choice(_SCOPES), chance.choice(("", f"p{self._number % 3}"))
        ways = chance.sample(house.ways, chance.randint(1, len(house.ways)))
        if house.slabs:  # as one client's requests are: alike
            scopes, principal = _SCOPES[self._number % 2], f"p{self._number % 2}"
            ways = sorted(house.ways, key=lambda way: way is not house.ways[self._number % 2])
        request = ReserveRequest(
            rid=self._number.to_bytes(8, "big") + self._asked.to_bytes(8, "big"),
            candidates=tuple(candidate_at(way, charge) for way in ways),
            scopes=scopes, lease_us=LEASE_US, principal=principal, config_version=version if house.slabs else 0,
        )  # fmt: skip
        taken = Taken(
            seconds=chance.choice(house.seconds) * (0.5 + chance.random()),
            input_tokens=max(0, tokens + self._below(301) - 200), output_tokens=self._below(2 * output + 1),
            cost_nanousd=self._below(bound + 1), failed=chance.random() < house.fails, unsent=chance.random() < 0.05,
            leaves_after=self._leaves_after(),
        )  # fmt: skip
        return request, taken

    def _below(self, limit: int) -> int:
        return int(self._random.random() * limit)

    def _leaves_after(self) -> float | None:
        leaves = self._below(1000) < max(30, self._stage.network.odds(Kind.CANCEL, -1))
        return self._random.choice((0.0, 0.0005, 0.002, 0.1, 1.0)) if leaves else None


async def canary(worker: Worker, rid: bytes, stage: Stage) -> bool:
    """Whether a request is served for which there is room."""
    candidate = Candidate(lanes=(CANARY_LANE,), charge=Charge(expected_nanousd=1, bound_nanousd=1))
    request = ReserveRequest(rid=rid, candidates=(candidate,), scopes=(CANARY_SCOPE,), lease_us=LEASE_US)
    try:
        answer = await worker.ledger.reserve(request)
    except LedgerUnavailableError:
        return False
    if not isinstance(answer, Admission):
        return False
    worker.books.held(request, 0)
    worker.books.hand_in(Release(rid=rid, sent=False))
    return True


async def _nothing() -> None:
    """Nothing is due by time here."""


def _emit(*_: object, **__: object) -> None:
    """Nobody listens."""
