"""The order of a pool under one objective: built when what it rests on moves, read by every request.

Scoring ten thousand options takes longer than a request may wait, so a large pool is scored some options at a time, by
the requests that come along, while they still use the order of before.
"""

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from apikeyrouter.domain.components.capacity import Level
from apikeyrouter.domain.components.objectives import (
    EXPECTED_US,
    FAILURE_SHARE,
    IN_FLIGHT,
    LATENCY_US,
    Plan,
    equal_to,
)
from apikeyrouter.domain.components.scoring import (
    LATENCY_SECONDS,
    SUCCESS_LEAST,
    Conditions,
    out_until_us,
    scarcity,
)
from apikeyrouter.domain.models.ranking import Exclusion, Standing
from apikeyrouter.domain.models.routing_decision import ObjectiveType

if TYPE_CHECKING:
    from apikeyrouter.domain.components.pool import Option

TURNS_MAX = 128
"""Most turns that one option has in a round: weights further apart than that count as that far apart."""
TURNS_PER_OPTION, TURNS_SPARE = 16, 4096
"""Turns in a round: at most this many an option on the average, and some."""
TURNS_ERROR_MAX = 0.02
"""How far the share of turns may be from the share of weight."""
EXCLUSIONS_TOLD_MAX = 32
_SPARING = (ObjectiveType.Fairness.value, ObjectiveType.Reliability.value)
UNKNOWN_US = 1.0
"""The latency of everybody where nobody's is known."""


Row: TypeAlias = "tuple[Option, Standing]"
"""A candidate, and how it stands."""


class Order:
    """Options, best first, with how they stand. The first `turning` are equally good and take turns.

    `distinct`: no option has more than one turn. `waits`: per option, its wait for one request at a time in
    microseconds, and the requests of other processes that are under way; only where the plan ranks by waits.
    """

    __slots__ = ("distinct", "excluded", "options", "standings", "turning", "version", "waits")

    def __init__(self, version: int) -> None:
        self.version = version
        self.options: list[Option] = []
        self.standings: list[Standing] = []
        self.waits: list[tuple[float, int]] = []
        self.excluded: list[Exclusion] = []
        self.turning = 1
        self.distinct = True


class _Row:
    """One option while the order is built."""

    __slots__ = ("option", "out_us", "place", "scarce", "value", "values")

    def __init__(self, option: "Option", out_us: int, scarce: int, values: list[float], plan: Plan) -> None:
        self.option, self.out_us, self.scarce, self.values = option, out_us, scarce, values
        self.place = _place(plan, out_us, scarce, option.rank)
        self.value = 0.0


class Building:
    """An order that is being built."""

    def __init__(self, plan: Plan, options: Sequence["Option"], at: Conditions, *, version: int) -> None:
        self._plan, self._options, self._at = plan, options, at
        self.version = version
        self._rows: list[_Row] = []

    def step(self, count: int) -> Order | None:
        """Score `count` more options; the order, once all are scored."""
        at, functions = self._at, self._plan.functions
        start = len(self._rows)
        for option in self._options[start : start + count]:
            values = [0.0 if measure is None else measure(option, at) for measure in functions]
            self._rows.append(_Row(option, out_until_us(option, at), scarcity(option, at), values, self._plan))
        return self._finished() if len(self._rows) == len(self._options) else None

    def _finished(self) -> Order:
        order, plan = Order(self.version), self._plan
        rows = self._kept(order)
        if not rows:
            return order
        waits = self._settle_waits(rows) if EXPECTED_US in plan.measures else {}
        for row in rows:
            row.value = plan.value(row.values)
        rows.sort(key=_by_place_and_value)
        head, rest = _split(rows, plan)
        turns = _woven(head) if plan.waits < 0 else head
        order.turning, order.distinct = len(turns), len(turns) == len(head)
        rows = turns + rest
        order.options = [row.option for row in rows]
        standings = {row: _standing(row) for row in head + rest}
        order.standings = [standings[row] for row in rows]
        if plan.waits >= 0:
            order.waits = [waits[row.option] for row in rows]
        return order

    def _kept(self, order: Order) -> list[_Row]:
        bounds, rows = self._plan.bounds, self._rows
        if not bounds:
            return rows
        kept = []
        for row in rows:
            broken = next((found for bound in bounds if (found := self._broken(row, *bound)) is not None), None)
            if broken is None:
                kept.append(row)
            elif len(order.excluded) < EXCLUSIONS_TOLD_MAX:
                order.excluded.append(broken)
        return kept

    def _broken(self, row: _Row, constraint: str, at: int, bound: float) -> Exclusion | None:
        """The exclusion, where an option does not keep within a bound. What is not known keeps within it."""
        option, value = row.option, row.values[at]
        if constraint == "max_latency_ms":
            value = _doubted(option, value, 0.0, self._at) / 1000
            broken = value > bound
        else:
            value = 1.0 - value
            if constraint == "min_reliability":
                bound = max(bound, option.success_min)
            broken = value < bound
        if not broken:
            return None
        return Exclusion(option.key.id, option.provider.id, option.model, constraint, bound, value)

    def _settle_waits(self, rows: list[_Row]) -> dict["Option", tuple[float, int]]:
        """Latencies into expected waits: what is unknown is taken to be as good as the best until it was tried."""
        plan, at = self._plan, self._at
        expected, latency, in_flight, failed = (
            plan.measures.index(name) for name in (EXPECTED_US, LATENCY_US, IN_FLIGHT, FAILURE_SHARE)
        )
        known = [row.values[latency] for row in rows if row.values[latency] > 0]
        best = min(known, default=UNKNOWN_US)
        waits: dict[Option, tuple[float, int]] = {}
        for row in rows:
            option, values = row.option, row.values
            lane = at.lanes.get(option.lanes[0])
            us = values[latency] = _doubted(option, values[latency], best, at)
            own = option.key.under_way
            others = max(0, (0 if lane is None else lane.in_flight) - own)
            alone = us / (option.key.weight * max(SUCCESS_LEAST, 1.0 - values[failed]))
            values[in_flight] = float(others + own)
            values[expected] = alone * (others + own + 1)
            waits[option] = (alone, others)
        return waits


def _doubted(option: "Option", us: float, best: float, at: Conditions) -> float:
    """A latency as it is believed: an old bad one less than a new one, an untried key's like the best."""
    lane = at.lanes.get(option.lanes[0])
    if us <= 0:
        tries = 0 if lane is None else lane.requests_total + lane.in_flight
        return best * (1 + tries)
    if option.seen.latency(at.stream) > 0:
        age = option.seen.latency_age(at.stream, at.now)
    else:
        age = max(0.0, (at.now_us - lane.last_used_us) / 1e6) if lane is not None else 0.0
    return best + (us - best) * math.exp(-age / LATENCY_SECONDS)


def settled(plan: Plan, rows: "list[Row]") -> "tuple[list[Row], int]":
    """A few candidates in order, by their values as they are now, and how many at the head are equally good.

    Equals stay in the order in which they came.
    """
    if not rows:
        return rows, 0
    valued = [(_place_of(plan, row[1]), plan.value(row[1].values), row) for row in rows]
    place, best = min((place, value) for place, value, _ in valued)
    limit = plan.equal_to(best)
    head = [row for other, value, row in valued if other == place and value <= limit]
    others = [each for each in valued if each[0] != place or each[1] > limit]
    others.sort(key=operator.itemgetter(0, 1))
    rest = [row for _, _, row in others]
    least = min(row[1].scarce for row in head)
    if any(row[1].scarce > least for row in head):
        behind = sorted((row for row in head if row[1].scarce > least), key=lambda row: row[1].scarce)
        head, rest = [row for row in head if row[1].scarce == least], behind + rest
    for tie in plan.ties:
        limit = equal_to(plan.measures[tie], min(row[1].values[tie] for row in head))
        behind = sorted((row for row in head if row[1].values[tie] > limit), key=lambda row: row[1].values[tie])
        head, rest = [row for row in head if row[1].values[tie] <= limit], behind + rest
    return head + rest, len(head)


def _place(plan: Plan, out_until_us: int, scarce: int, rank: int) -> tuple[bool, int, int]:
    """What comes before any measure: whether it is out or exhausted, its target in an alias, and how scarce it is.

    Fairness and reliability turn away from what is constrained. Where a measure tells options apart, what it says
    counts more until a quota is critical, and constrained ones come after their equals.
    """
    spares = not plan.weights and plan.name in _SPARING
    return out_until_us > 0 or scarce >= Level.EXHAUSTED, rank, scarce if spares or scarce >= Level.CRITICAL else 0


def _place_of(plan: Plan, standing: Standing) -> tuple[bool, int, int]:
    return _place(plan, standing.out_until_us, standing.scarce, standing.place)


def _by_place_and_value(row: _Row) -> tuple[tuple[bool, int, int], float]:
    return row.place, row.value


def _split(rows: list[_Row], plan: Plan) -> tuple[list[_Row], list[_Row]]:
    """Those that are equally good after every tie was broken, and the rest in order. `rows` are sorted."""
    first = rows[0]
    limit = plan.equal_to(first.value)
    count = 0
    for row in rows:
        if row.place != first.place or row.value > limit:
            break
        count += 1
    head, rest = rows[:count], rows[count:]
    if any(row.scarce for row in head):
        head.sort(key=lambda row: row.scarce)
        count = sum(1 for row in head if row.scarce == head[0].scarce)
        head, rest = head[:count], head[count:] + rest
    for tie in plan.ties:
        head.sort(key=lambda row: row.values[tie])
        limit = equal_to(plan.measures[tie], head[0].values[tie])
        count = sum(1 for row in head if row.values[tie] <= limit)
        head, rest = head[:count], head[count:] + rest
    return head, rest


def _woven(rows: list[_Row]) -> list[_Row]:
    """Smooth weighted round robin: an order in which an option of weight 3 stands three times, well apart."""
    weights = [row.option.key.weight for row in rows]
    least = min(weights)
    if max(weights) == least:
        return rows
    turns = _turns([min(weight / least, TURNS_MAX) for weight in weights])
    places = [((turn + 0.5) / count, row) for count, row in zip(turns, rows, strict=True) for turn in range(count)]
    places.sort(key=operator.itemgetter(0))
    return [row for _, row in places]


def _turns(ratios: list[float]) -> list[int]:
    """Whole numbers in these ratios, as small as they can be within TURNS_ERROR_MAX, or as a round has room for."""
    most = (TURNS_PER_OPTION * len(ratios) + TURNS_SPARE) / sum(ratios)
    turns: list[int] = []
    for scale in range(1, 9):
        fitting = min(float(scale), most)
        turns = [max(1, round(ratio * fitting)) for ratio in ratios]
        exact = (ratio * fitting for ratio in ratios)
        if fitting < scale or all(
            abs(count - share) <= share * TURNS_ERROR_MAX for count, share in zip(turns, exact, strict=True)
        ):
            break
    return turns


def _standing(row: _Row) -> Standing:
    option = row.option
    key, values = option.key, tuple(row.values)
    return Standing(key.id, option.provider.id, option.model, option.rank, row.out_us, values, row.scarce, key.weight)
