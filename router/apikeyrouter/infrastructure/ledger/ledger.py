"""The ledger: one typed method a script, the same over every engine."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

from apikeyrouter.domain.models.accounting import (
    Admission,
    Denial,
    LaneConfig,
    LaneState,
    Observation,
    ReserveRequest,
    Result,
    ScopeConfig,
    ScopeState,
    Settlement,
    Stamp,
    State,
    Transition,
    check_id,
)
from apikeyrouter.domain.models.system_error import (
    LedgerAwayError,
    LedgerConfigError,
    LedgerProtocolError,
    LedgerRefusedError,
    LedgerUnavailableError,
    StaleConfigError,
)
from apikeyrouter.infrastructure.ledger.arguments import request_args, reserve_args, rid_field, rid_of, settle_args
from apikeyrouter.infrastructure.ledger.calendars import boundaries
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.drift import Drift, drifts
from apikeyrouter.infrastructure.ledger.encoding import (
    check_amount,
    id_of,
    lane_entry,
    lane_field,
    observation_numbers,
    restart_numbers,
    scope_entry,
    scope_field,
)
from apikeyrouter.infrastructure.ledger.engine import Argument, Engine, Replaceable, Reply
from apikeyrouter.infrastructure.ledger.one_cell import OneCell
from apikeyrouter.infrastructure.ledger.records import ReservationRecord, read_lane, read_reservation, read_scope
from apikeyrouter.infrastructure.ledger.replies import loss_order, losses_of, text_of
from apikeyrouter.infrastructure.ledger.store_gate import StoreGate

DEADLINE_SECONDS = 0.15
"""How long a request waits for the store, a second try included."""
PATIENT_TRIES, PATIENT_PAUSE_SECONDS = 3, 0.3
PAGE_CONFIG = 64
PAGE_RIDS = 128
PAGE_SETTLE = 32
PAGE_SNAPSHOT = 256
PAGE_AUDIT = 256
FORGOT_LEASE_US_MAX = 3_600_000_000
_CALENDAR_ROUNDS_MAX = 16
_AUDIT_ROUNDS_MAX = 5
_RESULTS: dict[int, Result] = {
    Code.OK: Result.OK,
    Code.REPLAYED: Result.REPLAYED,
    Code.CONFLICT: Result.CONFLICT,
    Code.UNMATCHED: Result.UNMATCHED,
}
_STATES = (None, *State)
_TROUBLE = frozenset({Code.CALENDAR_NEEDED, Code.NO_CELL, Code.BAD_SCHEMA, Code.BAD_ARGUMENT})
"""What no caller of a script can act on, whichever it is."""
_REPLAYED, _DENIED = int(Code.REPLAYED), int(Code.DENIED)
_T = TypeVar("_T")


class ScriptLedger(OneCell):
    """The ledger over one cell. See `domain/interfaces/ledger.py` for what each method promises."""

    def __init__(
        self, engine: Engine, *, tries: int = 2, deadline_s: float = DEADLINE_SECONDS, layout: str = ""
    ) -> None:
        """`layout`: how the namespace's cells are laid out (`CellLayout.text`); empty where there is one."""
        self.engine = engine
        self._layout = layout
        self._tries, self._deadline_s = tries, deadline_s
        self.gate = StoreGate(self._probe)
        """Whether the store answers; while it is away, calls fail at once."""
        self.on_unanswered: Callable[[bytes], None] | None = None
        """Who sees to it that a reserve is cancelled of which nobody knows whether it ran."""
        self._chores: set[asyncio.Task[None]] = set()
        self.stamp = Stamp(epoch=0, seq=0, now_us=0, config_version=0)
        self.clock = (0, 0)
        """The cell's time and this process's monotonic time, in microseconds, when the last reply came (law 3)."""
        self.forgotten = 0
        """How often a reply proved that the store forgot writes: seq went back, or the epoch changed (law 9)."""
        self._lost: Stamp | None = None
        """The last answer before writes were forgotten, while the cell has not been told of that."""

    async def open(self) -> Stamp:
        """Connect, load the scripts, make the cell if it is new.

        Raises:
            LedgerConfigError: the cells of this namespace are laid out otherwise.
        """
        if isinstance(self.engine, Replaceable):
            self.engine.on_another_server = self._on_another_server
        if not self.gate.away:
            await self.engine.open()
        reply = await self._run("open", [secrets.randbelow(2**52), self._layout])
        if reply[0] == Code.CONFLICT:
            held, ours = text_of(reply[5]) or "one cell", self._layout or "one cell"
            raise LedgerConfigError(
                f"this namespace is accounted in {held}, and this process was told {ours}: the cells of a namespace are"
                " decided when it is first used; take its own, or another namespace"
            )
        return self._stamp(reply)

    async def _probe(self) -> None:
        """One call for all: whether the store answers within the deadline."""
        await self.engine.run("snapshot", [0])

    async def close(self) -> None:
        """Let chores end, then let go of the connection."""
        await self.gate.close()
        if self._chores:
            await asyncio.wait(self._chores, timeout=1.0)
        await self.engine.close()

    def abandon(self) -> object:
        """What it still had to do is a parent process's. That, to be kept from its end."""
        chores, self._chores = self._chores, set()
        return chores, self.gate.begin_anew()

    # --- one request ---------------------------------------------------------------------------------------------

    async def reserve(self, request: ReserveRequest) -> Admission | Denial:
        """Hold one candidate or nothing, within the deadline. A call that was lost is sent again under the same id
        while there is time for that; what is not answered is cancelled.
        """
        args = reserve_args(request)
        if self.gate.away:
            raise self.gate.refusal()
        until = time.monotonic() + self._deadline_s
        try:
            try:
                reply = await self._run("reserve", args, pool=request.pool)
            except LedgerUnavailableError as exc:
                reply = await self._reserve_again(args, request.pool, until, exc)
        except LedgerRefusedError:
            raise
        except (LedgerUnavailableError, asyncio.CancelledError):
            self._unanswered(request.rid)
            raise
        return self._reserve_reply(request, reply)

    async def _reserve_again(
        self, args: Sequence[Argument], pool: str, until: float, failure: LedgerUnavailableError
    ) -> Reply:
        """What was lost may be sent again, until the deadline."""
        for _ in range(1, self._tries):
            if self.gate.away or time.monotonic() >= until:
                break
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    return await self._run("reserve", args, pool=pool)
            except TimeoutError:
                raise failure from None
            except LedgerUnavailableError as exc:
                failure = exc
        raise failure

    def _unanswered(self, rid: bytes) -> None:
        """Nobody knows whether this reserve ran."""
        if self.on_unanswered is not None:
            self.on_unanswered(rid)
        else:
            self._chore(self.cancel(rid))

    async def claim(self, request: ReserveRequest, *, stay_us: int) -> Stamp:
        """Note that who asked for this was denied, and means to come again within `stay_us`: what is scarce is kept for
        it when it is its turn.
        """
        words: list[Argument] = [request.principal, check_amount(stay_us, what="time to stay")]
        return self._stamp(await self._run("claim", words, pool=request.pool))

    async def settle(self, settlement: Settlement) -> Transition:
        """Book what was really used, in the windows that were charged."""
        return (await self.settle_many((settlement,)))[0]

    async def settle_many(self, settlements: Sequence[Settlement]) -> list[Transition]:
        """`settle` for each; one script takes a page of them, and each lane and scope once."""
        transitions: list[Transition] = []
        for page in _pages(settlements, PAGE_SETTLE):
            reply = await self._run("settle", [word for settlement in page for word in settle_args(settlement)])
            stamp = self._stamp(reply)
            for at in range(5, 5 + 2 * len(page), 2):
                transitions.append(_transition(stamp, reply[at], reply[at + 1]))
        return transitions

    async def release(self, rid: bytes, *, sent: bool, failed_lanes: int = 0, latency_us: int = 0) -> Transition:
        """Give back what was certainly not billed."""
        reply = await self._run("release", [rid_field(rid), int(sent), failed_lanes, max(0, latency_us)])
        return self._transition(reply)

    async def cancel(self, rid: bytes) -> Transition:
        """End an ambiguous reserve."""
        return self._transition(await self._run("cancel", [rid_field(rid)]))

    async def reassert(self, request: ReserveRequest, *, index: int) -> Transition:
        """Book an open reservation again after the store forgot it."""
        candidate = request.candidates[index]
        args = request_args(request, (candidate,), index, "")
        return self._transition(await self._run("reassert", args))

    async def renew(self, rids: Sequence[bytes], *, lease_us: int) -> list[bytes]:
        """Extend leases, a page at a time; returns what is no longer open."""
        lost: list[bytes] = []
        for page in _pages(rids, PAGE_RIDS):
            reply = await self._run("renew", [lease_us, *map(rid_field, page)])
            self._stamp(reply)
            lost.extend(rid_of(field) for field in reply[6:])
        return lost

    async def acknowledge(self, rids: Sequence[bytes]) -> None:
        """Let tombstones of settlements that were seen go soon."""
        for page in _pages(rids, PAGE_RIDS):
            await self._run("acknowledge", list(map(rid_field, page)))

    # --- time and providers --------------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """Let time do its work, a bounded piece; returns how many leases and suspended amounts it ended."""
        reply = await self._run("sweep", [])
        self._stamp(reply)
        leases, suspended = reply[5:7]
        return int(leases + suspended)

    async def record(self, lane: str, *, observations: Sequence[Observation] = (), blocked_for_us: int = 0) -> Stamp:
        """Re-sync a lane with what its provider said; what makes no sense is left out."""
        words: list[Argument] = [check_amount(blocked_for_us, what="cooling time")]
        for seen in observations:
            words.extend(observation_numbers(seen) or ())
        return self._stamp(await self._run("record", [lane_field(check_id(lane, what="lane")), *words]))

    async def restart(self, lane: str, *, limits: Sequence[str] = (), cooling: bool = False) -> Stamp:
        """Let these limits of a lane begin anew, and (`cooling`) the lane cool no more: an operator's word."""
        words: list[Argument] = [-1 if cooling else 0]
        for name in limits:
            words.extend(restart_numbers(name))
        return self._stamp(await self._run("record", [lane_field(check_id(lane, what="lane")), *words]))

    async def suspect_clock(self, suspected: bool) -> Stamp:
        """Mark or clear doubt about the cell's clock; while it lasts, hard scopes refuse (law 3)."""
        return self._stamp(await self._run("suspect", [int(suspected)]))

    async def note_forgotten(self, *, lease_us: int) -> int:
        """Tell the cell that it forgot writes, if it did: for a lease an eighth of its limits stays free. Until
        when, in its time; 0: it forgot nothing that this process saw.
        """
        lost = self._lost
        if lost is None:
            return 0
        reply = await self._run("forgot", [lost.epoch, lost.seq, min(lease_us, FORGOT_LEASE_US_MAX)])
        self._stamp(reply)
        if self._lost is lost:
            self._lost = None
        return int(reply[5])

    # --- configuration -------------------------------------------------------------------------------------------

    async def put(self, *, lanes: Sequence[LaneConfig] = (), scopes: Sequence[ScopeConfig] = ()) -> Stamp:
        """Add or change lanes and scopes; each page is atomic."""
        return await self._put(_entries(lanes, scopes))

    async def _put(self, entries: Sequence[tuple[str, list[int]]]) -> Stamp:
        stamp = self.stamp
        for page in _pages(entries, PAGE_CONFIG):
            stamp = self._stamp(await self._again("configure", ["put", 0, *_flat(page)]))
        return stamp

    async def _again(self, name: str, args: Sequence[Argument]) -> Reply:
        """What may be done twice, and no request waits for, is not given up at the first miss."""
        for _ in range(1, PATIENT_TRIES):
            try:
                return await self._run(name, args)
            except (LedgerAwayError, LedgerRefusedError):
                raise
            except LedgerUnavailableError:
                await asyncio.sleep(PATIENT_PAUSE_SECONDS)
        return await self._run(name, args)

    async def replace(
        self, *, lanes: Sequence[LaneConfig], scopes: Sequence[ScopeConfig], expected_version: int
    ) -> Stamp:
        """Replace the whole configuration, or nothing.

        Raises:
            StaleConfigError: another change came first.
        """
        entries = _entries(lanes, scopes)
        token = secrets.randbelow(2**52)
        await self._run("configure", ["begin", token])
        for page in _pages(entries, PAGE_CONFIG):
            self._refuse_conflict(await self._run("configure", ["stage", token, *_flat(page)]))
        reply = await self._run("configure", ["flip", token, "version", 1, expected_version])
        self._refuse_conflict(reply)
        return self._stamp(reply)

    def _refuse_unknown(self, reply: Reply) -> None:
        if reply[0] == Code.UNKNOWN_SCOPE:
            raise LedgerConfigError(f"scope {id_of(text_of(reply[5]))} is not configured")

    def _refuse_conflict(self, reply: Reply) -> None:
        if reply[0] == Code.CONFLICT:
            raise StaleConfigError(reply[4])

    # --- reading -------------------------------------------------------------------------------------------------

    async def look(self) -> Stamp:
        """Where the cell is: its time, and how often it was written."""
        return self._stamp(await self._run("snapshot", [0]))

    async def lanes(self, ids: Sequence[str], *, since_seq: int = 0) -> list[LaneState]:
        """State of those lanes that changed after `since_seq`."""
        found: list[LaneState] = []
        for page in _pages(ids, PAGE_SNAPSHOT):
            reply = await self._run("snapshot", [since_seq, *map(lane_field, page)])
            now = reply[3]
            for at in range(5, len(reply), 2):
                found.append(read_lane(page[reply[at]], reply[at + 1], now_us=now))
        return found

    async def scopes(self, ids: Sequence[str], *, since_seq: int = 0) -> list[ScopeState]:
        """State of those scopes that changed after `since_seq`."""
        found: list[ScopeState] = []
        for page in _pages(ids, PAGE_SNAPSHOT):
            reply = await self._run("snapshot", [since_seq, *map(scope_field, page)])
            for at in range(5, len(reply), 2):
                found.append(read_scope(page[reply[at]], reply[at + 1]))
        return found

    async def reservations(self, *, suspended: bool = False) -> list[ReservationRecord]:
        """Every open (or suspended) reservation of every worker; a moment's view, page by page."""
        return (await self._reservations(suspended=suspended))[1]

    async def _reservations(self, *, suspended: bool) -> tuple[set[int], list[ReservationRecord]]:
        found: list[ReservationRecord] = []
        seqs: set[int] = set()
        start = 0
        while True:
            reply = await self._run("audit", [2 if suspended else 1, start, PAGE_AUDIT])
            seqs.add(reply[2])
            rows = reply[6:]
            pairs = zip(rows[::2], rows[1::2], strict=True)
            found.extend(read_reservation(rid_of(field), raw) for field, raw in pairs)
            start += PAGE_AUDIT
            if start >= reply[5]:
                return seqs, found

    async def audit(self, *, lanes: Sequence[str], scopes: Sequence[str]) -> list[Drift]:
        """Recompute counters from the reservations that still count, and report what differs.

        Exact when nothing changes meanwhile; while writes come in between it tries again, and raises
        LedgerUnavailableError when the cell does not stand still long enough.
        """
        for _ in range(_AUDIT_ROUNDS_MAX):
            seqs, open_ones = await self._reservations(suspended=False)
            more, suspended = await self._reservations(suspended=True)
            lane_states, scope_states = await self.lanes(lanes), await self.scopes(scopes)
            end = await self._run("snapshot", [0])
            if seqs | more == {end[2]}:
                return drifts(open_ones, suspended, lane_states, scope_states)
        raise LedgerUnavailableError("audit: the cell changed during every try; audit when traffic is low")

    # --- the rim -------------------------------------------------------------------------------------------------

    async def _run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        gate = self.gate
        for _ in range(_CALENDAR_ROUNDS_MAX):
            if gate.away:
                raise gate.refusal()
            try:
                reply = await self.engine.run(name, args, pool=pool)
            except LedgerRefusedError:
                raise
            except LedgerUnavailableError as exc:
                gate.missed(exc)
                raise
            if gate.misses:
                gate.answered()
            code = reply[0]
            if code not in _TROUBLE:
                return reply
            if code == Code.CALENDAR_NEEDED:
                await self._supply_calendar(reply[5], reply[3])
                continue
            if code == Code.NO_CELL:
                self._forgot()
                raise LedgerUnavailableError("the cell is gone: the store was flushed or replaced")
            if code == Code.BAD_SCHEMA:
                raise LedgerProtocolError(
                    "the cell was written by another version of the scripts: docs/operations.md says how to change over"
                )
            raise LedgerConfigError(f"script {name} refused an argument: {_shown(args)}")
        raise LedgerProtocolError(f"script {name}: a calendar is still missing after {_CALENDAR_ROUNDS_MAX} tries")

    async def _supply_calendar(self, number: int, now_us: int) -> None:
        try:
            bounds = boundaries(number, now_us)
        except KeyError:
            raise LedgerProtocolError(f"calendar {number} is of a time zone that this machine does not know") from None
        await self.engine.run("configure", ["calendar", 0, f"c:{number}", len(bounds), *bounds])

    def _stamp(self, reply: Reply) -> Stamp:
        _, epoch, seq, now, config = reply[:5]
        stamp = Stamp(epoch=epoch, seq=seq, now_us=now, config_version=config)
        self.clock = (now, time.monotonic_ns() // 1000)
        before = self.stamp
        if before.epoch and (epoch != before.epoch or seq < before.seq):
            self._forgot()
        self.stamp = stamp
        return stamp

    def _on_another_server(self) -> None:
        """It may lack what the one before acknowledged, and seq may not tell: others have written there since."""
        self._forgot()

    def _forgot(self) -> None:
        """What this process saw last is a proof, or may be one; what it saw before that says no more."""
        self.forgotten += 1
        last, lost = self.stamp, self._lost
        if last.epoch and (lost is None or lost.epoch != last.epoch or lost.seq < last.seq):
            self._lost = last

    def _transition(self, reply: Reply) -> Transition:
        self._refuse_unknown(reply)
        return _transition(self._stamp(reply), reply[0], reply[5])

    def _reserve_reply(self, request: ReserveRequest, reply: Reply) -> Admission | Denial:
        code = reply[0]
        stamp = self._stamp(reply)
        if code == _DENIED:
            losses = losses_of(reply, 5)
            return Denial(stamp=stamp, binding=min(losses, key=loss_order), losses=losses)
        if code <= _REPLAYED:
            soft_count = reply[8]
            return Admission(
                stamp=stamp, rid=request.rid, index=reply[5], deadline_us=reply[6], probe=reply[7] == 1,
                soft_exceeded=tuple(id_of(text_of(scope)) for scope in reply[9 : 9 + soft_count]) if soft_count else (),
                losses=losses_of(reply, 9 + soft_count) if reply[9 + soft_count] else (),
                replayed=code == _REPLAYED,
            )  # fmt: skip
        if code == Code.STALE_CONFIG:
            raise StaleConfigError(stamp.config_version)
        if code == Code.UNKNOWN_SCOPE:
            raise LedgerConfigError(f"scope {id_of(text_of(reply[5]))} is not configured")
        raise LedgerProtocolError(f"reservation {request.rid.hex()} has ended: {State(reply[5]).name.lower()}")

    def _chore(self, work: Coroutine[object, object, Transition]) -> None:
        async def quietly() -> None:
            with contextlib.suppress(LedgerUnavailableError):  # the lease ends it then
                await work

        task = asyncio.get_running_loop().create_task(quietly())
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def _transition(stamp: Stamp, code: int, state: int) -> Transition:
    return Transition(stamp=stamp, result=_RESULTS[code], state=_STATES[state])


def _entries(lanes: Sequence[LaneConfig], scopes: Sequence[ScopeConfig]) -> list[tuple[str, list[int]]]:
    return [*map(lane_entry, lanes), *map(scope_entry, scopes)]


def _flat(entries: Sequence[tuple[str, list[int]]]) -> list[Argument]:
    words: list[Argument] = []
    for field, numbers in entries:
        words += (field, len(numbers), *numbers)
    return words


def _pages(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _shown(args: Sequence[Argument]) -> str:
    return ", ".join(repr(arg)[:40] for arg in args[:12])
