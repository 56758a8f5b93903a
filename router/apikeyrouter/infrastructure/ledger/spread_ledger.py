"""The ledger of a namespace with several cells: what belongs to one cell goes there, what belongs to all goes to all.

Reservations are found by their id, which says the cell (`CELL_AT`). A budget that several cells spend is at home in the
first; `escrow.py` moves its money.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import reduce
from typing import Protocol, TypeVar

from msgspec import structs

from apikeyrouter.domain.components.cells import CellLayout
from apikeyrouter.domain.models.accounting import (
    CELL_AT,
    Admission,
    Denial,
    LaneConfig,
    LaneState,
    Observation,
    ReserveRequest,
    ScopeConfig,
    ScopeState,
    Settlement,
    Stamp,
    Transition,
)
from apikeyrouter.domain.models.escrow import ChildBooks
from apikeyrouter.domain.models.system_error import (
    LedgerAwayError,
    LedgerConfigError,
    LedgerProtocolError,
    LedgerUnavailableError,
    StaleConfigError,
)
from apikeyrouter.infrastructure.ledger.cell_ledger import CellLedger
from apikeyrouter.infrastructure.ledger.drift import Drift
from apikeyrouter.infrastructure.ledger.engine import Engine
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.records import ReservationRecord

ROOM_ROUNDS_MAX = 8
"""How often a request is tried again for which money was fetched, if others take it."""
ROOM_SECONDS_MAX = 0.25
"""Longest that it waits for that, in all."""
_VERSIONS_KEPT = 8
_BREAKERS = ("closed", "half_open", "open")
_T = TypeVar("_T")


class Funding(Protocol):
    """Who moves a budget's money between cells."""

    async def room(self, cell: int, request: ReserveRequest, denial: Denial, *, until: float) -> Denial | None:
        """Make room for what a cell denied for want of money; None: try again. Else the denial as all cells have it.

        `until`: how long there is for that, in the loop's time.
        """
        ...


class SpreadGate:
    """Whether the store answers, of all cells."""

    def __init__(self, cells: Sequence[CellLedger]) -> None:
        self._gates = [cell.gate for cell in cells]

    @property
    def away(self) -> bool:
        """Whether no cell answers."""
        return all(gate.away for gate in self._gates)

    @property
    def times_away(self) -> int:
        """How often a cell went away."""
        return sum(gate.times_away for gate in self._gates)


class SpreadLedger:
    """One `ScriptLedger` a cell behind the same methods. `group_of`: the quota group of a key; None: nobody knows."""

    def __init__(
        self, layout: CellLayout, cells: Sequence[CellLedger], *, group_of: Callable[[str], str | None]
    ) -> None:
        self.layout, self.cells = layout, tuple(cells)
        self.home = self.cells[0]
        self.gate = SpreadGate(self.cells)
        self.funding: Funding | None = None
        self._group_of = group_of
        self._groups = sorted(layout.groups, key=len, reverse=True)
        self._versions: dict[int, tuple[int, ...]] = {}

    # --- where things are ----------------------------------------------------------------------------------------

    def of_rid(self, rid: bytes) -> CellLedger:
        """The cell of a reservation. Raises LedgerProtocolError: there is no such cell."""
        number = rid[CELL_AT]
        if number >= len(self.cells):
            raise LedgerProtocolError(f"reservation {rid.hex()} is of cell {number}, and there are {len(self.cells)}")
        return self.cells[number]

    def of_lane(self, lane: str) -> int | None:
        """The number of the cell of a lane; None: each has its own of that name, or nobody knows yet whose it is."""
        kind, _, name = lane.partition(":")
        if kind == "g":
            group = next((group for group in self._groups if name.startswith(f"{group}:")), "")
            return self.layout.of_group(group)
        if kind == "k":
            group_of_key = self._group_of(name)
            return None if group_of_key is None else self.layout.of_group(group_of_key)
        if kind == "c":
            return self.layout.of_client(name)
        return None if kind in ("p", "f") else 0

    def of_booking(self, *, lanes: Iterable[str] = (), scopes: Iterable[str] = ()) -> int:
        """The cell in which something is booked that nobody asked for: its keys', else its tenant's, else the first."""
        for lane in lanes:
            if lane[0] in "kg" and (number := self.of_lane(lane)) is not None:
                return number
        return next((self._of_scope(scope) or 0 for scope in scopes), 0)

    def _of_scope(self, scope: str) -> int | None:
        kind, _, rest = scope.partition(":")
        return self.of_lane(f"k:{rest.rpartition(':')[0]}") if kind == "key" else self.layout.of_scope(scope)

    # --- the whole -----------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The first cell's."""
        return self.home.engine

    def renew_engines(self, anew: Callable[[Engine, int], Engine]) -> None:
        """Go on with the engines that `anew` makes of these and the numbers of their cells."""
        for number, cell in enumerate(self.cells):
            cell.engine = anew(cell.engine, number)

    @property
    def stamp(self) -> Stamp:
        """The first cell's, with a version of the configuration that changes when any cell's does."""
        versions = tuple(cell.stamp.config_version for cell in self.cells)
        version = sum(versions)
        if self._versions.get(version) != versions:
            self._versions[version] = versions
            while len(self._versions) > _VERSIONS_KEPT:
                del self._versions[next(iter(self._versions))]
        return structs.replace(self.home.stamp, config_version=version)

    @property
    def clock(self) -> tuple[int, int]:
        """The first cell's time and ours, when it answered last."""
        return self.home.clock

    @property
    def forgotten(self) -> int:
        """How often a cell proved to have forgotten writes."""
        return sum(cell.forgotten for cell in self.cells)

    async def open(self) -> Stamp:
        """Open every cell, the first one first: it says how they are laid out."""
        await self.home.open()
        await _all(cell.open() for cell in self.cells[1:])
        return self.stamp

    async def close(self) -> None:
        """Close every cell."""
        await _all(cell.close() for cell in self.cells)

    def abandon(self) -> object:
        """What each still had to do is a parent process's."""
        return [cell.abandon() for cell in self.cells]

    # --- one request ---------------------------------------------------------------------------------------------

    async def reserve(self, request: ReserveRequest) -> Admission | Denial:
        """Hold one candidate or nothing, in the cell that the id names. What a cell denies because its part of a budget
        is spent is asked for again when there was more elsewhere.
        """
        number, version = request.rid[CELL_AT], request.config_version
        ledger = self.of_rid(request.rid)
        if version:
            known = self._versions.get(version)
            if known is None:
                raise StaleConfigError(self.stamp.config_version)
            request = structs.replace(request, config_version=known[number])
        answer = await ledger.reserve(request)
        if self.funding is None or isinstance(answer, Admission):
            return answer
        until = asyncio.get_running_loop().time() + ROOM_SECONDS_MAX
        for _ in range(ROOM_ROUNDS_MAX):
            left = await self.funding.room(number, request, answer, until=until)
            if left is not None:
                return left
            answer = await ledger.reserve(request)
            if isinstance(answer, Admission):
                break
        return answer

    async def claim(self, request: ReserveRequest, *, stay_us: int) -> Stamp:
        """Note in the cell that denied it that this will be asked for again."""
        return await self.of_rid(request.rid).claim(request, stay_us=stay_us)

    async def settle(self, settlement: Settlement) -> Transition:
        """Book what was really used."""
        return await self.of_rid(settlement.rid).settle(settlement)

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Transition]:
        """`settle` for each, together in each cell."""
        booked: dict[bytes, Transition] = {}
        for cell in self.cells:
            mine = [one for one in settlements if self.of_rid(one.rid) is cell]
            booked.update(zip((one.rid for one in mine), await cell.settle_many(mine), strict=True))
        return [booked[one.rid] for one in settlements]

    async def release(self, rid: bytes, *, sent: bool, failed_lanes: int = 0, latency_us: int = 0) -> Transition:
        """Give back what was certainly not billed."""
        return await self.of_rid(rid).release(rid, sent=sent, failed_lanes=failed_lanes, latency_us=latency_us)

    async def cancel(self, rid: bytes) -> Transition:
        """End an ambiguous reserve."""
        return await self.of_rid(rid).cancel(rid)

    async def reassert(self, request: ReserveRequest, *, index: int) -> Transition:
        """Book an open reservation again after the store forgot it."""
        return await self.of_rid(request.rid).reassert(request, index=index)

    async def renew(self, rids: Sequence[bytes], *, lease_us: int) -> list[bytes]:
        """Extend leases; returns what is no longer open."""
        lost: list[bytes] = []
        for cell in self.cells:
            lost += await cell.renew([rid for rid in rids if self.of_rid(rid) is cell], lease_us=lease_us)
        return lost

    async def acknowledge(self, rids: Sequence[bytes]) -> None:
        """Let tombstones of settlements that were seen go soon."""
        for cell in self.cells:
            await cell.acknowledge([rid for rid in rids if self.of_rid(rid) is cell])

    # --- time and providers --------------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """Let time do its work in every cell."""
        return sum(await _all(cell.sweep() for cell in self.cells))

    async def record(self, lane: str, *, observations: Sequence[Observation] = (), blocked_for_us: int = 0) -> Stamp:
        """Re-sync a lane with what its provider said, wherever there is one of its name."""
        told = (
            cell.record(lane, observations=observations, blocked_for_us=blocked_for_us) for cell in self._with(lane)
        )
        await _all(told)
        return self.stamp

    async def restart(self, lane: str, *, limits: Sequence[str] = (), cooling: bool = False) -> Stamp:
        """Let these limits of a lane begin anew, and (`cooling`) the lane cool no more."""
        await _all(cell.restart(lane, limits=limits, cooling=cooling) for cell in self._with(lane))
        return self.stamp

    async def suspect_clock(self, suspected: bool) -> Stamp:
        """Mark or clear doubt about every cell's clock."""
        await _all(cell.suspect_clock(suspected) for cell in self.cells)
        return self.stamp

    def _with(self, lane: str) -> Sequence[CellLedger]:
        number = self.of_lane(lane)
        return self.cells if number is None else (self.cells[number],)

    # --- configuration -------------------------------------------------------------------------------------------

    async def put(self, *, lanes: Sequence[LaneConfig] = (), scopes: Sequence[ScopeConfig] = ()) -> Stamp:
        """Add or change lanes and scopes, each where it belongs. A scope that several cells spend is limited at home.

        Raises:
            LedgerConfigError: a client has limits of its own and is bound to no cell.
        """
        placed: list[list[LaneConfig]] = [[] for _ in self.cells]
        for lane in lanes:
            number = self.of_lane(lane.id)
            if number is None and lane.id.startswith("c:") and lane.limits:
                raise LedgerConfigError(
                    f"client {lane.id[2:]!r} has limits of its own, and those are counted in one cell: name it among"
                    " the clients of one (accounting.cells)"
                )
            for at in range(len(self.cells)) if number is None else (number,):
                placed[at].append(lane)
        await _all_but_away(self._put(number, placed[number], scopes) for number in range(len(self.cells)))
        return self.stamp

    async def _put(self, number: int, lanes: list[LaneConfig], scopes: Sequence[ScopeConfig]) -> None:
        cell, spans = self.cells[number], self.layout.spans
        await cell.put(lanes=lanes, scopes=[scope for scope in scopes if not (number and spans(scope.id))])
        if number:
            await cell.put_funded([scope for scope in scopes if spans(scope.id)])

    # --- reading -------------------------------------------------------------------------------------------------

    async def lanes(self, ids: Sequence[str], *, since_seq: int = 0) -> list[LaneState]:
        """State of those lanes that are there; of one that several cells have, what all of them say together."""
        return await self._lanes(ids, _all)

    async def lanes_in_reach(self, ids: Sequence[str]) -> list[LaneState]:
        """The same of those cells that answer. Raises LedgerUnavailableError where none does."""
        return await self._lanes(ids, _some)

    async def _lanes(self, ids: Sequence[str], together: "_Gather") -> list[LaneState]:
        wanted: list[list[str]] = [[] for _ in self.cells]
        for lane in ids:
            number = self.of_lane(lane)
            for at in range(len(self.cells)) if number is None else (number,):
                wanted[at].append(lane)
        told = await together(cell.lanes(mine) for cell, mine in zip(self.cells, wanted, strict=True) if mine)
        found: dict[str, list[LaneState]] = {}
        for state in (state for states in told for state in states):
            found.setdefault(state.id, []).append(state)
        return [reduce(_together, found[lane]) for lane in ids if lane in found]

    async def scopes(self, ids: Sequence[str], *, since_seq: int = 0) -> list[ScopeState]:
        """State of those scopes that are there, in all cells together, and by cell."""
        books = await _all(self._states(ids, number) for number in range(len(self.cells)))
        cells = list(zip(self.layout.cells, books, strict=True))
        found = ((id_, [(cell.name, states[id_]) for cell, states in cells if id_ in states]) for id_ in ids)
        return [_summed(by_cell, spans=self.layout.spans(id_)) for id_, by_cell in found if by_cell]

    async def _states(self, ids: Sequence[str], number: int) -> dict[str, ScopeState]:
        """A cell's books. What the home has granted is not among what it holds; what lies free elsewhere: `granted`."""
        states = {state.id: state for state in await self.cells[number].scopes(ids)}
        spanning = [id_ for id_ in ids if self.layout.spans(id_)]
        if number == 0:
            own = await _all(self._own(id_, states.get(id_)) for id_ in spanning)
            states.update((state.id, state) for state in own if state is not None)
        else:
            states.update((id_, _child(states[id_])) for id_ in spanning if id_ in states)
        return states

    async def _own(self, id_: str, state: ScopeState | None) -> ScopeState | None:
        """What a scope has spent at home, as of now; None: nobody has declared it."""
        try:
            books = await self.home.grant(id_, 1, ChildBooks())
        except LedgerConfigError:
            return None
        current = state is not None and state.starts_at_us == books.start_us
        return ScopeState(
            id=id_, seq=0 if state is None else state.seq, limit=books.limit, hard=state is not None and state.hard,
            settled=books.settled, held=books.held - books.granted, suspense=books.suspense,
            unpriced=state.unpriced if state is not None and current else 0,
            unpriced_requests=state.unpriced_requests if state is not None and current else 0,
            late=0 if state is None else state.late, starts_at_us=books.start_us, resets_at_us=books.end_us,
        )  # fmt: skip

    async def reservations(self, *, suspended: bool = False) -> list[ReservationRecord]:
        """Every open (or suspended) reservation of every worker, in every cell."""
        return [
            one for found in await _all(cell.reservations(suspended=suspended) for cell in self.cells) for one in found
        ]

    async def audit(self, *, lanes: Sequence[str], scopes: Sequence[str]) -> list[Drift]:
        """Recompute every cell's counters from its reservations. What a home holds for others is what it granted."""
        home, *others = await _all(cell.audit(lanes=lanes, scopes=scopes) for cell in self.cells)
        found = [drift for drifts in others for drift in drifts]
        return [drift for drift in home if not await self._is_granted(drift)] + found

    async def _is_granted(self, drift: Drift) -> bool:
        if drift.counter != "held" or not self.layout.spans(drift.where):
            return False
        books = await self.home.grant(drift.where, 1, ChildBooks())
        return drift.counted - drift.recomputed == books.granted


def _child(state: ScopeState) -> ScopeState:
    return replace(state, granted=max(0, state.limit - state.settled - state.held - state.suspense))


def _summed(by_cell: Sequence[tuple[str, ScopeState]], *, spans: bool) -> ScopeState:
    """The books of all cells, of the latest period that any of them is in. The first is the home's.

    A scope that does not span cells is declared in all of them, and booked in one.
    """
    states = [state for _, state in by_cell]
    start = max(state.starts_at_us for state in states)
    now = [state for state in states if state.starts_at_us == start]
    current = ((name, state) for name, state in by_cell if state.starts_at_us == start)
    return replace(
        states[0], cells=tuple(
            (name, state) for name, state in current if spans or state.settled + state.held + state.suspense
        ),
        seq=max(state.seq for state in states), settled=sum(state.settled for state in now),
        held=sum(state.held for state in now), suspense=sum(state.suspense for state in now),
        unpriced=sum(state.unpriced for state in now), late=sum(state.late for state in states),
        unpriced_requests=sum(state.unpriced_requests for state in now),
        granted=sum(state.granted for state in now), starts_at_us=start,
        resets_at_us=max(state.resets_at_us for state in now),
    )  # fmt: skip


def _together(one: LaneState, other: LaneState) -> LaneState:
    """A lane of which several cells have one each: the worst that any says of its health, and all its requests."""
    worse = max(one, other, key=lambda state: (_BREAKERS.index(state.breaker), state.breaker_until_us))
    return replace(
        worse, seq=max(one.seq, other.seq), in_flight=one.in_flight + other.in_flight,
        blocked_until_us=max(one.blocked_until_us, other.blocked_until_us),
        successes=one.successes + other.successes, failures=one.failures + other.failures,
        latency_us=max(one.latency_us, other.latency_us), requests_total=one.requests_total + other.requests_total,
        failures_total=one.failures_total + other.failures_total,
        last_used_us=max(one.last_used_us, other.last_used_us),
    )  # fmt: skip


async def _all(work: Iterable[Awaitable[_T]]) -> list[_T]:
    """All of it, also where some fails; then the first failure is raised."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]


async def _some(work: Iterable[Awaitable[_T]]) -> list[_T]:
    """What did not fail for want of an answer, if there is any."""
    results = await asyncio.gather(*work, return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    for failure in failed:
        if len(failed) == len(results) or not isinstance(failure, LedgerUnavailableError):
            raise failure
    return [result for result in results if not isinstance(result, BaseException)]


RESTORING: ContextVar[bool] = ContextVar("restoring", default=False)
"""Whether what is put is what was in force before. A cell that is away has it still, or is restored when it is back."""


async def _all_but_away(work: Iterable[Awaitable[_T]]) -> None:
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not (isinstance(result, LedgerAwayError) and RESTORING.get()):
            raise result


AnyLedger = ScriptLedger | SpreadLedger
"""The ledger of a namespace, whatever it is divided into."""
_Gather = Callable[[Iterable[Awaitable[list[LaneState]]]], Awaitable[list[list[LaneState]]]]
