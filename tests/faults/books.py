"""What a cell must hold, as the auditor has it: reservations, and sums made of them. Nothing of the ledger's."""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from apikeyrouter.domain.models.accounting import (
    LaneConfig,
    LimitKind,
    Metric,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
    SlabUse,
    State,
    SuspenseRule,
)
from tests.faults.meters import Meter
from tests.ledger.support import DAY, HOUR, MINUTE

NEVER = 2**62
Place = tuple[str, int]
"""A scope, and the start of one of its periods."""


class Part(msgspec.Struct, frozen=True):
    """What a reservation holds in one scope. `due_us`: when its suspense ends, 0: it is in none."""

    scope: str
    amount: int
    start_us: int
    due_us: int = 0
    charged: int = 0

    @property
    def place(self) -> Place:
        """Where it is booked."""
        return self.scope, self.start_us


class Held(msgspec.Struct, frozen=True):
    """One reservation. `gone_us`: from then on the ledger may have forgotten that it ended."""

    rid: bytes
    state: State
    lanes: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    index: int = 0
    deadline_us: int = 0
    probe: bool = False
    gone_us: int = NEVER
    calls: int = 1
    """A slab is of many."""
    listed: bool = False
    """Whether a sweep looks after it when its lease is over: it is open, or ended and nobody has acknowledged that."""


@dataclass(slots=True)
class World:
    """The lanes and scopes of a run, which do not change."""

    lanes: dict[str, LaneConfig]
    scopes: dict[str, ScopeConfig]

    def period_start(self, scope: str, now_us: int) -> int:
        """When the period of a scope began that now is in."""
        period = self.scopes[scope].period
        return {Period.TOTAL: 0, Period.HOURLY: now_us - now_us % HOUR, Period.DAILY: now_us - now_us % DAY}[period]


@dataclass
class Books:
    """All that counts in a cell, by reservation and in sums."""

    world: World
    held_by: dict[bytes, Held] = field(default_factory=dict)
    settled: Counter[Place] = field(default_factory=Counter)
    held: Counter[Place] = field(default_factory=Counter)
    suspense: Counter[Place] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)
    cooling: dict[str, int] = field(default_factory=dict)
    suspect: bool = False
    cautious_us: int = 0
    """Until then an eighth of everything stays free."""
    epoch: int = 0
    seq: int = 0
    now_us: int = 0
    written_us: int = 0
    """The ledger's time at its last write: it never goes back behind that."""
    meters: dict[tuple[str, str], Meter] = field(default_factory=dict)
    _leases: list[tuple[int, bytes]] = field(default_factory=list)
    _waits: list[tuple[int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.meters:
            for lane in self.world.lanes.values():
                for limit in lane.limits:
                    self.meters[lane.id, limit.name] = Meter(limit)

    def fork(self) -> "Books":
        """What they are now, whatever becomes of these."""
        twin = copy(self)
        twin.held_by, twin.cooling = dict(self.held_by), dict(self.cooling)
        twin.settled, twin.held, twin.suspense = self.settled.copy(), self.held.copy(), self.suspense.copy()
        twin.in_flight = self.in_flight.copy()
        twin.meters = {key: meter.fork() for key, meter in self.meters.items()}
        twin._leases, twin._waits = list(self._leases), list(self._waits)
        return twin

    def total(self, place: Place) -> int:
        """What counts against a budget."""
        return self.settled[place] + self.held[place] + self.suspense[place]

    def of(self, rid: bytes) -> Held | None:
        """A reservation that the ledger must know; None: it cannot, or need not."""
        found = self.held_by.get(rid)
        return None if found is None or self.now_us >= found.gone_us else found

    # --- beginning ---------------------------------------------------------------------------------------------------

    def open(self, request: ReserveRequest, index: int, *, deadline_us: int, probe: bool) -> Held:
        """Hold a candidate of a request."""
        candidate = request.candidates[index]
        for lane in candidate.lanes:
            self.in_flight[lane] += request.calls
            for meter, metric in self._of_lane(lane):
                meter.charge(request.rid, _asked(request, index, metric), self.now_us)
        parts = tuple(self._part(scope, request, index) for scope in (*request.scopes, *candidate.scopes))
        for part in parts:
            self.held[part.place] += part.amount
        found = Held(
            request.rid, State.OPEN, candidate.lanes, parts, index, deadline_us, probe, calls=request.calls, listed=True
        )  # fmt: skip
        self.held_by[request.rid] = found
        heapq.heappush(self._leases, (deadline_us, request.rid))
        return found

    def _part(self, scope: str, request: ReserveRequest, index: int) -> Part:
        charge = request.candidates[index].charge
        amount = charge.bound_nanousd if self.world.scopes[scope].hard else charge.expected_nanousd
        return Part(scope, amount, self.world.period_start(scope, self.now_us))

    def extend(self, rid: bytes, deadline_us: int) -> None:
        """A lease was renewed. It never moves back."""
        found = self.held_by[rid]
        if deadline_us > found.deadline_us:
            self.held_by[rid] = replace(found, deadline_us=deadline_us)
            heapq.heappush(self._leases, (deadline_us, rid))

    # --- ending ------------------------------------------------------------------------------------------------------

    def settle(self, found: Held, settlement: Settlement) -> None:
        """Book what was used, in the periods that were charged."""
        tokens = (settlement.input_tokens, settlement.output_tokens)
        actual = {
            Metric.TOKENS: sum(tokens), Metric.INPUT_TOKENS: tokens[0], Metric.OUTPUT_TOKENS: tokens[1],
            Metric.SPEND: settlement.cost_nanousd,
        }  # fmt: skip
        if settlement.slab is None:
            self._correct(found, actual, all_back=False)
        else:
            self._correct_slab(found, actual, settlement.slab)
        for part in found.parts:
            self.settled[part.place] += settlement.cost_nanousd - part.charged
        self._end(found, State.SETTLED)

    def give_back(self, found: Held, state: State, *, sent: bool) -> None:
        """Nothing was billed; `sent`: what a provider may have counted stays counted."""
        self._correct(found, {Metric.SPEND: 0} if sent else dict.fromkeys(Metric, 0), all_back=not sent)
        self._end(found, state)

    def _correct(self, found: Held, actual: dict[Metric, int], *, all_back: bool) -> None:
        for lane in found.lanes:
            for meter, metric in self._of_lane(lane):
                if metric in actual:
                    only_more = not (all_back or meter.limit.refund)
                    meter.correct(found.rid, actual[metric], self.now_us, only_more=only_more)

    def _correct_slab(self, found: Held, actual: dict[Metric, int], use: SlabUse) -> None:
        """What no call took comes back; where a limit refunds nothing, what its calls began with stays."""
        stays = {
            Metric.REQUESTS: use.calls, Metric.TOKENS: use.metered_tokens, Metric.INPUT_TOKENS: use.input_tokens,
            Metric.OUTPUT_TOKENS: use.output_tokens, Metric.SPEND: use.cost_nanousd,
        }  # fmt: skip
        used = {**stays, **actual, Metric.TOKENS: use.metered_used}
        for lane in found.lanes:
            for meter, metric in self._of_lane(lane):
                amounts = used if meter.limit.refund else stays
                meter.correct(found.rid, amounts[metric], self.now_us, only_more=False)

    def _end(self, found: Held, state: State) -> None:
        if found.state is State.OPEN:
            self._leave_lanes(found)
        for part in found.parts:
            if found.state is State.OPEN:
                self.held[part.place] -= part.amount
            elif found.state is State.SUSPENDED and part.due_us:
                self.suspense[part.place] -= part.amount
        gone_us = NEVER if found.state is State.OPEN else self.now_us + DAY
        self.held_by[found.rid] = replace(found, state=state, gone_us=gone_us)

    def bury(self, rid: bytes) -> None:
        """A reserve that nobody waits for any more has no effect when it comes."""
        self.held_by[rid] = Held(rid, State.CANCELLED, gone_us=self.now_us + DAY)

    def seen(self, rid: bytes) -> None:
        """Its caller knows how it ended."""
        found = self.held_by.get(rid)
        if found is not None and found.state not in (State.OPEN, State.SUSPENDED) and self.now_us < found.gone_us:
            self.held_by[rid] = replace(found, gone_us=self.now_us + MINUTE, listed=False)

    def _leave_lanes(self, found: Held) -> None:
        for lane in found.lanes:
            self.in_flight[lane] -= found.calls

    # --- time --------------------------------------------------------------------------------------------------------

    def due_leases(self) -> Iterator[Held]:
        """Whose lease is over, the oldest first; each is looked after before the next is asked for."""
        while self._leases and self._leases[0][0] <= self.now_us:
            deadline_us, rid = self._leases[0]
            found = self.held_by.get(rid)
            if found is not None and found.listed and found.deadline_us == deadline_us:
                yield found
            heapq.heappop(self._leases)

    def look_after(self, found: Held) -> None:
        """Its lease is over: expire it, or, if it has ended before, keep its tombstone for a day."""
        if found.state is State.OPEN:
            self._expire(replace(found, listed=False))
        else:
            self.held_by[found.rid] = replace(found, gone_us=self.now_us + DAY, listed=False)

    def _expire(self, found: Held) -> None:
        """Its slot is free, its counts stay, its money waits."""
        self._leave_lanes(found)
        parts = tuple(replace(part, due_us=self._due(part.scope)) for part in found.parts)
        for part in parts:
            self.held[part.place] -= part.amount
            self.suspense[part.place] += part.amount
        if parts:
            self.held_by[found.rid] = replace(found, state=State.SUSPENDED, parts=parts)
            heapq.heappush(self._waits, (min(part.due_us for part in parts), found.rid))
        else:
            self.held_by[found.rid] = replace(found, state=State.EXPIRED, gone_us=self.now_us + DAY)

    def _due(self, scope: str) -> int:
        config = self.world.scopes[scope]
        return NEVER if config.suspense is SuspenseRule.HOLD else self.now_us + config.suspense_after_us

    def due_suspense(self) -> Iterator[Held]:
        """Reservations with money whose waiting is over, the oldest first; each must be resolved before the next."""
        while self._waits and self._waits[0][0] <= self.now_us:
            due_us, rid = heapq.heappop(self._waits)
            found = self.held_by.get(rid)
            if found is not None and found.state is State.SUSPENDED and due_us == _next_due(found):
                yield found

    def resolve(self, found: Held) -> None:
        """By each scope's rule."""
        parts = tuple(self._resolved(part) for part in found.parts)
        left = min((part.due_us for part in parts if part.due_us), default=0)
        if left:
            self.held_by[found.rid] = replace(found, parts=parts)
            heapq.heappush(self._waits, (left, found.rid))
        else:
            self.held_by[found.rid] = replace(found, state=State.EXPIRED, parts=parts, gone_us=self.now_us + DAY)

    def _resolved(self, part: Part) -> Part:
        if not part.due_us or part.due_us > self.now_us:
            return part
        charged = part.amount if self.world.scopes[part.scope].suspense is SuspenseRule.CHARGE else 0
        self.suspense[part.place] -= part.amount
        self.settled[part.place] += charged
        return replace(part, due_us=0, charged=charged)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _of_lane(self, lane: str) -> Iterator[tuple[Meter, Metric]]:
        for limit in self.world.lanes[lane].limits:
            if limit.kind is not LimitKind.CONCURRENCY:
                yield self.meters[lane, limit.name], limit.metric

    def over_limit(self, lanes: Iterable[str]) -> str:
        """The first limit of these lanes that is exceeded now, and by how much; empty when none is."""
        for lane in lanes:
            for limit in self.world.lanes[lane].limits:
                concurrent = limit.kind is LimitKind.CONCURRENCY
                by = (
                    self.in_flight[lane] - limit.amount
                    if concurrent
                    else self.meters[lane, limit.name].over(self.now_us)
                )
                if by > 0:
                    return f"{lane} {limit.name} by {by}"
        return ""

    def over_seven_eighths(self, request: ReserveRequest, index: int) -> str:
        """The first limit or hard budget of which a candidate (that is held) took of the last eighth; empty: none."""
        candidate = request.candidates[index]
        for lane in candidate.lanes:
            for limit in self.world.lanes[lane].limits:
                if limit.kind is LimitKind.CONCURRENCY:
                    capacity, over = limit.amount, self.in_flight[lane] - limit.amount
                else:
                    meter = self.meters[lane, limit.name]
                    capacity, over = meter.capacity, meter.over(self.now_us)
                    if not _asked(request, index, limit.metric):
                        continue
                if 8 * over > -capacity:
                    return f"{lane} {limit.name}, {-over} of {capacity} are left"
        for part in self.held_by[request.rid].parts:
            scope = self.world.scopes[part.scope]
            if scope.hard and part.amount and 8 * self.total(part.place) > 7 * scope.limit_nanousd:
                return f"{part.scope}, {self.total(part.place)} of {scope.limit_nanousd}"
        return ""

    def open_ones(self) -> set[bytes]:
        """Every reservation that is open."""
        return {rid for rid, found in self.held_by.items() if found.state is State.OPEN}

    def probes(self, lane: str) -> list[bytes]:
        """Open reservations that probe this lane."""
        held = self.held_by.values()
        return [found.rid for found in held if found.probe and found.state is State.OPEN and lane in found.lanes]


def _next_due(found: Held) -> int:
    return min((part.due_us for part in found.parts if part.due_us), default=0)


def _asked(request: ReserveRequest, index: int, metric: Metric) -> int:
    charge = request.candidates[index].charge
    tokens = charge.input_tokens + charge.output_tokens
    return {
        Metric.REQUESTS: request.calls,
        Metric.TOKENS: tokens if charge.metered_tokens is None else charge.metered_tokens,
        Metric.INPUT_TOKENS: charge.input_tokens, Metric.OUTPUT_TOKENS: charge.output_tokens,
        Metric.SPEND: max(0, charge.expected_nanousd),
    }[metric]  # fmt: skip
