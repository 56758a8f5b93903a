"""One run: workers, network and store in one thread, under a plan of faults, before the eyes of the auditor.

Everything is drawn from the seed, so that the same plan gives the same history, step for step.
"""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from apikeyrouter.domain.models.accounting import State
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from tests.faults.auditor import Auditor, Step, Tally, ViolationError, shown
from tests.faults.clocks import SimulatedTime, in_the_library
from tests.faults.faults import LATE_US_MAX, LOSSY, Fault, Kind, Profile, drawn, profile_of
from tests.faults.houses import CANARY_LANE, house_of
from tests.faults.network import ANSWER_WITHIN_S, SNAPSHOT_EVERY_US, Network, Store
from tests.faults.virtual_loop import StalledError, VirtualLoop
from tests.faults.workload import LEASE_US, Caller, Facts, Providers, Stage, Worker, canary
from tests.ledger.support import HOUR, SECOND

CHECK_EVERY = 1000
HORIZON_US = 60 * SECOND
BEGINS_US = HOUR - 40 * SECOND
"""A run begins 40 seconds before budgets of an hour begin anew."""
SWEEP_US_MAX = 5 * SECOND
ABORTED_US_MAX = 4 * SECOND
"""So long after a lease was lost, in calm times, its call has been ended."""
HEALED_US = LATE_US_MAX + LEASE_US + SWEEP_US_MAX
WORKERS = 4
_SLOWEST_US = int(ANSWER_WITHIN_S * 1e6) + SECOND // 100
_WRONG_EVENTS = ("flush.failed", "settlement.refused", "reassert.refused")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: any part of it can be left out."""

    seed: int
    faults: tuple[Fault, ...]
    callers: tuple[int, ...]
    horizon_us: int = HORIZON_US

    @property
    def lossy(self) -> bool:
        """Whether acknowledged writes may be lost."""
        return any(fault.kind in LOSSY for fault in self.faults)

    @property
    def ordered(self) -> bool:
        """Whether messages keep their order, as on a connection. Every other seed."""
        return self.seed % 2 == 0


def plan_of(seed: int, *, horizon_us: int = HORIZON_US) -> Plan:
    """The plan of a seed."""
    faults = drawn(seed, workers=WORKERS, horizon_us=horizon_us)
    return Plan(seed, faults, tuple(range(house_of(seed).callers)), horizon_us)


@dataclass
class Outcome:
    """What came of a run."""

    plan: Plan
    tally: Tally
    facts: Facts
    violation: ViolationError | None = None
    steps: int = 0
    ended_us: int = 0
    trace: list[str | Step] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    checks: int = 0
    drift: int = 0
    leaked: int = 0
    stuck: int = 0
    lost_settlements: int = 0
    forgotten_settlements: int = 0
    forgotten_nanousd: int = 0
    suspected_after_us: int = 0
    """How long after the store's clock jumped a worker first said so."""
    over_budget_nanousd: int = 0
    """Most that was billed beyond a hard budget."""
    over_bound_nanousd: int = 0
    """Most that was billed beyond a hard budget and what the store forgot of it."""
    calls: int = 0
    calls_beyond: int = 0
    slabs: int = 0
    from_slabs: int = 0
    """Calls that were admitted from slabs."""
    stranded_nanousd: int = 0
    """Most that slabs held for no call, at once."""

    @property
    def reservations(self) -> int:
        """Calls that were admitted, by the store or from slabs; a slab itself is none."""
        return self.tally.admitted - self.slabs + self.from_slabs

    @property
    def digest(self) -> str:
        """The same for the same history, and for no other."""
        return hashlib.sha256("\n".join(map(shown, self.trace)).encode()).hexdigest()[:16]


def run(plan: Plan) -> Outcome:
    """Run a plan to its end, or to the first violation."""
    return Run(plan).go()


class Run:
    """One run under way."""

    def __init__(self, plan: Plan) -> None:
        seed = str(plan.seed)
        self._plan, self._seed = plan, seed
        self._loop = VirtualLoop(f"{seed}/loop")  # type: ignore[abstract]  # what is not there, nobody asks for
        house = house_of(plan.seed)
        self._auditor = Auditor(house.world)
        self._store = Store(self._loop, self._auditor, begins_us=BEGINS_US)
        self._network = Network(self._loop, self._store, seed, ordered=plan.ordered)
        self._clock = SimulatedTime(self._loop)
        self._stage = Stage(house, self._loop, self._network, self._auditor, Providers(self._auditor))
        self._faults = self._jumped_us = self._began_us = 0
        self._births: Counter[int] = Counter()
        self._killed: set[str] = set()
        self._reader = ScriptLedger(self._store.engine)
        self.outcome = Outcome(plan, self._auditor.tally, self._stage.facts)

    def go(self) -> Outcome:
        """Run it."""
        with in_the_library(self._clock, self._seed, self._told):
            self._auditor.on_step = self._check_now_and_then
            self._auditor.elapsed_us = lambda: self._loop.now_us
            self._loop.each_step = self._stop_at_violation
            try:
                self._loop.run_until_complete(self._all())
            except ViolationError as violation:
                self.outcome.violation = violation
            except StalledError as stalled:
                self.outcome.violation = ViolationError(f"I5 {stalled}")
            self._sum_up()
            self._loop.close()
        return self.outcome

    async def _all(self) -> None:
        await self._begin()
        self._began_us = self._loop.now_us
        callers = [asyncio.ensure_future(Caller(n, self._seed, self._stage).run()) for n in self._plan.callers]
        copying = asyncio.ensure_future(self._copy() if self._plan.lossy else _idle())
        faults = [asyncio.ensure_future(self._suffer(fault)) for fault in self._plan.faults]
        await asyncio.sleep(self._plan.horizon_us / 1e6)
        for task in (*callers, copying, *faults):
            task.cancel()
        await asyncio.wait([*callers, copying, *faults])
        await self._heal()
        await self._judge()

    async def _begin(self) -> None:
        first = self._new_worker(0)
        await first
        await asyncio.wait([self._new_worker(number) for number in range(1, WORKERS)])

    def _new_worker(self, number: int) -> "asyncio.Task[None]":
        self._births[number] += 1
        worker = Worker(f"worker-{number}.{self._births[number]}", number, self._stage)
        self._stage.workers[number] = worker
        return self._loop.spawn(worker.name, worker.run())

    async def _copy(self) -> None:
        """Copy the store as a replica would, where one of the faults goes back to."""
        wanted = [fault.at_us - fault.value for fault in self._plan.faults if fault.kind is Kind.RESTORE]
        while True:
            since_us = self._loop.now_us - self._began_us
            if any(-SECOND < since_us - at_us < SNAPSHOT_EVERY_US for at_us in wanted):
                self._store.copy()
            await asyncio.sleep(SNAPSHOT_EVERY_US / 1e6)

    # --- faults --------------------------------------------------------------------------------------------------

    async def _suffer(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_us / 1e6)
        self._auditor.trace.append(f"fault {fault}")
        self._trouble()
        match fault.kind:
            case Kind.RESTORE:
                self._store.restore(fault.value)
            case Kind.FLUSH:
                self._store.flush()
            case Kind.STORE_CLOCK:
                self._store.offset_us += fault.value
                self._auditor.slabs.jumps += 1
                self._jumped_us = self._jumped_us or self._loop.now_us
            case Kind.WORKER_CLOCK:
                name = self._stage.workers[max(0, fault.target)].name
                self._clock.wall_us[name] = self._clock.wall_us.get(name, 0) + fault.value
            case _:
                self._faults += 1
                await self._suffer_for_a_while(fault)
                self._faults -= 1
                self._trouble()

    def _trouble(self) -> None:
        self._stage.facts.calm_since_us = self._loop.now_us

    async def _suffer_for_a_while(self, fault: Fault) -> None:
        length = fault.length_us / 1e6
        match fault.kind:
            case Kind.CRASH:
                await self._crash(fault.target, length)
            case Kind.PAUSE:
                await self._pause(fault.target, length)
            case Kind.STORE_DOWN | Kind.STORE_FULL:
                what = "down" if fault.kind is Kind.STORE_DOWN else "full"
                setattr(self._store, what, True)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(length)
                setattr(self._store, what, False)
            case _:
                self._network.begin(fault)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(length)
                self._network.end(fault)

    async def _crash(self, number: int, length: float) -> None:
        dead = self._stage.workers[number]
        if dead.name in self._killed:
            return
        self._killed.add(dead.name)
        self._loop.kill(dead.name)
        self._stage.stops[number] += 1
        self._stage.providers.hung_up(dead.name)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(length)
        self._new_worker(number)

    async def _pause(self, number: int, length: float) -> None:
        name = self._stage.workers[number].name
        self._stage.stops[number] += 1
        self._loop.stop_process(name)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(length)
        self._stage.stops[number] += 1
        self._stage.resumed_us[number] = self._loop.now_us
        self._loop.go_on(name)

    async def _heal(self) -> None:
        """All faults are over, the store's clock is not behind; so much time passes as everything needs to end."""
        self._store.offset_us = max(self._store.offset_us, BEGINS_US)
        behind = self._auditor.books.written_us - self._store.clock()
        self._store.offset_us += max(0, behind)
        await asyncio.sleep(HEALED_US / 1e6)

    # --- judging -------------------------------------------------------------------------------------------------

    def _stop_at_violation(self) -> None:
        if self._auditor.violation is not None:
            raise self._auditor.violation
        if self._loop.errors:
            raise ViolationError(f"the library raised: {self._loop.errors[0]}")

    def _told(self, event: str, fields: dict[str, Any]) -> None:
        self.outcome.events[event] += 1
        wrong = event in _WRONG_EVENTS or (event == "housekeeping.failed" and not _is_of_the_ledger(fields))
        if wrong and self._auditor.violation is None:
            self._auditor.violation = ViolationError(f"I6 the library says {event}: {fields}")

    def _check_now_and_then(self) -> None:
        if self._auditor.count % CHECK_EVERY == 0:
            self._check()

    def _check(self) -> None:
        """The whole cell against the auditor's books, and the ledger's own audit."""
        self.outcome.checks += 1
        books, read = self._auditor.books, self._reader
        if not books.epoch:
            return
        known = books.world
        drift = at_once(read.audit(lanes=list(known.lanes), scopes=list(known.scopes)))
        self.outcome.drift += len(drift)
        _require(not drift, f"I2 the ledger's own audit finds {drift}")
        for state in at_once(read.scopes(list(known.scopes))):
            place = (state.id, state.starts_at_us)
            ours = (books.settled[place], books.held[place], books.suspense[place])
            theirs = (state.settled, state.held, state.suspense)
            _require(ours == theirs, f"I2, I6, I9 {place} has {theirs}, and must have {ours}")
        for lane in at_once(read.lanes(list(known.lanes))):
            _require(lane.in_flight == books.in_flight[lane.id], f"I2 {lane.id} has {lane.in_flight} in flight")
        open_ones = {record.rid for record in at_once(read.reservations())}
        _require(open_ones == books.open_ones(), f"I2 open: {len(open_ones)}, and must be {len(books.open_ones())}")
        self._check_money()
        self._check_calls()

    def _check_calls(self) -> None:
        """In calm times no call goes on whose lease is over (law 6)."""
        calm_us = self._loop.now_us - self._stage.facts.calm_since_us
        if self._faults or calm_us < ABORTED_US_MAX:
            return
        for rid, (worker, _) in self._stage.providers.running.items():
            over_us = self._loop.now_us - self._auditor.expired_at.get(rid, self._loop.now_us)
            _require(over_us < ABORTED_US_MAX, f"law 6: {worker} goes on with {rid.hex()}, whose lease is over")

    def _check_money(self) -> None:
        for place, billed in self._stage.providers.billed.items():
            scope = self._auditor.world.scopes[place[0]]
            over = billed - scope.limit_nanousd
            if scope.hard and over > 0:
                beyond = over - self._auditor.forgotten[place]
                self.outcome.over_budget_nanousd = max(self.outcome.over_budget_nanousd, over)
                self.outcome.over_bound_nanousd = max(self.outcome.over_bound_nanousd, beyond)
                _require(beyond <= 0, f"I1, I13 {place}: billed {over} beyond its limit, {beyond} beyond the bound")

    async def _judge(self) -> None:
        """After the end: nothing is open, nothing waits, nothing was lost, and what fits is served."""
        self._check()
        outcome, books = self.outcome, self._auditor.books
        outcome.stuck = sum(not task.done() for worker in self._stage.workers.values() for task in worker.calls)
        _require(not outcome.stuck, f"{outcome.stuck} requests are stuck")
        late = [rid for rid in books.open_ones() if books.held_by[rid].deadline_us + SWEEP_US_MAX < books.now_us]
        outcome.leaked = len(late)
        _require(not late, f"I5 {len(late)} reservations are open longer than their lease and a sweep")
        kept = [rid for worker in self._stage.workers.values() for rid in worker.books.open]
        _require(not kept, f"I5 workers hold {len(kept)} whose calls have ended")
        waiting = sum(worker.books.waiting for worker in self._stage.workers.values())
        _require(not waiting, f"I6 {waiting} settlements wait in outboxes")
        self._judge_settlements()
        if profile_of(self._plan.seed) is Profile.KILLS:
            late_us = self._auditor.tally.expired_late_us_max
            _require(late_us <= SWEEP_US_MAX, f"I5 a lease ended {late_us} us late")
        slowest = self._stage.facts.slowest_us
        _require(slowest <= _SLOWEST_US, f"a reserve took {slowest} us")
        await self._serve_again()

    def _judge_settlements(self) -> None:
        for rid, worker in self._stage.facts.handed_in.items():
            found = self._auditor.books.held_by.get(rid)
            if worker in self._killed:
                continue
            if rid not in self._auditor.booked:
                self.outcome.lost_settlements += 1
            elif found is None or found.state is not State.SETTLED:
                self.outcome.forgotten_settlements += 1
        lost = self.outcome.lost_settlements
        _require(not lost, f"I6 {lost} settlements that were handed in were not booked")

    async def _serve_again(self) -> None:
        lane = self._auditor.world.lanes[CANARY_LANE]
        for number, worker in self._stage.workers.items():
            served = await self._loop.spawn(worker.name, canary(worker, b"canary" + bytes([number]), self._stage))
            _require(served, f"{worker.name} serves nothing on {lane.id}, although all faults are over")

    def _sum_up(self) -> None:
        outcome = self.outcome
        outcome.steps, outcome.ended_us, outcome.trace = self._loop.steps, self._loop.now_us, self._auditor.trace
        outcome.suspected_after_us = max(0, self._auditor.suspected_at_us - self._jumped_us)
        outcome.forgotten_nanousd = sum(self._auditor.forgotten.values())
        slabs = self._auditor.slabs
        outcome.slabs, outcome.from_slabs, outcome.stranded_nanousd = len(slabs.slabs), slabs.calls, slabs.stranded_max
        outcome.calls, outcome.calls_beyond = self._stage.providers.calls, self._stage.providers.beyond_max


def at_once(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine that waits for nothing, but may let others go first: here there are none."""
    try:
        while work.send(None) is None:
            pass
    except StopIteration as ended:
        result: _T = ended.value
        return result
    raise AssertionError("it waits")


async def _idle() -> None:
    """A store that forgets nothing needs no copies."""


def _is_of_the_ledger(fields: dict[str, Any]) -> bool:
    return str(fields.get("kind", "")).startswith("Ledger")


def _require(holds: object, says: str) -> None:
    if not holds:
        raise ViolationError(says)
