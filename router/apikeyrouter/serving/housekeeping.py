"""Housekeeping: what a process does for the cell between requests. Sweeps, renews, refreshes its view of the lanes."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from apikeyrouter.domain.components.capacity import CapacityWatch, Level
from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.components.quota_ends import QuotaEnds
from apikeyrouter.domain.interfaces.observability import Emit
from apikeyrouter.domain.models.accounting import LaneState
from apikeyrouter.domain.models.system_error import LedgerError
from apikeyrouter.infrastructure.cancellation import end_task, stop_if_cancelled
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.spread_ledger import RESTORING, AnyLedger
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.serving.bookkeeping import Bookkeeper
from apikeyrouter.serving.escrow import Escrow
from apikeyrouter.serving.lane_reading import reading_of
from apikeyrouter.serving.spread_books import AnyBooks
from apikeyrouter.serving.standby import Standby

TICK_SECONDS = 0.25
SWEEP_ROUNDS_MAX = 64
LANES_AT_ONCE = 512
"""So many lanes are taken in before requests get their turn."""
ORDER_STEPS_PER_TICK, OPTIONS_PER_STEP = 20, 128
"""Of large pools, so many options are scored anew in a tick, with room for requests after each step."""
LEASE_US = 30_000_000
CLOCK_DISAGREEMENT_US = 2_000_000
CLOCK_AGREES_AGAIN_SECONDS = 5.0
_log = EventLog("apikeyrouter")


class CellKeeper:
    """What a process does for one cell: repairs what it forgot, renews leases, sweeps, compares clocks."""

    def __init__(
        self,
        ledger: ScriptLedger,
        books: Bookkeeper,
        restore: Callable[[], Awaitable[None]],
        lease_us: Callable[[], int],
    ) -> None:
        self._ledger, self._books, self._restore, self._lease_us = ledger, books, restore, lease_us
        self._next_sweep = 0.0
        self._repaired = 0
        self._clock = ClockWatch()

    @property
    def clock_suspected(self) -> bool:
        """Whether the cell's clock has been seen to run otherwise than this process's."""
        return bool(self._clock.suspects)

    async def tick(self) -> None:
        """One round. A cell that cannot be repaired as long as another is away has its leases renewed all the same."""
        if self._ledger.forgotten != self._repaired:
            try:
                await self._repair()
            except LedgerError:
                await self._renew()  # what it waits for may be another cell
                raise
        await self._books.tell_unheard()
        await self._renew()
        await self._books.acknowledge()
        if time.perf_counter() >= self._next_sweep:
            self._next_sweep = time.perf_counter() + random.uniform(0.8, 1.2)  # noqa: S311 (spreads workers)
            await self._sweep()
        await self._compare_clocks()

    async def _repair(self) -> None:
        """The store forgot writes (law 9): have it admit less for a lease, bring back the configuration and every open
        reservation of this process.
        """
        await self._ledger.open()
        cautious_until_us = await self._ledger.note_forgotten(lease_us=self._lease_us())
        seen = self._ledger.forgotten
        restoring = RESTORING.set(True)
        try:
            await self._restore()
        finally:
            RESTORING.reset(restoring)
        reasserted, replayed = await self._books.reassert(), self._books.replay()
        self._repaired = seen
        cautious_seconds = max(0, cautious_until_us - cell_now_us(self._ledger)) / 1e6
        _log.warning(
            "store.forgot", reasserted=reasserted, replayed=replayed, cautious_seconds=round(cautious_seconds, 1)
        )

    async def _renew(self) -> None:
        """Renew leases. A lost one ends its call, unless the store forgot it: then it is told again first."""
        lost = await self._books.renew()
        if lost and self._ledger.forgotten == self._repaired:
            _log.warning("lease.lost", count=len(lost))
            self._books.give_up(lost, "the ledger gave up this call's lease, so the call was aborted")

    async def _sweep(self) -> None:
        for _ in range(SWEEP_ROUNDS_MAX):
            if await self._ledger.sweep() == 0:
                return

    async def _compare_clocks(self) -> None:
        suspected = self._clock.suspects
        verdict = self._clock.compare(*self._ledger.clock)
        if verdict is not None:
            if verdict or suspected:
                _log.warning("clock.suspected" if verdict else "clock.agrees")
            await self._ledger.suspect_clock(verdict)


class Housekeeper:
    """Runs a tick every quarter of a second. A failed tick is logged once per outage and tried again."""

    def __init__(
        self,
        ledger: AnyLedger,
        books: AnyBooks,
        snapshot: Snapshot,
        watch: CapacityWatch,
        lane_ids: Callable[[], Sequence[str]],
        restore: Callable[[], Awaitable[None]],
        periodic: Callable[[], Awaitable[None]],
        *,
        ends: QuotaEnds,
        emit: Emit,
    ) -> None:
        self._ledger, self._snapshot, self._watch, self._ends = ledger, snapshot, watch, ends
        pairs = zip(ledger.cells, books.cells, strict=True)
        self._cells = [CellKeeper(cell, books_of_cell, restore, lambda: self.lease_us) for cell, books_of_cell in pairs]
        self._known_ids: Sequence[str] = ()
        self._lane_ids, self._periodic, self._emit = lane_ids, periodic, emit
        self._reading = reading_of(ledger)
        self._task: asyncio.Task[None] | None = None
        self.healthy = True
        self.lease_us = LEASE_US
        """How long calls hold what they hold: so long the cell is cautious when it forgot."""
        self.standby: Standby | None = None
        """Who holds this process's share for when the store is away."""
        self.slabs: Callable[[], Awaitable[None]] = _nothing
        """Looks after the slabs."""
        self.escrow: Escrow | None = None
        """Who moves money between cells."""

    @property
    def clock_suspected(self) -> bool:
        """Whether a cell's clock has been seen to run otherwise than this process's."""
        return any(cell.clock_suspected for cell in self._cells)

    def start(self) -> None:
        """Begin ticking."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="apikeyrouter.housekeeper")

    def begin_anew(self) -> None:
        """The loop that it ticked on has ended, or is a parent process's."""
        self._task = None

    async def close(self) -> None:
        """Stop."""
        await end_task(self._task)
        self._task = None

    async def _run(self) -> None:
        while True:
            stop_if_cancelled()
            try:
                await self.tick()
                if not self.healthy:
                    _log.info("ledger.recovered")
                self.healthy = True
            except Exception as exc:
                if self.healthy or not isinstance(exc, LedgerError):
                    _log.warning("housekeeping.failed", error=str(exc), kind=type(exc).__name__)
                self.healthy = False
            await asyncio.sleep(TICK_SECONDS)

    async def tick(self) -> None:
        """One round: what is due in each cell, then the snapshot and orders. A cell that is away holds up no other."""
        trouble: LedgerError | None = None
        for cell in self._cells:
            try:
                await cell.tick()
            except LedgerError as exc:
                if len(self._cells) == 1:
                    raise
                trouble = exc
        await self.refresh()
        if self.standby is not None:
            await self.standby.tick()
        await self.slabs()
        if self.escrow is not None:
            await self.escrow.tick()
        await self._periodic()
        await self._renew_orders()
        if trouble is not None:
            raise trouble

    async def refresh(self) -> None:
        """Read what may have changed of the lanes."""
        ids = self._lane_ids()
        if ids is not self._known_ids:
            gone = set(self._known_ids).difference(ids)
            self._watch.forget(gone)
            for lane_id in gone:
                self._snapshot.capacity.pop(lane_id, None)
            self._known_ids = ids
        try:
            lanes = self._ends.in_lanes(await self._reading.read(ids))
            for start in range(0, max(1, len(lanes)), LANES_AT_ONCE):
                self._take(lanes[start : start + LANES_AT_ONCE])
                if start + LANES_AT_ONCE < len(lanes):
                    await asyncio.sleep(0)
        except BaseException:
            self._reading.begin_anew()
            raise

    def _take(self, lanes: Sequence[LaneState]) -> None:
        """Take in what was read, and tell what has come to be otherwise."""
        for lane in lanes:
            known = self._snapshot.lanes.get(lane.id)
            if lane.breaker != ("closed" if known is None else known.breaker):
                self._tell_of_breaker(lane)
        now_us = cell_now_us(self._ledger)
        levels = self._watch.see(lanes, now_us)
        for lane_id, level in levels.items():
            before = self._snapshot.capacity.get(lane_id, Level.ABUNDANT)
            if level is not before:
                told = {"from_state": before.state.value, "to_state": level.state.value}
                self._emit("quota.state_changed", lane=lane_id, **told)
        self._snapshot.take(lanes, now=time.perf_counter(), now_us=now_us, levels=levels)
        out = self._snapshot.out
        self._reading.note(lanes, lambda lane: lane.id in out or bool(levels[lane.id]) or lane.breaker != "closed")

    async def _renew_orders(self) -> None:
        """Score large pools anew, for requests found their orders out of date; a bounded number of options a tick."""
        wanted = self._snapshot.wanted
        for _ in range(ORDER_STEPS_PER_TICK):
            if not wanted:
                return
            pool, which = next(iter(wanted))
            if pool.renew(which, self._snapshot, time.perf_counter(), OPTIONS_PER_STEP):
                del wanted[pool, which]
            await asyncio.sleep(0)

    def _tell_of_breaker(self, lane: LaneState) -> None:
        if lane.breaker == "closed":
            self._emit("circuit.closed", lane=lane.id)
        elif lane.breaker == "open":
            self._emit("circuit.opened", lane=lane.id, until_us=lane.breaker_until_us)


async def _nothing() -> None:
    """There are none."""


def cell_now_us(ledger: AnyLedger) -> int:
    """The cell's time now, from its last answer and what has passed here since. Unix microseconds."""
    cell_us, own_us = ledger.clock
    return cell_us + time.monotonic_ns() // 1000 - own_us if cell_us else time.time_ns() // 1000


class ClockWatch:
    """Compares the advance of the cell's clock with this process's own (law 3). Pure.

    It takes two answers in a row that disagree: one that waited while this process was stopped looks alike. What others
    have said of the clock is not known here, and those who doubted may be dead: who agrees for some time after its
    beginning says so once.
    """

    def __init__(self) -> None:
        self._base: tuple[int, int] | None = None
        self._seen_us = self._agrees_since_us = 0
        self._disagreed = False
        self.suspects: bool | None = None
        """What this process has said last of the cell's clock; None: nothing yet."""

    def compare(self, cell_us: int, own_us: int) -> bool | None:
        """True: the clocks have come to disagree by more than 2 s. False: they agree (again). None: nothing new."""
        if cell_us == 0 or own_us == self._seen_us:
            return None
        self._seen_us = own_us
        if self._base is None:
            self._base, self._agrees_since_us = (cell_us, own_us), own_us
            return None
        apart = abs((cell_us - self._base[0]) - (own_us - self._base[1]))
        if apart <= CLOCK_DISAGREEMENT_US:
            self._disagreed = False
            return self._say(False) if own_us - self._agrees_since_us > CLOCK_AGREES_AGAIN_SECONDS * 1e6 else None
        if not self._disagreed:
            self._disagreed = True
            return None
        self._base, self._agrees_since_us, self._disagreed = (cell_us, own_us), own_us, False
        return self._say(True)

    def _say(self, suspects: bool) -> bool | None:
        before, self.suspects = self.suspects, suspects
        return None if before is suspects else suspects
