"""The order of a pool under one objective: built when what it rests on moves, read by every request.

Scoring ten thousand options takes longer than a request may wait, so an order can be built some options at a time.
"""

import bisect
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import msgspec

from apikeyrouter.domain.components.capacity import Level
from apikeyrouter.domain.components.objectives import (
    EXPECTED_US,
    Plan,
    equal_to,
)
from apikeyrouter.domain.components.scoring import Conditions, out_until_us, scarcity
from apikeyrouter.domain.components.waits import Waits, doubted
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
WORN_SHARE = 16
"""An order is built anew when more than one in so many of its options is gone."""
CAME_MAX = 32
"""An order is built anew when more than so many options are not in it."""
STANDINGS_AHEAD = 56
"""How many are made before they are asked for: the next request's turn is one further."""


class Order:
    """Options, best first, with how they stand. The first `turning` are equally good and take turns.

    `distinct`: no option has more than one turn.
    """

    __slots__ = (
        "_places", "_plan", "_standings", "calm", "came", "distinct", "excluded", "gone", "options", "rows", "turning",
        "version", "wanted_at", "worn",
    )  # fmt: skip

    def __init__(self, plan: Plan, version: int) -> None:
        self.version = version
        self._plan = plan
        self.gone: set[Option] = set()
        """Options that are to be passed over, for their keys are out by now."""
        self.came: dict[Option, None] = {}
        """Options that are not in it yet, for their keys were out when it was built."""
        self.wanted_at = -1
        """The version of the snapshot at which it was last asked to be built anew."""
        self.worn = False
        """Whether so much has come and gone that it should be built anew."""
        self.options: list[Option] = []
        self.excluded: list[Exclusion] = []
        self.turning = 1
        self.distinct = True
        self.calm = False
        """Whether waits alone decide: nothing is out or scarce, no target goes before another."""
        self.rows: list[Row] = []
        self._standings: list[Standing | None] = []
        self._places: dict[Option, int] | None = None

    def fill(self, head: "list[Row]", rest: "list[Row]") -> None:
        """Options that take turns, each as often as it does, and the others."""
        self.turning = len(head)
        self.rows = head + rest
        self.options = [row.option for row in self.rows]
        self._standings = [None] * len(self.rows)

    def moved(self, option: "Option") -> None:
        """An option has come or gone."""
        if not option.key.state.eligible:
            if option in self.came:
                del self.came[option]
            else:
                self.gone.add(option)
        elif option in self.gone:
            self.gone.remove(option)
        else:
            self.came[option] = None
        if len(self.gone) > len(self.rows) // WORN_SHARE or len(self.came) > CAME_MAX:
            self.worn = True

    def join(self, others: "Order") -> None:
        """Take in what has come, `others` being the order of it, where that changes nobody else's turns."""
        for row in others.rows:
            if row.option in self.came:
                del self.came[row.option]
                self.worn |= not self._insert(row)

    def _insert(self, row: "Row") -> bool:
        """Put one row into its place. False: whose turns there are, and how many, changes by that."""
        rows, plan = self.rows, self._plan
        if not rows:
            return False
        first, key = rows[0], _sorting(row)
        if key < _sorting(first):
            return False
        if row.place == first.place and row.value <= plan.equal_to(first.value):
            weight = first.option.key.weight
            if not self.distinct or plan.ties or row.scarce != first.scarce or row.option.key.weight != weight:
                return False
            at = self.turning
            self.turning += 1
        else:
            at = bisect.bisect_right(rows, key, lo=self.turning, key=_sorting)
        rows.insert(at, row)
        self.options.insert(at, row.option)
        self._standings.insert(at, None)
        self._places = None
        return True

    def tell_ahead(self, others: int) -> None:
        """Make what requests ask first: how those stand that take turns, and so many others."""
        if self.calm:
            at = self._plan.in_flight
            for row in self.rows[: self.turning + others]:
                row.tell(self._plan, int(row.values[at]))

    def place_of(self, option: "Option") -> int | None:
        """Where an option stands first; None: it is excluded."""
        if self._places is None:
            self._places = {each: at for at, each in reversed(list(enumerate(self.options)))}
        return self._places.get(option)

    def standing(self, at: int) -> Standing:
        """How the option at a place stands. Made when it is first asked for: most never are."""
        found = self._standings[at]
        if found is None:
            found = self._standings[at] = self.rows[at].standing()
        return found

    def standings(self, start: int, end: int) -> list[Standing]:
        """Those from `start` on, before `end`."""
        found = self._standings[start:end]
        if None in found:
            for at in range(start, min(end + STANDINGS_AHEAD, len(self.rows))):
                self.standing(at)
            found = self._standings[start:end]
        return found  # type: ignore[return-value]  # none of them is None


Place = tuple[bool, int, int]
"""What comes before any measure: out or exhausted; the target in an alias; how scarce its quota is."""


class Row(msgspec.Struct, eq=False, gc=False):
    """One option while it is compared. `at`: where it came from, for equals keep their order.

    `alone`: its wait for one request at a time in microseconds, `others`: the requests of other processes that are
    under way; only where the plan ranks by waits. The garbage collector has no part in it: there may be very many.
    """

    option: Any
    out_us: int
    scarce: int
    place: Place
    values: Sequence[float]
    at: int = 0
    value: float = 0.0
    alone: float = 0.0
    others: int = 0
    told: Standing | None = None
    told_at: int = -1
    wait: float = 0.0

    def standing(self, values: Sequence[float] = ()) -> Standing:
        """How it stands, for facts, by its own values or by others."""
        option, key = self.option, self.option.key
        return _standing(
            Standing,
            (key.id, option.provider.id, option.model, option.rank, self.out_us, tuple(values or self.values),
             self.scarce, key.weight),
        )  # fmt: skip

    def tell(self, plan: Plan, under_way: int) -> None:
        """Note how it stands with so many requests under way, and how long that makes one wait."""
        values = self.values
        if values[plan.in_flight] != under_way:
            values = list(values)
            values[plan.waits], values[plan.in_flight] = self.alone * (under_way + 1), float(under_way)
        self.wait, self.told_at = values[plan.waits], under_way
        self.told = self.standing(values)


class Building:
    """An order that is being built."""

    def __init__(self, plan: Plan, options: Sequence["Option"], at: Conditions, *, version: int) -> None:
        self._plan, self._options, self._at = plan, options, at
        self._moved: list[Option] = []
        self.version = version
        self._done = 0
        self._rows: list[Row] = []
        self._excluded: list[Exclusion] = []
        self._waits = Waits(plan, options, at) if EXPECTED_US in plan.measures else None
        named = zip(plan.measures, plan.functions, strict=True)
        self._functions = [None if name == EXPECTED_US else function for name, function in named]

    def step(self, count: int) -> Order | None:
        """Score `count` more options; the order, once all are scored."""
        plan, start = self._plan, self._done
        for option in self._options[start : start + count]:
            row = self._row(option)
            if plan.bounds and (broken := self._broken(row)) is not None:
                if len(self._excluded) < EXCLUSIONS_TOLD_MAX:
                    self._excluded.append(broken)
                continue
            if self._waits is not None:
                self._waits.settle(row)
            row.value = plan.value(row.values)
            self._rows.append(row)
        self._done = min(start + count, len(self._options))
        return self._finished() if self._done == len(self._options) else None

    def _row(self, option: "Option") -> Row:
        plan, at = self._plan, self._at
        values = tuple([0.0 if measure is None else measure(option, at) for measure in self._functions])
        if not (at.out or at.capacity):
            return Row(option, 0, 0, _calm(option.rank), values)
        out_us, scarce = out_until_us(option, at), scarcity(option, at)
        return Row(option, out_us, scarce, place_of(plan, out_us, scarce, option.rank), values)

    def moved(self, option: "Option") -> None:
        """An option has come or gone meanwhile."""
        self._moved.append(option)

    def whole(self) -> Order:
        """The order, at once."""
        order = self.step(len(self._options))
        assert order is not None
        return order

    def _finished(self) -> Order:
        order = self._ordered()
        kept = set(self._options) if self._moved else ()
        for option in dict.fromkeys(self._moved):
            if option.key.state.eligible is not (option in kept):
                order.moved(option)
        return order

    def _ordered(self) -> Order:
        order, plan, rows = Order(self._plan, self.version), self._plan, self._rows
        order.excluded = self._excluded
        if not rows:
            return order
        head, rest = _split(_sorted(rows), plan)
        turns = _woven(head) if plan.waits < 0 else head
        order.distinct = len(turns) == len(head)
        order.fill(turns, rest)
        order.calm = plan.waits >= 0 and not (plan.weights or plan.ties) and _is_calm(rows)
        return order

    def _broken(self, row: Row) -> Exclusion | None:
        """What excludes an option, if anything does."""
        return next((found for bound in self._plan.bounds if (found := self._breaks(row, *bound)) is not None), None)

    def _breaks(self, row: Row, constraint: str, at: int, bound: float) -> Exclusion | None:
        """The exclusion, where an option does not keep within a bound. What is not known keeps within it."""
        option, value = row.option, row.values[at]
        if constraint == "max_latency_ms":
            value = doubted(option, value, 0.0, self._at) / 1000
            broken = value > bound
        else:
            value = 1.0 - value
            if constraint == "min_reliability":
                bound = max(bound, option.success_min)
            broken = value < bound
        if not broken:
            return None
        return Exclusion(option.key.id, option.provider.id, option.model, constraint, bound, value)


def settled(plan: Plan, rows: "list[Row]") -> "tuple[list[Row], int]":
    """A few rows in order, by their values as they are now, and how many at the head are equally good."""
    if not rows:
        return rows, 0
    place = rows[0].place
    if not (plan.ties or [row for row in rows if row.place != place or row.scarce]):  # as it mostly is: values decide
        rows.sort(key=_value)
        count = bisect.bisect_right(rows, plan.equal_to(rows[0].value), key=_value)
        if count > 1:
            rows[:count] = sorted(rows[:count], key=_at)
        return rows, count
    head, rest = _split(_sorted(rows), plan)
    head.sort(key=_at)
    return head + rest, len(head)


def row_of(plan: Plan, option: "Option", standing: Standing, values: list[float], at: int) -> Row:
    """A candidate that was ranked before, to be compared by other values."""
    place = place_of(plan, standing.out_until_us, standing.scarce, standing.place)
    row = Row(option, standing.out_until_us, standing.scarce, place, values, at)
    row.value = plan.value(values)
    return row


def place_of(plan: Plan, out_until_us: int, scarce: int, rank: int) -> Place:
    """What comes before any measure: whether it is out or exhausted, its target in an alias, and how scarce it is.

    Fairness and reliability turn away from what is constrained. Where a measure tells options apart, what it says
    counts more until a quota is critical, and constrained ones come after their equals.
    """
    spares = not plan.weights and plan.name in _SPARING
    return out_until_us > 0 or scarce >= Level.EXHAUSTED, rank, scarce if spares or scarce >= Level.CRITICAL else 0


@lru_cache(1024)
def _calm(rank: int) -> Place:
    """The place of what is neither out nor scarce."""
    return False, rank, 0


def _is_calm(rows: list[Row]) -> bool:
    place = rows[0].place
    return not (place[0] or [row for row in rows if row.place != place or row.scarce])


def _sorted(rows: list[Row]) -> list[Row]:
    """By place, then by value; there are few places, and comparing floats is what is quick."""
    if len({row.place for row in rows}) == 1:
        return sorted(rows, key=_value)
    places: dict[Place, list[Row]] = {}
    for row in rows:
        places.setdefault(row.place, []).append(row)
    ordered: list[Row] = []
    for place in sorted(places):
        ordered += sorted(places[place], key=_value)
    return ordered


_standing = cast("Callable[[type[Standing], tuple[Any, ...]], Standing]", tuple.__new__)
"""What `Standing(…)` does in the end, without going through Python for it: a request makes some."""


def _sorting(row: Row) -> tuple[Place, float]:
    """What rows are sorted by."""
    return row.place, row.value


_value, _at = operator.attrgetter("value"), operator.attrgetter("at")


def _split(rows: list[Row], plan: Plan) -> tuple[list[Row], list[Row]]:
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


def _woven(rows: list[Row]) -> list[Row]:
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
