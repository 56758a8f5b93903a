"""The auditor: sees every script that the store runs, and says which invariant does not hold.

It has books of its own (`books.py`, `meters.py`) and reads of the ledger only what it answered. Invariants are those of
the accounting: I1 admission, I2 conservation, I3 idempotency, I4 a denial changes nothing, I5 leases end, I6 no cost
lost or doubled, I7 one probe, I8 rates, I9 periods, I13 what was forgotten is bounded.
"""

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from apikeyrouter.domain.models.accounting import ReserveRequest, Settlement, SlabUse, State
from apikeyrouter.domain.models.system_error import LedgerError
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.engine import Reply
from tests.faults.books import Books, Place, World
from tests.faults.network import Words
from tests.faults.slab_audit import SlabAudit

RESERVE_SWEEPS, SWEEPS, SETTLE_WORDS = 4, 8, 2
_SLAB_FIELDS = SlabUse.__struct_fields__
_OVER = (Code.NO_CELL, Code.CALENDAR_NEEDED, Code.STALE_CONFIG, Code.UNKNOWN_SCOPE)


Step = tuple[int, str, str, Words, Reply]
"""A script that ran: the store's clock, who asked, which, its words and its answer."""


class ViolationError(Exception):
    """An invariant does not hold. The text begins with its name."""


@dataclass
class Tally:
    """What the auditor counted in a run."""

    scripts: Counter[str] = field(default_factory=Counter)
    admitted: int = 0
    denied: int = 0
    replayed: int = 0
    settled: int = 0
    settled_late: int = 0
    released: int = 0
    cancelled: int = 0
    reasserted: int = 0
    expired: int = 0
    expired_late_us_max: int = 0
    unmatched: int = 0
    probes: int = 0
    suspected: int = 0
    losses_noted: int = 0
    admitted_cautiously: int = 0


class Auditor:
    """Books of one cell, and what callers said they would ask."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.books = Books(world)
        self.slabs = SlabAudit(world)
        self.tally = Tally()
        self.requests: dict[bytes, ReserveRequest] = {}
        self.costs: dict[bytes, int] = {}
        """What each call that ended did cost."""
        self.booked: set[bytes] = set()
        """Whose cost was booked, whether or not the store still knows."""
        self.forgotten: Counter[Place] = Counter()
        """Nano-dollars that the store forgot, by budget and period."""
        self.expired_at: dict[bytes, int] = {}
        """When leases ended, in true time since the beginning."""
        self.suspected_at_us = 0
        """When somebody first said that the clock is in doubt, in true time; 0: never."""
        self.elapsed_us: Callable[[], int] = lambda: 0
        self.violation: ViolationError | None = None
        self.on_step: Callable[[], None] = lambda: None
        self.count = 0
        """Scripts that ran."""
        self.trace: list[str | Step] = []
        self._readers: dict[str, Callable[[Words, Reply], None]] = {
            "reserve": self._reserve, "settle": self._settle, "release": self._release, "cancel": self._cancel,
            "reassert": self._reassert, "renew": self._renew, "acknowledge": self._acknowledge, "sweep": self._sweep,
            "record": self._record, "suspect": self._suspect, "forgot": self._forgot,
            "open": self._open,
        }  # fmt: skip

    # --- what the store tells ------------------------------------------------------------------------------------

    def executed(self, worker: str, name: str, words: Words, pool: str, reply: Reply, clock_us: int) -> None:
        """A script ran: its answer must be the right one, and what it wrote allowed."""
        self.tally.scripts[name] += 1
        self.count += 1
        self.trace.append((clock_us, worker, name, words, reply))
        try:
            self._stamp(name, reply, clock_us)
            reader = self._readers.get(name)
            if reader is not None and reply[0] not in _OVER:
                reader(words, reply)
            self.on_step()
        except ViolationError as violation:
            self.violation = self.violation or violation

    def broke(self, worker: str, name: str, error: LedgerError) -> None:
        """No script may fail on a sound cell."""
        self.violation = self.violation or ViolationError(f"I14 script {name} of {worker} failed: {error}")

    def remember(self) -> Books:
        """The books as they are."""
        return self.books.fork()

    def go_back(self, to: object | None) -> None:
        """The store forgot: what it no longer counts is what may be spent again."""
        before = self.books
        self.slabs.jumps += 1
        self.books = to.fork() if isinstance(to, Books) else Books(self.world)
        for place in {*before.settled, *before.held, *before.suspense}:
            lost = before.total(place) - self.books.total(place)
            self.forgotten[place] += max(0, lost)
        self.trace.append(f"the store forgot {sum(self.forgotten.values())} nano-dollars by now")

    def _stamp(self, name: str, reply: Reply, clock_us: int) -> None:
        _, epoch, seq, now_us = (_int(value) for value in reply[:4])
        books = self.books
        if reply[0] == Code.NO_CELL:
            _require(books.epoch == 0, "I2 the cell is gone")
            return
        if name == "open" and reply[5] == 1:
            _require(books.epoch == 0, "I2 a cell was made anew in the place of another")
            books.epoch = epoch
        _require(epoch == books.epoch, "law 9: the epoch changed by itself")
        _require(seq >= books.seq, f"law 9: seq went back from {books.seq} to {seq}")
        expected_us = max(clock_us, books.written_us)
        _require(now_us == expected_us, f"law 3: the cell's time is {now_us}, not {expected_us}")
        books.now_us = now_us
        if reply[0] == Code.DENIED and not any(True for _ in islice(books.due_leases(), 1)):
            _require(seq == books.seq, "I4 a denial wrote")
        if seq > books.seq:
            books.seq, books.written_us = seq, now_us

    # --- one script each -----------------------------------------------------------------------------------------

    def _open(self, words: Words, reply: Reply) -> None:
        """The stamp says all."""

    def _reserve(self, words: Words, reply: Reply) -> None:
        rid, code = _rid(words[0]), reply[0]
        known = self.books.of(rid)
        if code == Code.REPLAYED:
            _require(known is not None and known.state is State.OPEN, f"I3 {rid.hex()} was replayed but is not open")
            assert known is not None
            _require(known.index == reply[5], f"I3 {rid.hex()} was replayed with another candidate")
            self.tally.replayed += 1
            return
        if code == Code.CONFLICT:
            found = self.books.held_by.get(rid)
            _require(found is not None and found.state is not State.OPEN, f"I3 {rid.hex()} conflicts with nothing")
            return
        _require(known is None, f"I3 {rid.hex()} was decided twice")
        self._expire_due(RESERVE_SWEEPS)
        if code == Code.DENIED:
            self.tally.denied += 1
            return
        self._admit(rid, index=_int(reply[5]), deadline_us=_int(reply[6]), probe=reply[7] == 1)

    def _admit(self, rid: bytes, *, index: int, deadline_us: int, probe: bool) -> None:
        books, request = self.books, self.requests[rid]
        candidate = request.candidates[index]
        _require(deadline_us == books.now_us + request.lease_us, f"I5 {rid.hex()} has a lease of another length")
        for lane in candidate.lanes:
            _require(books.now_us >= books.cooling.get(lane, 0), f"I1 {lane} was used while it cools")
        if request.calls > 1:
            self.slabs.held(request, books.now_us, self.elapsed_us())
        if probe:
            self.tally.probes += 1
            twice = [lane for lane in candidate.lanes if self.world.lanes[lane].breaker and books.probes(lane)]
            _require(not twice, f"I7 a second probe of {twice}")
        found = books.open(request, index, deadline_us=deadline_us, probe=probe)
        over = books.over_limit(candidate.lanes)
        _require(not over, f"I1, I8 {rid.hex()} was admitted over a limit: {over}")
        for part in found.parts:
            scope = self.world.scopes[part.scope]
            total = books.total(part.place)
            _require(not scope.hard or total <= scope.limit_nanousd, f"I1 {part.place} holds {total}: over its limit")
            _require(not (scope.hard and books.suspect), f"law 3: {part.scope} admitted while the clock is in doubt")
        if books.now_us < books.cautious_us:
            spent = books.over_seven_eighths(request, index)
            _require(not spent, f"law 9: {rid.hex()} took what stays free after a loss: {spent}")
            self.tally.admitted_cautiously += 1
        self.tally.admitted += 1

    def _expire_due(self, most: int) -> int:
        count = 0
        for found in islice(self.books.due_leases(), most):
            if found.state is State.OPEN:
                late = self.books.now_us - found.deadline_us
                self.tally.expired_late_us_max = max(self.tally.expired_late_us_max, late)
                self.tally.expired += 1
                self.expired_at[found.rid] = self.elapsed_us()
            self.books.look_after(found)
            count += 1
        return count

    def _settle(self, words: Words, reply: Reply) -> None:
        for at in range(0, len(words), SETTLE_WORDS):
            settlement = _settlement(words[at], words[at + 1])
            known, code = self.books.of(settlement.rid), reply[5 + at]
            name = settlement.rid.hex()
            if code == Code.OK:
                _require(known is not None, f"I6 {name} was settled, but is unknown")
                assert known is not None
                may = (State.OPEN, State.SUSPENDED, State.EXPIRED)
                _require(known.state in may, f"I3 {name} was settled, but is {known.state.name}")
                self._check_cost(settlement)
                self.tally.settled += 1
                self.tally.settled_late += known.state is not State.OPEN
                self.books.settle(known, settlement)
                self.booked.add(settlement.rid)
            elif code == Code.REPLAYED:
                _require(self._is(settlement.rid, State.SETTLED), f"I3 {name} was not settled before")
            elif code == Code.CONFLICT:
                ended = self._is(settlement.rid, State.RELEASED) or self._is(settlement.rid, State.CANCELLED)
                _require(ended, f"I6 the cost of {name} was refused")
            else:
                _require(known is None, f"I6 {name} is known, but was not matched")
                self.tally.unmatched += 1

    def _check_cost(self, settlement: Settlement) -> None:
        if settlement.slab is not None:
            wrong = self.slabs.wrong_end(settlement.rid, settlement.cost_nanousd, settlement.slab)
            _require(not wrong, wrong)
            return
        right = self.costs.get(settlement.rid, 0)
        name = settlement.rid.hex()
        _require(settlement.cost_nanousd == right, f"I6 {name} was settled for another cost than {right}")

    def _release(self, words: Words, reply: Reply) -> None:
        rid = _rid(words[0])
        if self._end(rid, reply, State.RELEASED):
            known = self.books.of(rid)
            assert known is not None
            self.books.give_back(known, State.RELEASED, sent=words[1] == b"1")
            self.tally.released += 1

    def _cancel(self, words: Words, reply: Reply) -> None:
        rid = _rid(words[0])
        known = self.books.of(rid)
        if reply[0] == Code.OK and known is None:
            self.books.bury(rid)
            self.tally.cancelled += 1
        elif self._end(rid, reply, State.CANCELLED):
            assert known is not None
            self.books.give_back(known, State.CANCELLED, sent=False)
            self.tally.cancelled += 1

    def _end(self, rid: bytes, reply: Reply, state: State) -> bool:
        """Whether an open reservation ended now; the answer must fit either way."""
        known, code = self.books.of(rid), reply[0]
        if code == Code.OK:
            fits = known is not None and known.state is State.OPEN
        elif code == Code.REPLAYED:
            fits = self._is(rid, state)
        elif code == Code.UNMATCHED:
            fits = known is None
        else:
            found = self.books.held_by.get(rid)
            fits = found is not None and found.state is not State.OPEN
        _require(fits, f"I3 {rid.hex()} cannot be {state.name}: it is {known.state.name if known else 'unknown'}")
        return bool(code == Code.OK)

    def _is(self, rid: bytes, state: State) -> bool:
        found = self.books.held_by.get(rid)
        return found is not None and found.state is state

    def _reassert(self, words: Words, reply: Reply) -> None:
        rid = _rid(words[0])
        request, known = self.requests[rid], self.books.of(rid)
        if reply[0] == Code.OK:
            _require(known is None, f"I3 {rid.hex()} was booked again, but is known")
            index = struct.unpack_from("<3d", words[2])[2]
            self.books.open(request, int(index), deadline_us=self.books.now_us + request.lease_us, probe=False)
            self.tally.reasserted += 1
        else:
            found = self.books.held_by.get(rid)
            _require(found is not None, f"I3 {rid.hex()} is unknown, but was not booked again")

    def _renew(self, words: Words, reply: Reply) -> None:
        lease_us, lost = int(words[0]), {_rid(_bytes(field)) for field in reply[6:]}
        for word in words[1:]:
            rid = _rid(word)
            still = self._is(rid, State.OPEN)
            _require(still is not (rid in lost), f"I5 renewal of {rid.hex()}: open {still}, lost {rid in lost}")
            if still:
                self.books.extend(rid, self.books.now_us + lease_us)

    def _acknowledge(self, words: Words, reply: Reply) -> None:
        for word in words:
            self.books.seen(_rid(word))

    def _sweep(self, words: Words, reply: Reply) -> None:
        expired = self._expire_due(SWEEPS)
        _require(expired == reply[5], f"I5 a sweep ended {reply[5]} leases of {expired} that were due")
        resolved = 0
        if not expired:
            for found in islice(self.books.due_suspense(), SWEEPS):
                self.books.resolve(found)
                resolved += 1
        _require(resolved == reply[6], f"I5 a sweep resolved {reply[6]} in suspense of {resolved} that were due")

    def _record(self, words: Words, reply: Reply) -> None:
        lane, cool_us = words[0].decode().removeprefix("l:"), int(words[1])
        if cool_us > 0:
            until = self.books.now_us + cool_us
            self.books.cooling[lane] = max(self.books.cooling.get(lane, 0), until)

    def _forgot(self, words: Words, reply: Reply) -> None:
        if reply[0] == Code.OK:
            self.books.cautious_us = max(self.books.cautious_us, self.books.now_us + int(words[2]))
            self.tally.losses_noted += 1
        _require(reply[5] == self.books.cautious_us, f"law 9: cautious until {reply[5]}, not {self.books.cautious_us}")

    def _suspect(self, words: Words, reply: Reply) -> None:
        self.books.suspect = words[0] == b"1"
        self.tally.suspected += self.books.suspect
        if self.books.suspect and not self.suspected_at_us:
            self.suspected_at_us = self.elapsed_us()


def _require(holds: bool, says: str) -> None:
    if not holds:
        raise ViolationError(says)


def _rid(field: bytes) -> bytes:
    return field.removeprefix(b"r:")


def _settlement(field: bytes, packed: bytes) -> Settlement:
    input_tokens, output_tokens, cost, _, _, _, *slab = map(int, struct.unpack(f"<{len(packed) // 8}d", packed))
    return Settlement(
        rid=_rid(field), input_tokens=input_tokens, output_tokens=output_tokens, cost_nanousd=cost,
        slab=msgspec.convert(dict(zip(_SLAB_FIELDS, slab, strict=True)), SlabUse) if slab else None,
    )  # fmt: skip


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def shown(event: str | Step) -> str:
    """One line of a history."""
    if isinstance(event, str):
        return event
    clock_us, worker, name, words, reply = event
    return f"{clock_us} {worker} {name} {_short(words)} -> {_shown(reply)}"


def _short(words: Words) -> str:
    return " ".join(word[2:].hex()[-8:] if word[:2] == b"r:" else str(len(word)) for word in words[:3])


def _shown(reply: Reply) -> str:
    return " ".join(str(value)[:12] for value in (reply[0], *reply[2:4], *reply[5:8]))
