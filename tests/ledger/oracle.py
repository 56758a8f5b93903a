"""What the accounting must answer: a model of every transition in plain Python, for tests to hold the scripts against.

Written from the design and the scripts' headers, not from their bodies. Levels of buckets are fractions, windows are
dictionaries, what is in flight or held is counted from the reservations themselves, periods are looked up and not
rolled. `Oracle.run` takes what an engine takes, and the time; it answers what the script must answer. Where a reply
carries a packed record, the answer has the record as the ledger would read it.
"""

import struct
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil

from apikeyrouter.domain.models.accounting import (
    AMOUNT_MAX,
    LIMIT_NAMES,
    LaneState,
    LimitKind,
    LimitState,
    Metric,
    Outcome,
    Reason,
    RetryKind,
    ScopeState,
    State,
)
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.engine import Argument, encoded
from apikeyrouter.infrastructure.ledger.records import ReservationRecord

Answer = list[object]
Refusal = tuple[Reason, bytes, int, int, RetryKind]

MINUTE_US = 60_000_000
HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
FAIR_LEAD, FAIR_LEAVERS_MAX = 125_000, 8
FAIR_IDLE_US, FAIR_STAY_US, FAIR_STAY_LOST_US = 10_000_000, 10_000_000, 250_000
LIMITS_MAX = 8
BEGIN_ANEW = -2
SWEPT_LEASES_MAX, RESERVE_SWEEPS_MAX = 8, 4
NO_PERIOD = -1
FUNDED, CELLS_MAX = 2**48, 63
CHARGE_RULE, REFUND_RULE, HOLD_RULE = 1, 2, 3
DENY_UNPRICED, FLAT_UNPRICED, METER_UNPRICED = 1, 2, 3
_METRICS, _KINDS = tuple(Metric), tuple(LimitKind)


class CalendarMissingError(Exception):
    """The boundaries of a calendar are not known at this time; any of `numbers` may be asked for first."""

    def __init__(self, numbers: set[int]) -> None:
        super().__init__(numbers)
        self.numbers = numbers


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A place of an answer where several values are right: which unknown thing is named first is no promise."""

    values: frozenset[object]


# --- limits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit as it was configured or learned. A bucket loses drain ÷ unit of an amount every tick."""

    name: int
    metric: Metric
    kind: LimitKind
    capacity: int
    unit: int
    drain: int
    tick_us: int
    refund: bool
    learned: bool = False

    @property
    def per_tick(self) -> Fraction:
        return Fraction(self.drain, self.unit)

    @property
    def clockwork(self) -> tuple[LimitKind, int, int, int]:
        """What must be the same for what was counted to go on as it stands."""
        return self.kind, self.unit, self.drain, self.tick_us


@dataclass(slots=True)
class Counter:
    """What one limit has counted. Only the fields of its kind are used."""

    rule: Rule
    level: Fraction = Fraction(0)
    level_at: int = 0
    given_back: Fraction = Fraction(0)
    generation: int = 0
    used_in_window: int = 0
    window: tuple[int, int] = (0, 0)
    slots: dict[int, int] = field(default_factory=dict)

    def fork(self) -> "Counter":
        twin = copy(self)
        twin.slots = dict(self.slots)
        return twin


@dataclass(frozen=True, slots=True)
class Charged:
    """What one reservation counted against one limit, and where: its place in the bucket's queue, or its window."""

    rule: Rule
    amount: int
    window: int = 0
    place: Fraction = Fraction(0)
    given_back_before: Fraction = Fraction(0)
    generation: int = 0


@dataclass(slots=True)
class Lane:
    """A lane's memory. What is in flight is not here: the reservations say."""

    version: int = -1
    seq: int = 0
    blocked_until: int = 0
    fair: bool = False
    breaker: tuple[int, int, int, int] = (0, 0, 0, 0)
    open: bool = False
    open_until: int = 0
    failures: int = 0
    failing_since: int = 0
    times_opened: int = 0
    probe: int = 0
    successes_lately: int = 0
    failures_lately: int = 0
    decayed_at: int = 0
    latency: int = 0
    ended: int = 0
    failed: int = 0
    last_used: int = 0
    counters: list[Counter] = field(default_factory=list)

    def fork(self) -> "Lane":
        twin = copy(self)
        twin.counters = [counter.fork() for counter in self.counters]
        return twin


# --- scopes and reservations -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Book:
    """What one period of a scope has settled; what is held and suspended is told by the reservations."""

    start: int
    settled: int = 0
    unpriced: int = 0
    unpriced_requests: int = 0


@dataclass(slots=True)
class Scope:
    """A budget: its rules, the current period's book, the one before, and what came later than that."""

    version: int
    limit: int
    hard: bool
    calendar: int
    unpriced: int
    flat: int
    suspense: int
    suspense_after: int
    end: int = 0
    seq: int = 0
    now_book: Book = field(default_factory=lambda: Book(0))
    before: Book | None = None
    late: int = 0

    @property
    def funded(self) -> bool:
        """Whether another cell is its home."""
        return self.calendar >= FUNDED

    def fork(self) -> "Scope":
        twin = copy(self)
        twin.now_book = copy(self.now_book)
        twin.before = copy(self.before)
        return twin

    def book(self, start: int) -> Book | None:
        """The book of the period that began at `start`, while it is kept."""
        if start == self.now_book.start:
            return self.now_book
        return self.before if self.before and self.before.start == start else None


@dataclass(frozen=True, slots=True)
class Hold:
    """What a reservation holds in one scope: in which period, and how its end is booked."""

    scope: bytes
    amount: int
    start: int
    priced: bool
    waits_until: int = 0
    """In suspense until then; 0: not in suspense."""
    charged: int = 0
    """What the suspense rule booked meanwhile."""


@dataclass(frozen=True, slots=True)
class Place:
    """One lane of a reservation."""

    lane: bytes
    probe: bool
    charges: tuple[Charged, ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation that counts, or the tombstone of one (then `places` matter only to a late settlement)."""

    state: State
    index: int = 0
    created: int = 0
    deadline: int = 0
    seq: int = 0
    places: tuple[Place, ...] = ()
    holds: tuple[Hold, ...] = ()
    calls: int = 1


@dataclass(slots=True)
class FairPool:
    """What principals of one pool took of its lanes, per weight, in millionths; and until when they are present."""

    counters: dict[bytes, int] = field(default_factory=dict)
    present: dict[bytes, int] = field(default_factory=dict)
    floor: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """A candidate as it arrives."""

    lanes: tuple[bytes, ...]
    scopes: tuple[bytes, ...]
    input: int
    output: int
    metered: int
    expected: int
    bound: int
    calls: int

    def amount(self, metric: Metric) -> int:
        return {
            Metric.REQUESTS: self.calls, Metric.TOKENS: self.metered, Metric.INPUT_TOKENS: self.input,
            Metric.OUTPUT_TOKENS: self.output, Metric.SPEND: max(0, self.expected), Metric.CONCURRENCY: self.calls,
        }[metric]  # fmt: skip


@dataclass(frozen=True, slots=True)
class SlabTold:
    """What stays of a slab's calls where nothing is refunded, per metric, what they metered, and how they ended."""

    stays: dict[Metric, int]
    metered: int
    well: int
    badly: int
    in_a_row: int


class Oracle:
    """One cell, from nothing. `run` is one transition."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Everything is gone, as after FLUSHALL."""
        self.exists = False
        self.schema_is_ours = True
        self.epoch = self.seq = self.last_now = 0
        self.version = 1
        self.suspect = False
        self.cautious_until = 0
        self.loss_noted: tuple[int, int] | None = None
        self.config: dict[bytes, tuple[int, ...]] = {}
        self.staged: dict[bytes, tuple[int, ...]] = {}
        self.staging = b""
        self.lanes: dict[bytes, Lane] = {}
        self.scopes: dict[bytes, Scope] = {}
        self.reservations: dict[bytes, Reservation] = {}
        self.leases: dict[bytes, int] = {}
        self.suspended: dict[bytes, int] = {}
        self.graves: dict[bytes, int] = {}
        self.unmatched: dict[bytes, tuple[int, ...]] = {}
        self.layout = b""
        self.moved: dict[bytes, tuple[int, list[tuple[int, int]]]] = {}
        """Of a scope, since when and what went to each other cell and came back (at home); what came and went back."""
        self.fair: dict[bytes, FairPool] = {}

    def run(self, name: str, args: Sequence[Argument], *, pool: str = "", now: int) -> Answer:
        """The answer of script `name` at time `now`; the cell changes as it must."""
        words = encoded(args)
        script = {
            "open": _open, "configure": _configure, "reserve": _reserve, "settle": _settle, "release": _release,
            "cancel": _cancel, "claim": _claim, "reassert": _reassert, "renew": _renew, "acknowledge": _acknowledge,
            "sweep": _sweep,
            "grant": _grant, "fund": _fund, "record": _record, "suspect": _suspect, "forgot": _forgot,
            "snapshot": _snapshot, "audit": _audit,
        }[name]  # fmt: skip
        turn = Turn(self, max(now, self.last_now), pool.encode())
        try:
            return script(turn, words)
        except IndexError:
            return [Code.BAD_ARGUMENT, 0, 0, 0, 0]
        except BadArgumentError as bad:
            return turn.stamp(Code.BAD_ARGUMENT) if bad.cell_was_read else [Code.BAD_ARGUMENT, 0, 0, 0, 0]
        except CellError as wrong:
            return [wrong.code, 0, 0, 0, 0]
        except CalendarMissingError as missing:
            return [*turn.stamp(Code.CALENDAR_NEEDED), AnyOf(frozenset(missing.numbers))]

    # --- what the reservations say -----------------------------------------------------------------------------------

    def open_ones(self) -> list[Reservation]:
        """Those with a lease that have not ended."""
        held = [self.reservations[rid] for rid in self.leases]
        return [found for found in held if found.state is State.OPEN]

    def in_flight(self, lane: bytes) -> int:
        """Calls of open reservations that use a lane."""
        return sum(found.calls for found in self.open_ones() for place in found.places if place.lane == lane)

    def held(self, scope: bytes, start: int) -> int:
        """Money held in a scope's period by open reservations, and by other cells that were granted it."""
        return self.granted(scope, start) + sum(
            hold.amount
            for found in self.open_ones()
            for hold in found.holds
            if hold.scope == scope and hold.start == start
        )

    def moved_in(self, scope: bytes, start: int) -> list[tuple[int, int]]:
        """What was moved in a period."""
        since, pairs = self.moved.get(scope, (NO_PERIOD, []))
        return list(pairs) if since == start else []

    def granted(self, scope: bytes, start: int) -> int:
        """What other cells have of a scope that is at home here."""
        known = self.scopes.get(scope)
        at_home = known is not None and not known.funded
        return sum(went - back for went, back in self.moved_in(scope, start)) if at_home else 0

    def in_suspense(self, scope: bytes, start: int) -> int:
        """Money of expired reservations that nobody has settled or resolved yet."""
        return sum(
            hold.amount
            for rid in self.suspended
            for hold in self.reservations[rid].holds
            if hold.scope == scope and hold.start == start and hold.waits_until
        )

    def lane_state(self, name: bytes, now: int) -> LaneState:
        """A lane as the snapshot must show it."""
        lane = self.lanes[name]
        halvings = min(60, max(0, now - lane.decayed_at) // MINUTE_US)
        in_flight = self.in_flight(name)
        return LaneState(
            id=_id(name), seq=lane.seq, in_flight=in_flight, blocked_until_us=lane.blocked_until,
            breaker="closed" if not lane.open else "open" if now < lane.open_until else "half_open",
            breaker_until_us=lane.open_until, successes=lane.successes_lately >> halvings,
            failures=lane.failures_lately >> halvings, latency_us=lane.latency, requests_total=lane.ended,
            failures_total=lane.failed, last_used_us=lane.last_used,
            limits=tuple(_limit_state(counter, in_flight, now) for counter in lane.counters),
        )  # fmt: skip

    def scope_state(self, name: bytes) -> ScopeState:
        """A budget as the snapshot must show it."""
        scope = self.scopes[name]
        book = scope.now_book
        return ScopeState(
            id=_id(name), seq=scope.seq, limit=scope.limit, hard=scope.hard, settled=book.settled,
            held=self.held(name, book.start), suspense=self.in_suspense(name, book.start), unpriced=book.unpriced,
            unpriced_requests=book.unpriced_requests, late=scope.late, starts_at_us=book.start, resets_at_us=scope.end,
        )  # fmt: skip

    def record_of(self, rid: bytes) -> ReservationRecord:
        """A reservation as the audit must show it."""
        found = self.reservations[rid]
        return ReservationRecord(
            rid=rid, state=found.state, created_us=found.created, deadline_us=found.deadline, index=found.index,
            lanes=tuple(_id(place.lane) for place in found.places),
            scopes=tuple((_id(h.scope), h.amount, h.start, h.waits_until, h.charged) for h in found.holds),
            charges=tuple(
                (_id(place.lane), LIMIT_NAMES[charge.rule.name - 1], charge.amount)
                for place in found.places for charge in place.charges
            ),
            calls=found.calls,
        )  # fmt: skip


class BadArgumentError(Exception):
    """An argument that the script must refuse."""

    def __init__(self, *, cell_was_read: bool = False) -> None:
        super().__init__()
        self.cell_was_read = cell_was_read


class CellError(Exception):
    """There is no cell, or it is another version's."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


class Turn:
    """One transition: copies of what it reads, written back together by `commit`, or not at all."""

    def __init__(self, oracle: Oracle, now: int, pool: bytes) -> None:
        self.oracle, self.now, self.pool = oracle, now, pool
        self.read_lanes: dict[bytes, Lane] = {}
        self.read_scopes: dict[bytes, Scope] = {}
        self.changed_lanes: set[bytes] = set()
        self.changed_scopes: set[bytes] = set()
        self.more_in_flight: dict[bytes, int] = {}
        self.more_held: dict[tuple[bytes, int], int] = {}
        self.more_suspense: dict[tuple[bytes, int], int] = {}
        self.reservations: dict[bytes, Reservation] = {}
        self.leases: dict[bytes, int | None] = {}
        self.suspended: dict[bytes, int | None] = {}
        self.graves: dict[bytes, int] = {}
        self.graves_gone: list[bytes] = []
        self.missing: set[int] = set()

    def begin(self) -> None:
        if not self.oracle.exists:
            raise CellError(Code.NO_CELL)
        if not self.oracle.schema_is_ours:
            raise CellError(Code.BAD_SCHEMA)

    def stamp(self, code: Code) -> Answer:
        return [code, self.oracle.epoch, self.oracle.seq, self.now, self.oracle.version]

    def next_seq(self) -> int:
        self.oracle.seq += 1
        self.oracle.last_now = self.now
        return self.oracle.seq

    def commit(self) -> None:
        if self.missing:
            raise CalendarMissingError(self.missing)
        seq = self.next_seq()
        cell = self.oracle
        for name in self.changed_lanes:
            cell.lanes[name] = self.read_lanes[name]
            cell.lanes[name].seq = seq
        for name in self.changed_scopes:
            cell.scopes[name] = self.read_scopes[name]
            cell.scopes[name].seq = seq
        for rid in self.graves_gone:
            del cell.graves[rid], cell.reservations[rid]
        cell.reservations.update(self.reservations)
        cell.graves.update(self.graves)
        _apply(cell.leases, self.leases)
        _apply(cell.suspended, self.suspended)
        self.more_in_flight, self.more_held, self.more_suspense = {}, {}, {}

    # --- reading -----------------------------------------------------------------------------------------------------

    def reservation(self, rid: bytes) -> Reservation | None:
        return self.reservations.get(rid) or self.oracle.reservations.get(rid)

    def load(self, found: Reservation) -> None:
        """Bring everything that a reservation touches up to date."""
        for place in found.places:
            self.lane(place.lane)
        for hold in found.holds:
            self.scope(hold.scope)

    def lane(self, name: bytes) -> Lane:
        if name not in self.read_lanes:
            stored = self.oracle.lanes.get(name)
            lane = stored.fork() if stored else Lane(decayed_at=self.now)
            for counter in lane.counters:
                self.advance(counter)
            if lane.version != self.oracle.version:
                self.reconfigure(name, lane)
            self.read_lanes[name] = lane
        return self.read_lanes[name]

    def in_flight(self, name: bytes) -> int:
        return self.oracle.in_flight(name) + self.more_in_flight.get(name, 0)

    def held(self, name: bytes, start: int) -> int:
        return self.oracle.held(name, start) + self.more_held.get((name, start), 0)

    def in_suspense(self, name: bytes, start: int) -> int:
        return self.oracle.in_suspense(name, start) + self.more_suspense.get((name, start), 0)

    def reconfigure(self, name: bytes, lane: Lane) -> None:
        """Take the active configuration over: counters whose clockwork is the same go on, others start with what was
        used. What was learned and is not configured stays."""
        lane.version = self.oracle.version
        numbers = self.oracle.config.get(name)
        if numbers is None:
            return
        lane.fair, lane.breaker = bool(numbers[0]), (numbers[1], numbers[2], numbers[3], numbers[4])
        before = {counter.rule.name: counter for counter in lane.counters}
        lane.counters = []
        for rule in _rules(numbers):
            old = before.pop(rule.name, None)
            lane.counters.append(self.take_over(name, old, rule))
        learned = [counter for counter in before.values() if counter.rule.learned]
        lane.counters.extend(learned[: LIMITS_MAX - len(lane.counters)])

    def take_over(self, name: bytes, old: Counter | None, rule: Rule) -> Counter:
        if old is not None and old.rule.clockwork == rule.clockwork:
            old.rule = rule
            return old
        fresh = Counter(rule)
        self.restart(fresh, self.used(name, old) if old else 0, old.generation if old else 0)
        return fresh

    def restart(self, counter: Counter, used: int, generation: int) -> None:
        """Start counting at now, `used` being used already. What was charged before has no place in it any more."""
        counter.generation = generation + 1
        counter.given_back = Fraction(0)
        counter.slots, counter.window, counter.used_in_window = {}, (0, 0), 0
        counter.level, counter.level_at = Fraction(0), self.now
        match counter.rule.kind:
            case LimitKind.BUCKET:
                counter.level = Fraction(used)
            case LimitKind.SLIDING:
                counter.slots = {self.slot(counter.rule): used}
            case LimitKind.FIXED | LimitKind.CALENDAR:
                self.advance(counter)
                if counter.window[0] < counter.window[1]:  # else its calendar is missing: this turn comes to nothing
                    counter.used_in_window = used

    def slot(self, rule: Rule) -> int:
        return self.now - self.now % rule.unit

    def advance(self, counter: Counter) -> None:
        """Let time do its work on one counter."""
        rule = counter.rule
        match rule.kind:
            case LimitKind.BUCKET:
                ticks = (self.now - counter.level_at) // rule.tick_us
                if ticks > 0:
                    counter.level = max(Fraction(0), counter.level - ticks * rule.per_tick)
                    counter.level_at += ticks * rule.tick_us
            case LimitKind.FIXED if self.now >= counter.window[1]:
                start = self.slot(rule)
                counter.window, counter.used_in_window = (start, start + rule.unit), 0
            case LimitKind.CALENDAR if self.now >= counter.window[1]:
                counter.window, counter.used_in_window = self.period(rule.unit), 0
            case LimitKind.SLIDING:
                oldest = self.slot(rule) - 6 * rule.unit
                counter.slots = {at: used for at, used in counter.slots.items() if at >= oldest}

    def period(self, calendar: int) -> tuple[int, int]:
        """The period of a calendar that contains now."""
        if calendar == 0:
            return 0, AMOUNT_MAX
        bounds = self.oracle.config.get(b"c:%d" % calendar, ())
        for start, end in pairwise(bounds):
            if start <= self.now < end:
                return start, end
        self.missing.add(calendar)
        return self.now, self.now

    def used(self, name: bytes, counter: Counter) -> int:
        match counter.rule.kind:
            case LimitKind.BUCKET:
                return ceil(counter.level)
            case LimitKind.SLIDING:
                return sum(counter.slots.values())
            case LimitKind.CONCURRENCY:
                return self.in_flight(name)
        return counter.used_in_window

    def scope(self, name: bytes) -> Scope | None:
        if name not in self.read_scopes:
            stored = self.oracle.scopes.get(name)
            scope = self.scope_configured(name, stored.fork() if stored else None)
            if scope is None:
                return None
            if self.now >= scope.end:
                self.roll(scope)
            if scope.funded:
                pairs = self.oracle.moved_in(name, scope.now_book.start)
                scope.limit = sum(came - back for came, back in pairs)
            self.read_scopes[name] = scope
        return self.read_scopes[name]

    def scope_configured(self, name: bytes, scope: Scope | None) -> Scope | None:
        numbers = self.oracle.config.get(name)
        if numbers is None or (scope is not None and scope.version == self.oracle.version):
            return scope
        limit, hard, unpriced, flat, calendar, suspense, after = numbers
        if scope is None:
            return Scope(self.oracle.version, limit, bool(hard), calendar, unpriced, flat, suspense, after)
        if calendar != scope.calendar:
            start, end = self.period(calendar)
            if scope.end > start:  # what was counted reaches into the new calendar's period: it goes on until that ends
                scope.end = end
        scope.limit, scope.hard, scope.calendar, scope.unpriced = limit, bool(hard), calendar, unpriced
        scope.flat, scope.suspense, scope.suspense_after, scope.version = flat, suspense, after, self.oracle.version
        return scope

    def roll(self, scope: Scope) -> None:
        start, end = self.period(scope.calendar)
        scope.before = scope.now_book if start == scope.end else None
        scope.now_book, scope.end = Book(start), end

    # --- changing ----------------------------------------------------------------------------------------------------

    def charge(self, lane: Lane, amounts: Offer) -> tuple[Charged, ...]:
        found: list[Charged] = []
        for counter in lane.counters:
            rule, amount = counter.rule, amounts.amount(counter.rule.metric)
            match rule.kind:
                case LimitKind.CONCURRENCY:
                    continue  # the reservation itself is what is counted
                case LimitKind.BUCKET:
                    counter.level += amount
                    place = Charged(rule, amount, 0, counter.level, counter.given_back, counter.generation)
                case LimitKind.SLIDING:
                    slot = self.slot(rule)
                    counter.slots[slot] = counter.slots.get(slot, 0) + amount
                    place = Charged(rule, amount, slot, generation=counter.generation)
                case _:
                    counter.used_in_window += amount
                    place = Charged(rule, amount, counter.window[0], generation=counter.generation)
            found.append(place)
        return tuple(found)

    def correct(self, lane: Lane, charged: Charged, actual: int, created: int, *, all_back: bool) -> None:
        """Count `actual` instead of what was charged, in the window that was charged.

        A bucket is a queue that drains from its front. Of a charge only what cannot have drained yet comes back: its
        place in the queue, less all that drained since, less all that others took out since."""
        change = actual - charged.amount
        for counter in lane.counters:
            rule = counter.rule
            if (rule.name, rule.kind, rule.unit) != (charged.rule.name, charged.rule.kind, charged.rule.unit):
                continue
            if change < 0 and not (all_back or rule.refund):
                continue
            if change < 0 and counter.generation != charged.generation:
                continue  # it was charged to a count that is no more
            match rule.kind:
                case LimitKind.BUCKET if change >= 0:
                    counter.level += change
                case LimitKind.BUCKET:
                    ticks = (self.now - created) // rule.tick_us + (rule.tick_us > 1)
                    others = counter.given_back - charged.given_back_before
                    left = max(Fraction(0), charged.place - ticks * rule.per_tick - others)
                    back = min(Fraction(-change), left, counter.level)
                    counter.level -= back
                    counter.given_back += back
                case LimitKind.SLIDING if charged.window >= self.slot(rule) - 6 * rule.unit:
                    counter.slots[charged.window] = max(0, counter.slots.get(charged.window, 0) + change)
                case LimitKind.FIXED | LimitKind.CALENDAR if counter.window[0] == charged.window:
                    counter.used_in_window = max(0, counter.used_in_window + change)

    def refunds(self, lane: Lane, charged: Charged) -> bool:
        """Whether the limit that was charged gives back what was not used."""
        return any(counter.rule.refund for counter in lane.counters if counter.rule.name == charged.rule.name)

    def evidence(self, lane: Lane, outcome: int, latency: int, *, probe: bool) -> None:
        """Health halves every minute. A breaker opens after so many failures in a row within its window; when it is
        open only its own probe's outcome counts."""
        halvings = (self.now - lane.decayed_at) // MINUTE_US
        lane.successes_lately >>= min(halvings, 60)
        lane.failures_lately >>= min(halvings, 60)
        lane.decayed_at += halvings * MINUTE_US
        if probe:
            lane.probe = 0
        if outcome == Outcome.SUCCESS:
            lane.successes_lately += 1
            lane.failures = lane.failing_since = 0
            if latency:
                lane.latency = lane.latency + (latency - lane.latency) // 8 if lane.latency else latency
            if probe:
                lane.open, lane.open_until, lane.times_opened = False, 0, 0
        elif outcome == Outcome.FAILURE:
            lane.failures_lately += 1
            lane.failed += 1
            after, window, _, _ = lane.breaker
            if not after:
                return
            if probe:
                self.open_breaker(lane)
            elif not lane.open:
                if self.now - lane.failing_since > window:
                    lane.failing_since, lane.failures = self.now, 0
                lane.failures += 1
                if lane.failures >= after:
                    self.open_breaker(lane)

    def open_breaker(self, lane: Lane) -> None:
        _, _, first, longest = lane.breaker
        lane.open, lane.open_until = True, self.now + min(first * 2 ** min(lane.times_opened, 20), longest)
        lane.times_opened, lane.failures = lane.times_opened + 1, 0

    def leave_lanes(
        self,
        found: Reservation,
        actual: dict[Metric, int],
        outcome: int,
        failed: int,
        latency: int,
        *,
        arrived: bool,
        slab: SlabTold | None = None,
    ) -> None:
        """Correct what was counted; an open reservation also leaves the lanes, with what it says of their health."""
        for number, place in enumerate(found.places):
            lane = self.lane(place.lane)
            for charged in place.charges:
                known, refunds = actual.get(charged.rule.metric, UNKNOWN), self.refunds(lane, charged)
                if slab is not None and (known == UNKNOWN or not refunds):
                    self.correct(lane, charged, slab.stays[charged.rule.metric], found.created, all_back=True)
                elif known != UNKNOWN:
                    self.correct(lane, charged, known, found.created, all_back=not arrived)
            if found.state is State.OPEN:
                self.more_in_flight[place.lane] = self.more_in_flight.get(place.lane, 0) - found.calls
                if arrived:
                    lane.ended, lane.last_used = lane.ended + 1, self.now
                blamed = outcome != Outcome.FAILURE or failed >> number & 1
                self.evidence(
                    lane, outcome if blamed else Outcome.NEUTRAL, latency,
                    probe=place.probe and lane.probe == found.seq,
                )  # fmt: skip
                if slab is not None:
                    self.slab_evidence(lane, slab, speaks=bool(failed >> number & 1))
            self.changed_lanes.add(place.lane)

    def slab_evidence(self, lane: Lane, slab: SlabTold, *, speaks: bool) -> None:
        """One call has told its outcome; all others count as well, and those at the end in a row for a breaker."""
        lane.ended += slab.stays[Metric.REQUESTS] - 1
        lane.successes_lately += max(0, slab.well - 1)
        if speaks:
            lane.failures_lately += slab.badly - slab.in_a_row
            lane.failed += slab.badly - slab.in_a_row
            for _ in range(slab.in_a_row):
                self.evidence(lane, Outcome.FAILURE, 0, probe=False)

    def leave_scopes(self, found: Reservation, cost: int, *, billed: bool) -> None:
        """Book the cost in the periods that were charged, and take what was held, or suspended, or charged for it."""
        for hold in found.holds:
            scope = self.scope(hold.scope)
            assert scope is not None
            if found.state is State.OPEN:
                _add(self.more_held, (hold.scope, hold.start), -hold.amount)
            elif hold.waits_until:
                _add(self.more_suspense, (hold.scope, hold.start), -hold.amount)
            settled, unpriced, requests = -hold.charged, 0, 0
            if hold.priced:
                settled += hold.amount if cost < 0 else cost
            elif billed:
                settled += hold.amount
                unpriced, requests = max(0, cost - hold.amount), 1
            self.book(hold, settled, unpriced, requests)

    def book(self, hold: Hold, settled: int, unpriced: int = 0, requests: int = 0) -> None:
        scope = self.scope(hold.scope)
        assert scope is not None
        book = scope.book(hold.start)
        if book is None:
            scope.late += settled
        else:
            book.settled += settled
            book.unpriced += unpriced
            book.unpriced_requests += requests
        self.changed_scopes.add(hold.scope)

    def end(self, rid: bytes, state: State) -> None:
        """An open one is buried when its end is acknowledged, or its lease over."""
        self.reservations[rid] = Reservation(state)

    def bury(self, rid: bytes, found: Reservation) -> None:
        self.reservations[rid] = found
        self.graves[rid] = self.now + DAY_US
        self.leases[rid] = self.suspended[rid] = None

    def open_reservation(self, rid: bytes, offer: Offer, index: int, holds: tuple[Hold, ...], lease: int) -> bool:
        places: list[Place] = []
        seq = self.oracle.seq + 1
        for name in offer.lanes:
            lane = self.lane(name)
            probe = lane.open and lane.probe == 0 and self.now >= lane.open_until
            if probe:
                lane.probe = seq
            places.append(Place(name, probe, self.charge(lane, offer)))
            self.changed_lanes.add(name)
        self.changed_scopes.update(hold.scope for hold in holds)
        self.reservations[rid] = Reservation(
            State.OPEN, index, self.now, self.now + lease, seq, tuple(places), holds, offer.calls
        )
        self.leases[rid] = self.now + lease
        return any(place.probe for place in places)

    def expire_due(self, most: int) -> int:
        """End some leases: concurrency comes back, counts stay, a probe failed, money waits in suspense."""
        due = _due(self.oracle.leases, self.now, most)
        for rid in due:
            found = self.oracle.reservations[rid]
            if found.state is not State.OPEN:
                self.bury(rid, found)
                continue
            self.load(found)
            probes = sum(place.probe << number for number, place in enumerate(found.places))
            self.leave_lanes(found, {}, Outcome.FAILURE if probes else Outcome.NEUTRAL, probes, 0, arrived=True)
            if not found.holds:
                self.bury(rid, replace(found, state=State.EXPIRED))
                continue
            holds = tuple(replace(hold, waits_until=self.suspense_ends(hold)) for hold in found.holds)
            for hold in found.holds:
                _add(self.more_held, (hold.scope, hold.start), -hold.amount)
                _add(self.more_suspense, (hold.scope, hold.start), hold.amount)
                self.changed_scopes.add(hold.scope)
            self.reservations[rid] = replace(found, state=State.SUSPENDED, holds=holds)
            self.leases[rid] = None
            self.suspended[rid] = min(hold.waits_until for hold in holds)
        return len(due)

    def suspense_ends(self, hold: Hold) -> int:
        scope = self.scope(hold.scope)
        assert scope is not None
        return AMOUNT_MAX if scope.suspense == HOLD_RULE else self.now + scope.suspense_after

    def resolve_suspense(self) -> int:
        """Book, or let go, at most eight suspended amounts, each scope by its own rule as it stands now."""
        due = _due(self.oracle.suspended, self.now, SWEPT_LEASES_MAX)
        for rid in due:
            found = self.oracle.reservations[rid]
            self.load(found)
            holds = tuple(self.resolve(hold) for hold in found.holds)
            waiting = [hold.waits_until for hold in holds if hold.waits_until]
            if waiting:
                self.reservations[rid] = replace(found, holds=holds)
                self.suspended[rid] = min(waiting)
            else:
                self.bury(rid, replace(found, state=State.EXPIRED, holds=holds))
        return len(due)

    def resolve(self, hold: Hold) -> Hold:
        if not 0 < hold.waits_until <= self.now:
            return hold
        scope = self.scope(hold.scope)
        assert scope is not None
        if scope.suspense == HOLD_RULE:
            return replace(hold, waits_until=AMOUNT_MAX)
        charged = hold.amount if scope.suspense == CHARGE_RULE else 0
        self.book(hold, charged)
        _add(self.more_suspense, (hold.scope, hold.start), -hold.amount)
        return replace(hold, waits_until=0, charged=charged)

    def remove_graves(self, most: int) -> int:
        """Take out tombstones whose time is over, in the next commit."""
        self.graves_gone = _due(self.oracle.graves, self.now, most)
        return len(self.graves_gone)

    # --- deciding ----------------------------------------------------------------------------------------------------

    def against(self, offer: Offer) -> Refusal | None:
        """What keeps an offer out longest; None when nothing does. The first of equals is named."""
        reasons = [
            *(self.lane_against(name, offer) for name in offer.lanes),
            *(self.scope_against(name, offer) for name in offer.scopes),
        ]
        return _longest(reasons)

    def lane_against(self, name: bytes, offer: Offer) -> Refusal | None:
        lane = self.lane(name)
        found: list[Refusal | None] = []
        if self.now < lane.blocked_until:
            found.append((Reason.COOLDOWN, name, 0, lane.blocked_until, RetryKind.EXACT))
        if lane.open and self.now < lane.open_until:
            found.append((Reason.BREAKER_OPEN, name, 0, lane.open_until, RetryKind.EXACT))
        elif lane.open and lane.probe:
            at = self.now + max(10_000, lane.latency)
            found.append((Reason.PROBE_IN_FLIGHT, name, 0, at, RetryKind.ESTIMATED))
        return _longest([*found, *(self.limit_against(name, lane, counter, offer) for counter in lane.counters)])

    def limit_against(self, name: bytes, lane: Lane, counter: Counter, offer: Offer) -> Refusal | None:
        rule, amount = counter.rule, offer.amount(counter.rule.metric)
        if amount > rule.capacity:
            return Reason.NEVER_FITS, name, rule.name, AMOUNT_MAX, RetryKind.NEVER
        if rule.kind is LimitKind.BUCKET:
            over = counter.level + amount - rule.capacity
            if over <= 0:
                return None
            if not rule.drain:  # what never drains is full for ever
                return Reason.NEVER_FITS, name, rule.name, AMOUNT_MAX, RetryKind.NEVER
            at = counter.level_at + ceil(over / rule.per_tick) * rule.tick_us
            return Reason.LIMIT, name, rule.name, at, RetryKind.EXACT
        over_now = self.used(name, counter) + amount - rule.capacity
        if over_now <= 0:
            return None
        if rule.kind is LimitKind.CONCURRENCY:
            at = self.now + max(10_000, lane.latency // rule.capacity)
            return Reason.LIMIT, name, rule.name, at, RetryKind.ESTIMATED
        at = counter.window[1]
        if rule.kind is LimitKind.SLIDING:
            at = next(
                slot + 7 * rule.unit
                for slot in sorted(counter.slots)
                if sum(used for other, used in counter.slots.items() if other <= slot) >= over_now
            )
        return Reason.LIMIT, name, rule.name, at, RetryKind.EXACT

    def hold_in(self, name: bytes, offer: Offer) -> Hold | None:
        """What a scope holds of an offer: the bound under hard enforcement, the expected cost under soft. None: its
        rule denies what has no price."""
        scope = self.scope(name)
        assert scope is not None
        amount = offer.bound if scope.hard else offer.expected
        start = scope.now_book.start
        if amount >= 0:
            return Hold(name, amount, start, priced=True)
        if scope.unpriced == FLAT_UNPRICED:
            return Hold(name, scope.flat, start, priced=False)
        if scope.unpriced == METER_UNPRICED or not scope.hard:
            return Hold(name, 0, start, priced=False)
        return None

    def taken(self, name: bytes) -> int:
        scope = self.scope(name)
        assert scope is not None
        book = scope.now_book
        return book.settled + self.held(name, book.start) + self.in_suspense(name, book.start)

    def scope_against(self, name: bytes, offer: Offer) -> Refusal | None:
        scope, hold = self.scope(name), self.hold_in(name, offer)
        assert scope is not None
        if hold is None:
            return Reason.UNPRICED, name, 0, AMOUNT_MAX, RetryKind.NEVER
        if not scope.hard:
            return None
        if self.oracle.suspect:
            return Reason.CLOCK_SUSPECT, name, 0, self.now + 1_000_000, RetryKind.ESTIMATED
        if hold.amount > scope.limit:
            return Reason.NEVER_FITS, name, 0, AMOUNT_MAX, RetryKind.NEVER
        if self.taken(name) + hold.amount <= scope.limit:
            return None
        if scope.now_book.settled + hold.amount <= scope.limit:  # what is held or suspended may still come back
            return Reason.BUDGET, name, 0, min(self.now + 1_000_000, scope.end), RetryKind.ESTIMATED
        never = scope.end == AMOUNT_MAX
        return Reason.BUDGET, name, 0, scope.end, RetryKind.NEVER if never else RetryKind.EXACT

    def caution_against(self, offer: Offer) -> Refusal | None:
        """While it is not known what the store forgot, an eighth of everything stays free of what is asked for."""
        until = self.oracle.cautious_until
        for name in offer.lanes:
            for counter in self.lane(name).counters:
                amount = offer.amount(counter.rule.metric)
                if amount and 8 * (self.used(name, counter) + amount) > 7 * counter.rule.capacity:
                    return Reason.STORE_FORGOT, name, counter.rule.name, until, RetryKind.ESTIMATED
        for name in offer.scopes:
            scope, hold = self.scope(name), self.hold_in(name, offer)
            assert scope is not None
            assert hold is not None
            if scope.hard and hold.amount and 8 * (self.taken(name) + hold.amount) > 7 * scope.limit:
                return Reason.STORE_FORGOT, name, 0, until, RetryKind.ESTIMATED
        return None

    # --- fairness ----------------------------------------------------------------------------------------------------

    def fair_charge(self, offer: Offer, weight: int) -> tuple[bool, int, int]:
        """Whether the offer would use what a fair lane keeps for who was served least; for how long it is present that
        is served, once it comes half way there (before that nobody counts: 0); and the millionths of the lane that it
        takes, per weight. Gates are no accounting: here both sides may use floating point."""
        scarce, stay, share = False, 0, 0
        for name in offer.lanes:
            lane = self.lane(name)
            for counter in lane.counters if lane.fair else ():
                rule, amount = counter.rule, offer.amount(counter.rule.metric)
                if amount == 0:
                    continue
                used, room = self.used(name, counter) + amount, self.open_to_all(counter, amount)
                scarce = scarce or used > room
                stay = max(stay, self.stay(rule, amount) if used * 2 > room else 0)
                share = max(share, ceil(Fraction(amount * 1_000_000, rule.capacity)))
        return scarce, stay, max(1, ceil(Fraction(share, weight)))

    def stay(self, rule: Rule, amount: int) -> int:
        """Room that comes back or can be used later is kept for ten seconds, else for a moment."""
        lasts = rule.kind in (LimitKind.FIXED, LimitKind.CALENDAR)
        lasts = lasts or (rule.kind is LimitKind.BUCKET and rule.capacity > 8 * amount)
        return FAIR_STAY_US if lasts else FAIR_STAY_LOST_US

    def open_to_all(self, counter: Counter, amount: int) -> float:
        """A bucket keeps its last eighth, a window an eighth ahead of its pace, others one request's room."""
        capacity, kind = counter.rule.capacity, counter.rule.kind
        if kind in (LimitKind.FIXED, LimitKind.CALENDAR):
            start, end = counter.window
            if start == end:  # its calendar is missing: this turn comes to nothing
                return capacity
            return capacity * (1 - (end - self.now) / (end - start) * 9 / 8)
        return capacity - (max(amount, capacity / 8) if kind is LimitKind.BUCKET else amount)

    def fair_counters(self, principal: bytes) -> tuple[int, int]:
        """The counter of the least served that is present, and this one's. Nobody is below the floor."""
        fair = self.fair_pool()
        present = {name for name, until in fair.present.items() if until > self.now} | {principal}
        binding = [counter for name, counter in fair.counters.items() if name in present]
        mine = fair.counters.get(principal, 0)
        least = max(fair.floor, min(binding, default=mine))
        return least, max(least, mine)

    def fair_idle(self, principal: bytes) -> set[bytes]:
        """Those who left ten seconds ago, the eight that left first; whoever asks now is not among them."""
        return set(_due(self.fair_pool().present, self.now - FAIR_IDLE_US, FAIR_LEAVERS_MAX)) - {principal}

    def fair_pool(self) -> FairPool:
        return self.oracle.fair.setdefault(self.pool, FairPool())

    def fair_leave(self, principal: bytes) -> None:
        fair = self.fair_pool()
        for name in self.fair_idle(principal):
            del fair.counters[name], fair.present[name]

    def fair_take(self, principal: bytes, charge: int, stay: int) -> None:
        fair, (_, mine) = self.fair_pool(), self.fair_counters(principal)
        self.fair_leave(principal)
        fair.counters[principal], fair.present[principal] = mine + charge, self.now + stay
        fair.floor = max(fair.floor, mine + charge - max(FAIR_LEAD, 8 * charge))


UNKNOWN = -1
"""An amount that nobody knows: what was charged stays."""


# --- scripts ---------------------------------------------------------------------------------------------------------


def _open(turn: Turn, words: list[bytes]) -> Answer:
    epoch, cell = _amount(words[0]), turn.oracle
    layout, made = b"".join(words[1:2]), not cell.exists
    if made:
        cell.exists, cell.epoch, cell.layout = True, epoch, layout
        return [*turn.stamp(Code.OK), 1]
    try:
        turn.begin()
    except CellError as wrong:
        return [wrong.code, 0, 0, 0, 0, 0]
    if layout != cell.layout:
        if cell.layout or cell.seq:
            return [*turn.stamp(Code.CONFLICT), cell.layout]
        cell.layout = layout
    return [*turn.stamp(Code.OK), 0]


def _grant(turn: Turn, words: list[bytes]) -> Answer:
    name, number = words[0], _amount(words[1])
    start, funded, back, asked, least = (_amount(word) for word in (words[at] for at in range(2, 7)))
    if not 1 <= number <= CELLS_MAX or back > funded:
        raise BadArgumentError
    scope = _escrowed(turn, name)
    if scope is None or scope.funded:
        return [*turn.stamp(Code.CONFLICT), 0] if scope else [*turn.stamp(Code.UNKNOWN_SCOPE), name]
    since, cell = scope.now_book.start, turn.oracle
    pairs = cell.moved_in(name, since)
    own = turn.held(name, since) - cell.granted(name, since)
    pairs += [(0, 0)] * (number - len(pairs))
    before = went, came = pairs[number - 1]
    if start == since:
        went, came = max(went, funded), max(came, back)
        pairs[number - 1] = went, came
        out = sum(one - other for one, other in pairs)
        free = scope.limit - scope.now_book.settled - own - turn.in_suspense(name, since) - out
        amount = min(asked, free, AMOUNT_MAX - went)
        if amount > 0 and amount >= least and went == funded and not cell.suspect:
            went += amount
    pairs[number - 1] = went, came
    _move(turn, name, since, pairs, changed=(went, came) != before)
    held = own + sum(one - other for one, other in pairs)
    books = [since, scope.end, scope.limit, scope.now_book.settled, held, turn.in_suspense(name, since)]
    return [*turn.stamp(Code.OK), *books, *(amount for pair in pairs for amount in pair)]


def _fund(turn: Turn, words: list[bytes]) -> Answer:
    name = words[0]
    start, granted, back, recall = (_amount(word) for word in (words[at] for at in range(1, 5)))
    if back > granted:
        raise BadArgumentError
    scope = _escrowed(turn, name)
    if scope is None or not scope.funded:
        return [*turn.stamp(Code.CONFLICT), 0] if scope else [*turn.stamp(Code.UNKNOWN_SCOPE), name]
    since = scope.now_book.start
    before = came, went = (turn.oracle.moved_in(name, since) or [(0, 0)])[0]
    used = [scope.now_book.settled, turn.held(name, since), turn.in_suspense(name, since)]
    if start == since:
        came, went = max(came, granted), max(went, back)
        free = came - went - sum(used)
        went = max(went, min(recall, went + free))
    scope.limit = came - went
    _move(turn, name, since, [(came, went)], changed=(came, went) != before)
    return [*turn.stamp(Code.OK), since, scope.end, came, went, *used]


def _escrowed(turn: Turn, name: bytes) -> Scope | None:
    turn.begin()
    scope = turn.scope(name)
    if scope is not None and turn.missing:
        raise CalendarMissingError(turn.missing)
    return scope


def _move(turn: Turn, name: bytes, since: int, pairs: list[tuple[int, int]], *, changed: bool) -> None:
    if changed:
        turn.changed_scopes.add(name)
        turn.commit()
        turn.oracle.moved[name] = (since, pairs)


def _configure(turn: Turn, words: list[bytes]) -> Answer:
    mode, cell = words[0], turn.oracle
    token, entries = _amount(words[1]), _config_entries(words[2:])
    turn.begin()
    del token
    if mode in (b"put", b"calendar"):
        if any(cell.config.get(name) != numbers for name, numbers in entries):
            cell.config.update(entries)
            if mode == b"put":
                cell.version += 1
                turn.next_seq()
        return turn.stamp(Code.OK)
    if mode == b"begin":
        cell.staged, cell.staging = {}, words[1]
        return turn.stamp(Code.OK)
    if cell.staging != words[1]:
        return [*turn.stamp(Code.CONFLICT), 0]
    if mode == b"stage":
        if not entries:
            raise BadArgumentError(cell_was_read=True)
        cell.staged.update(entries)
        return turn.stamp(Code.OK)
    if mode == b"flip":
        if dict(entries).get(b"version") != (cell.version,):
            return [*turn.stamp(Code.CONFLICT), 0]
        cell.config, cell.staged, cell.staging = cell.staged, cell.config, b""
        cell.version += 1
        turn.next_seq()
        return turn.stamp(Code.OK)
    raise BadArgumentError(cell_was_read=True)


def _reserve(turn: Turn, words: list[bytes]) -> Answer:
    rid, principal, asked = words[0], words[1], _request(words)
    wanted, lease, weight = asked.numbers
    if weight < 1:
        raise BadArgumentError
    turn.begin()
    known = turn.reservation(rid)
    if known is not None:
        if known.state is not State.OPEN:
            return [*turn.stamp(Code.CONFLICT), known.state]
        probe = any(place.probe for place in known.places)
        return [*turn.stamp(Code.REPLAYED), known.index, known.deadline, int(probe), 0, 0]
    if wanted and wanted != turn.oracle.version:
        return turn.stamp(Code.STALE_CONFIG)
    swept = turn.expire_due(RESERVE_SWEEPS_MAX)
    losses: list[Refusal] = []
    offers, number = [asked.first], 0
    while number < len(offers):
        unknown = _load_offers(turn, offers)
        if unknown:
            return [*turn.stamp(Code.UNKNOWN_SCOPE), AnyOf(frozenset(unknown))]
        against, charge, stay = turn.against(offers[number]), 0, 0
        if against is None and turn.now < turn.oracle.cautious_until:
            against = turn.caution_against(offers[number])
        if against is None and principal:
            scarce, stay, charge = turn.fair_charge(offers[number], weight)
            if not stay:
                charge = 0
            least, mine = turn.fair_counters(principal)
            if scarce and mine > least + 2 * charge:
                against = (Reason.FAIR_SHARE, offers[number].lanes[0], 0, turn.now + 100_000, RetryKind.ESTIMATED)
        if against is None:
            return _admit(turn, rid, offers[number], number, lease, principal, (charge, stay), losses)
        losses.append(against)
        offers += asked.others() if number == 0 else []
        number += 1
    if turn.missing:
        raise CalendarMissingError(turn.missing)
    if swept:
        turn.commit()
    return [*turn.stamp(Code.DENIED), *_told(losses)]


def _admit(
    turn: Turn,
    rid: bytes,
    offer: Offer,
    number: int,
    lease: int,
    principal: bytes,
    fair: tuple[int, int],
    losses: list[Refusal],
) -> Answer:
    holds = tuple(hold for hold in (turn.hold_in(name, offer) for name in offer.scopes) if hold is not None)
    probe = turn.open_reservation(rid, offer, number, holds, lease)
    turn.commit()
    if fair[0]:
        turn.fair_take(principal, *fair)
    soft = [
        name for name in offer.scopes
        if not turn.oracle.scopes[name].hard and turn.taken(name) > turn.oracle.scopes[name].limit
    ]  # fmt: skip
    return [*turn.stamp(Code.ADMITTED), number, turn.now + lease, int(probe), len(soft), *soft, *_told(losses)]


def _load_offers(turn: Turn, offers: list[Offer]) -> set[bytes]:
    for offer in offers:
        for name in offer.lanes:
            turn.lane(name)
    return {name for offer in offers for name in offer.scopes if turn.scope(name) is None}


def _told(losses: list[Refusal]) -> Answer:
    return [len(losses), *(part for loss in losses for part in loss)]


def _settle(turn: Turn, words: list[bytes]) -> Answer:
    if not words or len(words) > 2 * 32:
        raise BadArgumentError
    rows = [(words[at], _used_numbers(words[at + 1])) for at in range(0, len(words), 2)]
    turn.begin()
    results: Answer = []
    unmatched: dict[bytes, tuple[int, ...]] = {}
    for rid, (tokens_in, tokens_out, cost, outcome, failed, latency, *rest) in rows:
        found = turn.reservation(rid)
        if found is None:
            unmatched.setdefault(rid, (turn.now, tokens_in, tokens_out, cost))
            results += [Code.UNMATCHED, 0]
        elif found.state is State.SETTLED:
            results += [Code.REPLAYED, State.SETTLED]
        elif found.state in (State.RELEASED, State.CANCELLED):
            results += [Code.CONFLICT, found.state]
        else:
            turn.load(found)
            actual = {
                Metric.TOKENS: tokens_in + tokens_out, Metric.INPUT_TOKENS: tokens_in,
                Metric.OUTPUT_TOKENS: tokens_out, Metric.SPEND: cost,
            }  # fmt: skip
            slab = _slab_told(rest)
            if slab is not None:
                actual[Metric.TOKENS] = slab.metered
            turn.leave_lanes(found, actual, outcome, failed, latency, arrived=True, slab=slab)
            turn.leave_scopes(found, cost, billed=True)
            if found.state is State.OPEN:
                turn.end(rid, State.SETTLED)
            else:
                turn.bury(rid, Reservation(State.SETTLED))
            results += [Code.OK, State.SETTLED]
    if turn.missing:
        raise CalendarMissingError(turn.missing)
    news = unmatched.keys() - turn.oracle.unmatched.keys()
    if turn.reservations or news:
        turn.commit()
    for rid in news:
        turn.oracle.unmatched[rid] = unmatched[rid]
    return [*turn.stamp(Code.OK), *results]


def _give_back(
    turn: Turn, rid: bytes, found: Reservation, state: State, *, sent: bool, failed: int, latency: int
) -> None:
    nothing = dict.fromkeys(Metric, 0)
    actual = {Metric.SPEND: 0} if sent else nothing
    outcome = Outcome.FAILURE if failed else Outcome.NEUTRAL
    turn.leave_lanes(found, actual, outcome, failed, latency, arrived=sent)
    turn.leave_scopes(found, 0, billed=False)
    turn.end(rid, state)


def _release(turn: Turn, words: list[bytes]) -> Answer:
    rid, sent, failed, latency = words[0], words[1] == b"1", _amount(words[2]), _amount(words[3])
    turn.begin()
    return _end(turn, rid, State.RELEASED, sent=sent, failed=failed, latency=latency)


def _cancel(turn: Turn, words: list[bytes]) -> Answer:
    turn.begin()
    if turn.reservation(words[0]) is None:
        turn.bury(words[0], Reservation(State.CANCELLED))
        turn.commit()
        return [*turn.stamp(Code.OK), State.CANCELLED]
    return _end(turn, words[0], State.CANCELLED, sent=False, failed=0, latency=0)


def _end(turn: Turn, rid: bytes, state: State, *, sent: bool, failed: int, latency: int) -> Answer:
    found = turn.reservation(rid)
    if found is None:
        return [*turn.stamp(Code.UNMATCHED), 0]
    if found.places:  # a tombstone that kept its numbers is brought up to date too, before it is looked at
        turn.load(found)
        if turn.missing:
            raise CalendarMissingError(turn.missing)
    if found.state is state:
        return [*turn.stamp(Code.REPLAYED), state]
    if found.state is not State.OPEN:
        return [*turn.stamp(Code.CONFLICT), found.state]
    _give_back(turn, rid, found, state, sent=sent, failed=failed, latency=latency)
    turn.commit()
    return [*turn.stamp(Code.OK), state]


def _reassert(turn: Turn, words: list[bytes]) -> Answer:
    rid, asked = words[0], _request(words)
    (_, lease, index), offer = asked.numbers, asked.first
    turn.begin()
    known = turn.reservation(rid)
    if known is not None:
        code = Code.REPLAYED if known.state is State.OPEN else Code.CONFLICT
        return [*turn.stamp(code), known.state]
    unknown = _load_offers(turn, [offer])
    if unknown:
        return [*turn.stamp(Code.UNKNOWN_SCOPE), AnyOf(frozenset(unknown))]
    holds = tuple(_hold_again(turn, name, offer) for name in offer.scopes)
    turn.open_reservation(rid, offer, index, holds, lease)
    turn.commit()
    return [*turn.stamp(Code.OK), State.OPEN]


def _hold_again(turn: Turn, name: bytes, offer: Offer) -> Hold:
    """It was admitted once: what cannot be priced now is booked as unpriced."""
    scope = turn.scope(name)
    assert scope is not None
    return turn.hold_in(name, offer) or Hold(name, 0, scope.now_book.start, priced=False)


def _renew(turn: Turn, words: list[bytes]) -> Answer:
    if not 2 <= len(words) <= 129:
        raise BadArgumentError
    lease = _amount(words[0])
    turn.begin()
    leases, known = turn.oracle.leases, turn.oracle.reservations
    lost = [rid for rid in words[1:] if rid not in known or known[rid].state is not State.OPEN]
    for rid in words[1:]:
        if rid not in lost:
            leases[rid] = max(leases[rid], turn.now + lease)
    if len(lost) < len(words) - 1:
        turn.next_seq()
    return [*turn.stamp(Code.OK), len(lost), *lost]


def _acknowledge(turn: Turn, words: list[bytes]) -> Answer:
    if not 1 <= len(words) <= 128:
        raise BadArgumentError
    turn.begin()
    turn.remove_graves(2 * len(words))
    for rid in words:
        found = turn.reservation(rid)
        if found and found.state not in (State.OPEN, State.SUSPENDED) and rid not in turn.graves_gone:
            turn.leases[rid], turn.graves[rid] = None, turn.now + MINUTE_US
    turn.commit()
    return turn.stamp(Code.OK)


def _sweep(turn: Turn, words: list[bytes]) -> Answer:
    del words
    turn.begin()
    expired = turn.expire_due(SWEPT_LEASES_MAX)
    resolved = 0 if expired else turn.resolve_suspense()
    if turn.missing:
        raise CalendarMissingError(turn.missing)
    removed = turn.remove_graves(64)
    if expired or resolved or removed:
        turn.commit()
    return [*turn.stamp(Code.OK), expired, resolved, removed]


def _record(turn: Turn, words: list[bytes]) -> Answer:
    name, cool = words[0], _cost(words[1])
    if (len(words) - 2) % 9 or len(words) > 2 + 8 * 9:
        raise BadArgumentError
    rows = []
    for at in range(2, len(words), 9):
        numbers = [_told_use(word) if place == 7 else _amount(word) for place, word in enumerate(words[at : at + 9])]
        rows.append(numbers)
    turn.begin()
    lane = turn.lane(name)
    if cool < 0:
        lane.blocked_until = 0
    elif cool:
        lane.blocked_until = max(lane.blocked_until, turn.now + cool)
    for numbers in rows:
        _observe(turn, name, lane, numbers)
    turn.changed_lanes.add(name)
    turn.commit()
    return turn.stamp(Code.OK)


def _observe(turn: Turn, name: bytes, lane: Lane, numbers: list[int]) -> None:
    """A provider's word on one limit: a lower limit than configured is adopted, as long as it is said; an unknown one
    is learned; usage is only ever raised."""
    limit, metric, kind, capacity, unit, drain, tick_us, used, full_in = numbers
    counter = next((counter for counter in lane.counters if counter.rule.name == limit), None)
    said = Rule(
        limit, _METRICS[metric - 1], _KINDS[kind - 1], capacity, unit, drain, tick_us, refund=True, learned=True
    )
    if used == BEGIN_ANEW:
        if counter is not None:
            turn.restart(counter, 0, counter.generation)
        return
    if capacity:
        rule = _ruling(turn, name, counter, said)
        if counter is None:
            if len(lane.counters) < LIMITS_MAX:
                counter = Counter(rule)
                turn.restart(counter, 0, 0)
                lane.counters.append(counter)
        elif (rule.capacity, rule.kind) != (counter.rule.capacity, counter.rule.kind):
            already = turn.used(name, counter)
            counter.rule = rule
            turn.restart(counter, already, counter.generation)
    if counter is not None:
        room_elsewhere = max(0, capacity - counter.rule.capacity)  # of a larger limit than ours
        _raise_usage(turn, name, counter, used - room_elsewhere, full_in)


def _ruling(turn: Turn, name: bytes, counter: Counter | None, said: Rule) -> Rule:
    numbers = turn.oracle.config.get(name, ())
    configured = next((rule for rule in _rules(numbers) if rule.name == said.name), None)
    said = replace(said, refund=counter.rule.refund if counter else True)
    if configured is None or said.capacity < configured.capacity:
        return said
    assert counter is not None
    return configured if counter.rule.learned else counter.rule


def _raise_usage(turn: Turn, name: bytes, counter: Counter, used: int, full_in: int) -> None:
    rule = counter.rule
    more = used - turn.used(name, counter)
    if rule.kind is LimitKind.BUCKET and full_in:
        level = min(full_in // rule.tick_us * rule.per_tick, Fraction(rule.capacity))
        counter.level = max(counter.level, level)
    elif more <= 0:
        return
    elif rule.kind is LimitKind.BUCKET:
        counter.level += more
    elif rule.kind is LimitKind.SLIDING:
        slot = turn.slot(rule)
        counter.slots[slot] = counter.slots.get(slot, 0) + more
    else:
        counter.used_in_window += more


def _suspect(turn: Turn, words: list[bytes]) -> Answer:
    turn.begin()
    turn.oracle.suspect = words[0] == b"1"
    turn.next_seq()
    return turn.stamp(Code.OK)


def _forgot(turn: Turn, words: list[bytes]) -> Answer:
    epoch, seq, lease = _amount(words[0]), _amount(words[1]), _amount(words[2])
    if lease > HOUR_US:
        raise BadArgumentError
    turn.begin()
    cell, code = turn.oracle, Code.REPLAYED
    if cell.loss_noted is None or cell.loss_noted[0] != epoch or cell.loss_noted[1] < seq:
        cell.loss_noted, cell.cautious_until = (epoch, seq), max(cell.cautious_until, turn.now + lease)
        turn.next_seq()
        code = Code.OK
    return [*turn.stamp(code), cell.cautious_until]


def _claim(turn: Turn, words: list[bytes]) -> Answer:
    principal, stay = words[0], _amount(words[1])
    if not principal:
        raise BadArgumentError
    turn.begin()
    fair, (_, mine) = turn.fair_pool(), turn.fair_counters(principal)
    turn.fair_leave(principal)
    fair.counters[principal] = mine
    until = turn.now + min(stay, FAIR_STAY_US)
    fair.present[principal] = max(fair.present.get(principal, 0), until)
    return turn.stamp(Code.OK)


def _snapshot(turn: Turn, words: list[bytes]) -> Answer:
    if len(words) > 257:
        raise BadArgumentError
    since, cell = _amount(words[0]), turn.oracle
    turn.begin()
    answer = turn.stamp(Code.OK)
    for number, name in enumerate(words[1:]):
        if name in cell.lanes and cell.lanes[name].seq > since:
            answer += [number, cell.lane_state(name, turn.now)]
        elif name in cell.scopes and cell.scopes[name].seq > since:
            answer += [number, cell.scope_state(name)]
    return answer


def _audit(turn: Turn, words: list[bytes]) -> Answer:
    first, count = _amount(words[1]), _amount(words[2])
    if not 1 <= count <= 256:
        raise BadArgumentError
    turn.begin()
    index = turn.oracle.suspended if words[0] == b"2" else turn.oracle.leases
    answer = [*turn.stamp(Code.OK), len(index)]
    for rid in _due(index, None, len(index))[first : first + count]:
        if turn.oracle.reservations[rid].state in (State.OPEN, State.SUSPENDED):
            answer += [rid, turn.oracle.record_of(rid)]
    return answer


# --- small parts -----------------------------------------------------------------------------------------------------


def _amount(word: bytes) -> int:
    if not word.isdigit() or int(word) > AMOUNT_MAX:
        raise BadArgumentError
    return int(word)


def _amount_at(words: list[bytes], at: int) -> int:
    if at >= len(words):
        raise BadArgumentError
    return _amount(words[at])


def _cost(word: bytes) -> int:
    return UNKNOWN if word == b"-1" else _amount(word)


def _id(field: bytes) -> str:
    """The id of a lane or scope; its field says before it which of both it is."""
    return field.decode()[2:]


def _integers(word: bytes) -> tuple[int, ...]:
    """Packed integers; -1 says that something is not known."""
    if len(word) % 8:
        raise BadArgumentError
    numbers = struct.unpack(f"<{len(word) // 8}d", word)
    if not all(-1 <= number <= AMOUNT_MAX and number == int(number) for number in numbers):
        raise BadArgumentError
    return tuple(map(int, numbers))


def _known(numbers: Sequence[int]) -> Sequence[int]:
    if min(numbers, default=0) < 0:
        raise BadArgumentError
    return numbers


def _told_use(word: bytes) -> int:
    return BEGIN_ANEW if word == b"-2" else _cost(word)


def _used_numbers(word: bytes) -> tuple[int, ...]:
    numbers = _integers(word)
    if len(numbers) not in (6, 15):
        raise BadArgumentError
    _known(numbers[:2] + numbers[3:])
    if numbers[6:] and numbers[14] > min(numbers[13], 16):
        raise BadArgumentError
    return numbers


def _slab_told(numbers: Sequence[int]) -> SlabTold | None:
    if not numbers:
        return None
    *stays, metered, well, badly, in_a_row = numbers
    return SlabTold(dict(zip(_METRICS[:5], stays, strict=True)), metered, well, badly, in_a_row)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: its configuration version, lease and weight, its first offer, and what it says of others."""

    numbers: tuple[int, int, int]
    charges: tuple[int, ...]
    shared: tuple[bytes, ...]
    first: Offer
    rest: bytes

    def others(self) -> list[Offer]:
        """All offers but the first."""
        try:
            offers, lines = [], self.rest.split(b"\n")
            if lines.pop() != b"":
                raise BadArgumentError
            while lines:
                end = lines.index(b"")
                number, *names = lines[:end]
                del lines[: end + 1]
                lanes = tuple(name for name in names if name.startswith(b"l"))
                own = tuple(name for name in names if not name.startswith(b"l"))
                offers.append(_offer(self.charges, _amount(number), lanes, self.shared, own, self.first.calls))
            if len(offers) > 63:
                raise BadArgumentError
        except (BadArgumentError, ValueError):
            raise BadArgumentError(cell_was_read=True) from None
        return offers


def _request(words: list[bytes]) -> Asked:
    numbers = _integers(words[2])
    if len(numbers) < 12 or numbers[6] < 1:
        raise BadArgumentError
    version, lease, weight, *counts = _known(numbers[:6])
    lane_count, shared_count, _ = counts
    fields = tuple(words[3 : 3 + sum(counts)])
    if len(fields) < sum(counts) or shared_count > 8:
        raise BadArgumentError
    lanes, shared = fields[:lane_count], fields[lane_count : lane_count + shared_count]
    own = fields[lane_count + shared_count :]
    first = _offer(numbers[7:], 1, lanes, shared, own, numbers[6])
    rest = words[3 + sum(counts)] if len(words) > 3 + sum(counts) else b""
    return Asked((version, lease, weight), numbers[7:], shared, first, rest)


def _offer(
    charges: tuple[int, ...],
    number: int,
    lanes: tuple[bytes, ...],
    shared: tuple[bytes, ...],
    own: tuple[bytes, ...],
    calls: int,
) -> Offer:
    charge = charges[5 * (number - 1) :][:5] if number else ()
    if not 1 <= len(lanes) <= 6 or len(own) > 4 or len(charge) < 5:
        raise BadArgumentError
    _known(charge[:3])
    told, made, metered, expected, bound = charge
    return Offer(lanes, (*shared, *own), told, made, metered, expected, bound, calls)


def _config_entries(words: list[bytes]) -> list[tuple[bytes, tuple[int, ...]]]:
    entries: list[tuple[bytes, tuple[int, ...]]] = []
    at = 0
    while at < len(words):
        count = _amount_at(words, at + 1)
        numbers = tuple(_amount_at(words, at + 2 + n) for n in range(min(count, len(words))))
        if count < 1 or len(entries) == 64:
            raise BadArgumentError
        entries.append((words[at], numbers))
        at += 2 + count
    return entries


def _rules(numbers: Sequence[int]) -> list[Rule]:
    found = []
    for at in range(5, len(numbers), 8):
        name, metric, kind, capacity, unit, drain, tick_us, refund = numbers[at : at + 8]
        rule = Rule(name, _METRICS[metric - 1], _KINDS[kind - 1], capacity, unit, drain, tick_us, bool(refund))
        found.append(rule)
    return found


def _limit_state(counter: Counter, in_flight: int, now: int) -> LimitState:
    rule = counter.rule
    match rule.kind:
        case LimitKind.CONCURRENCY:
            used, reset_at = in_flight, 0
        case LimitKind.BUCKET:
            level = max(Fraction(0), counter.level - max(0, now - counter.level_at) // rule.tick_us * rule.per_tick)
            used = ceil(level)
            reset_at = now + (ceil(level / rule.per_tick) * rule.tick_us if rule.drain else 0)
        case LimitKind.SLIDING:
            oldest = now - now % rule.unit - 6 * rule.unit
            used, reset_at = sum(n for at, n in counter.slots.items() if at >= oldest), now + rule.unit
        case _:
            used, reset_at = counter.used_in_window if now < counter.window[1] else 0, counter.window[1]
    return LimitState(
        name=LIMIT_NAMES[rule.name - 1], metric=rule.metric, kind=rule.kind, capacity=rule.capacity, used=used,
        reset_at_us=reset_at, learned=rule.learned,
    )  # fmt: skip


def _longest(refusals: Iterable[Refusal | None]) -> Refusal | None:
    found = [refusal for refusal in refusals if refusal is not None]
    return max(found, key=lambda refusal: refusal[3]) if found else None


def _due(times: dict[bytes, int], now: int | None, most: int) -> list[bytes]:
    due = sorted((at, rid) for rid, at in times.items() if now is None or at <= now)
    return [rid for _, rid in due[:most]]


def _add(sums: dict[tuple[bytes, int], int], key: tuple[bytes, int], amount: int) -> None:
    sums[key] = sums.get(key, 0) + amount


def _apply(times: dict[bytes, int], changes: dict[bytes, int | None]) -> None:
    for rid, at in changes.items():
        if at is None:
            times.pop(rid, None)
        else:
            times[rid] = at
