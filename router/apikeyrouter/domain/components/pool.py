"""A pool: every way to serve one model, and the order in which a request tries them.

Ranking costs O(K) per request, whatever the number of keys: an order is built when the snapshot of lanes moves, and a
request takes its K candidates from there. Whoever asks next starts one further, so that equals share evenly.
"""

import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from apikeyrouter.domain.components.capacity import FEW, Level
from apikeyrouter.domain.components.members import Members
from apikeyrouter.domain.components.objectives import Plan
from apikeyrouter.domain.components.observations import Seen
from apikeyrouter.domain.components.ordering import Building, Order, Row, settled
from apikeyrouter.domain.components.price_book import ModelPrice
from apikeyrouter.domain.components.scoring import TYPICAL_TOKENS, Conditions, lane_out_until_us
from apikeyrouter.domain.components.waits import by_waits
from apikeyrouter.domain.models.accounting import LaneState, LimitKind, Places, Words, place_words
from apikeyrouter.domain.models.capabilities import ModelCapabilities
from apikeyrouter.domain.models.ranking import Barred, Ranking, Standing
from apikeyrouter.domain.models.usage import Usage

if TYPE_CHECKING:
    from apikeyrouter.domain.components.catalogue import Key, Provider
    from apikeyrouter.domain.components.policy_constraints import Constraints

SCAN_MAX = 64
"""Most places of the order that one request looks at, however many of them are known to be out."""
PLACES_MAX = 64
"""Clients with limits of their own whose places an option remembers."""
ORDERS_MAX = 32
"""Orders that a pool keeps: one per objective (and size of request, where prices differ in shape) in use."""
SCORED_AT_ONCE_MAX = 256
"""Options that one request scores anew. Larger pools are scored behind the requests' backs, which use the order of
before meanwhile."""
TURNING = 2
"""Where waits decide, a request compares the best of the order, and so many of the next that take turns."""
TURNING_FROM_MAX = 256
TURN_REQUESTS = 8
"""After so many requests, one of the others gives its place to the next."""
Which = tuple[Plan, bool, tuple[int, int]]
"""What an order is for: a plan, whether for streams, and the size of the request (bits of input and output; 0: any)."""


ANY_SIZE = (0, 0)
TURNS_APART = 1 << 20
"""How far apart the first turns of workers may be."""
TURNS_KEPT_MAX = 64
"""Of one pool: the combinations of policies whose turns are kept."""
_ANY = ModelCapabilities()


Offered = dict[tuple["Option", ...], Places | None]
"""Options that were offered together → where they are counted; None: not all cost the same."""


@dataclass(slots=True, kw_only=True, eq=False)
class Option:
    """One key with one upstream model: the lanes that meter it (own lane first, provider's last) and its price.

    `rank`: the place of its target in an alias; a lower one is preferred. `hard`: a hard budget of its own applies.
    `rate`: equal for options on which a request costs the same. `quality`: declared, 0 … 1. `seen`: what this process
    has observed of it. `id`: of the key with the model. `able`: what the model can do. `cost_max_nanousd`,
    `success_min`: what policies ask of it in particular.
    """

    key: "Key"
    provider: "Provider"
    model: str
    rank: int
    lanes: tuple[str, ...]
    scopes: tuple[str, ...]
    hard: bool
    price: ModelPrice | None
    rate: int = 0
    quality: float = 0.5
    seen: Seen = field(default_factory=Seen)
    id: str = ""
    cost_max_nanousd: int | None = None
    success_min: float = 0.0
    able: ModelCapabilities = _ANY
    _places: dict[tuple[str, ...], Words] = field(default_factory=dict)

    def place(self, more: tuple[str, ...]) -> Words:
        """Where it is metered for a client with lanes of its own (`more`), which stand behind the others. Made once for
        each client."""
        known = self._places.get(more)
        if known is None:
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            known = self._places[more] = place_words((*self.lanes, *more), self.scopes)
        return known

    def changed(self, **fields: Any) -> "Option":
        """Itself but for some fields."""
        return replace(self, _places={}, **fields)


@dataclass(slots=True)
class Snapshot:
    """What is known of the lanes, read from the ledger now and then. Times are the ledger's, in microseconds."""

    lanes: dict[str, LaneState] = field(default_factory=dict)
    version: int = 0
    """Grows with every refresh."""
    taken: float = 0.0
    """`time.perf_counter()` of the last refresh."""
    now_us: int = 0
    """The ledger's time at the last refresh."""
    blocked: dict[str, float] = field(default_factory=dict)
    """Lanes, and ids of options, that come last in this process until that `perf_counter()`."""
    capacity: dict[str, Level] = field(default_factory=dict)
    """Lanes with less than an abundance left."""
    out: set[str] = field(default_factory=set)
    """Lanes that are out: cooling, or with an open breaker."""
    out_version: int = 0
    """Grows when `out` or `capacity` changes."""
    few: set[str] = field(default_factory=set)
    """Lanes in which only FEW calls may be in flight at a time."""
    wanted: dict[tuple["Pool", Which], None] = field(default_factory=dict)
    """Orders of large pools that requests found to be out of date; to be renewed by whoever refreshes this."""

    def take(
        self, lanes: Iterable[LaneState], *, now: float, now_us: int, levels: Mapping[str, Level] | None = None
    ) -> None:
        """Take in what the ledger says of some lanes, and how well off they are. `now`: `time.perf_counter()`."""
        changed = False
        for lane_id, level in (levels or {}).items():
            if level is not self.capacity.get(lane_id, Level.ABUNDANT):
                changed = True
                if level:
                    self.capacity[lane_id] = level
                else:
                    del self.capacity[lane_id]
        for lane in lanes:
            self.lanes[lane.id] = lane
            (self.few.add if _has_few_places(lane) else self.few.discard)(lane.id)
            is_out = lane_out_until_us(lane, now_us) > 0
            if is_out is not (lane.id in self.out):
                changed = True
                (self.out.add if is_out else self.out.discard)(lane.id)
        self.version += 1
        self.out_version += changed
        self.taken, self.now_us = now, now_us
        for lane_id in [lane_id for lane_id, until in self.blocked.items() if until <= now]:
            del self.blocked[lane_id]

    def ledger_us(self, now: float) -> int:
        """The ledger's time at a reading of `time.perf_counter()`."""
        return self.now_us + int((now - self.taken) * 1e6) if self.now_us else time.time_ns() // 1000

    def is_blocked(self, option: Option, now: float) -> bool:
        """Whether this option, or a lane of it, was reported out and is not back yet."""
        blocked = self.blocked
        return blocked.get(option.id, 0.0) > now or any(blocked.get(lane, 0.0) > now for lane in option.lanes)

    def blocked_until_us(self, option: Option, now: float) -> int:
        """When the last of what keeps it out here is over, Unix microseconds."""
        until = max(self.blocked.get(place, 0.0) for place in (option.id, *option.lanes))
        return self.ledger_us(now) + int((until - now) * 1e6)


def _has_few_places(lane: LaneState) -> bool:
    return any(limit.kind is LimitKind.CONCURRENCY and limit.capacity <= FEW for limit in lane.limits)


class Ranked(msgspec.Struct, eq=False):
    """Options in the order in which they should be offered, and how they came to be in it."""

    options: list[Option]
    ranking: Ranking


class Turns:
    """Whose turn it is. It outlives its pool, so that turns go on where they were when a pool is built anew."""

    __slots__ = ("_under", "at")

    def __init__(self, at: int | None = None) -> None:
        self.at = random.randrange(TURNS_APART) if at is None else at  # noqa: S311 (workers should not start in step)
        self._under: dict[tuple[str, ...], Turns] = {}

    def under(self, policies: tuple[str, ...]) -> "Turns":
        """The turns among what these policies leave of the pool; they begin where the pool's own are."""
        known = self._under.get(policies)
        if known is None:
            if len(self._under) >= TURNS_KEPT_MAX:
                self._under.clear()
            known = self._under[policies] = Turns(self.at)
        return known


class Pool:
    """The options for one model, in an order per objective. Keys that are out by their state are never offered."""

    def __init__(
        self, model: str, options: Sequence[Option], turns: "Turns | None" = None, *, always: bool = False
    ) -> None:
        """`always`: options whose keys are out are ranked like the others."""
        self.model = model
        self.turns = turns or Turns()
        self.options = list(options)
        self.members = Members(self.options, always=always)
        self.samples = tuple({option.provider.id: option for option in self.options}.values())
        """One option of each provider."""
        self.uneven = len({option.able for option in self.options}) > 1
        """Whether some of its models can do what others cannot, as far as that is known."""
        prices = {id(option.price): option.price for option in self.options}
        self.shaped = len({_shape(price) for price in prices.values() if price is not None} - {None}) > 1
        """Whether which option is cheapest may depend on the request."""
        self._saves = any(_saves(price) for price in prices.values() if price is not None)
        self.constraints: Constraints | None = None
        """The policies that it was narrowed by."""
        self.barred: tuple[Barred, ...] = ()
        """What they refuse."""
        self.capped = False
        """Whether they limit what a request may cost on some of the options in particular."""
        self.watched: dict[Option, tuple[str, ...]] = {}
        """The shadow policies that would refuse an option, where there are any."""
        self.emptied: frozenset[str] = frozenset()
        """The shadow policies that would refuse every option."""
        self._offered: dict[tuple[str, ...], Offered] = {}
        self._orders: dict[Which, Order] = {}
        self._building: dict[Which, Building] = {}

    @property
    def out(self) -> list[Option]:
        """The options whose keys are out by their state, whatever the limits say."""
        return [option for option in self.options if not option.key.state.eligible]

    @property
    def eligible(self) -> Collection[Option]:
        """The others."""
        return self.members.eligible

    @property
    def caches(self) -> bool:
        """Whether it may matter which quota group holds the cache of a prompt."""
        return self._saves and len(self.members.by_group) > 1

    def offered(self, more: tuple[str, ...]) -> Offered:
        """What was offered together to a client with these lanes of its own: whoever offers more notes it there."""
        known = self._offered.get(more)
        if known is None:
            if len(self._offered) >= PLACES_MAX:
                self._offered.clear()
            known = self._offered[more] = {}
        return known

    def moved(self, key_id: str) -> None:
        """The state of a key is another. Its options come or go; none of the others is looked at.

        Orders of small pools are built anew when they are asked for. In those of large ones, what has gone is passed
        over and what has come is put into its place.
        """
        found = self.members.moved(key_id)
        if found and len(self.options) <= SCORED_AT_ONCE_MAX:
            self._orders.clear()
            self._building.clear()
        for option in found:
            for order in self._orders.values():
                order.moved(option)
            for building in self._building.values():
                building.moved(option)

    @property
    def next_turn(self) -> int:
        """Whose turn is next, as `rank` takes it."""
        return self.turns.at + 1

    def rank(
        self,
        plan: Plan,
        count: int,
        *,
        snapshot: Snapshot,
        now: float,
        skip: Collection[Option] = (),
        stream: bool = False,
        tokens: tuple[int, int] = TYPICAL_TOKENS,
        start: int | None = None,
    ) -> Ranked:
        """At most `count` distinct options, best first, without `skip`; those known to be out come last.

        `tokens`: input and output that the request is expected to take. `start`: whose turn it is, for who wants the
        same answer again. Looks at SCAN_MAX places of the order; what lies beyond is found by `rest`.
        """
        order = self.order(plan, snapshot, now, stream=stream, tokens=tokens)
        ranking = Ranking(
            objective=plan.key, measures=plan.measures, standings=[], ranked=plan.ranked, excluded=order.excluded
        )
        if not order.options:
            return Ranked([], ranking)
        if start is None:
            turns = self.turns
            start = turns.at = turns.at + 1
        if plan.waits >= 0:
            return self._waiting(plan, order, ranking, count, snapshot, now, skip, start)
        start %= order.turning
        if not skip and not snapshot.blocked and order.distinct and not order.gone:
            turning, end, options = order.turning, start + count, order.options
            ranking.equals = turning if turning < count else count
            if end <= turning:
                ranking.standings = order.standings(start, end)
                return Ranked(options[start:end], ranking)
            wrapped = start if start < end - turning else end - turning
            ranking.standings = order.standings(start, turning) + order.standings(0, wrapped)
            ranking.standings += order.standings(turning, count)
            return Ranked(options[start:turning] + options[:wrapped] + options[turning:count], ranking)
        return self._scanned(order, ranking, count, snapshot, now, skip, start)

    def _scanned(
        self,
        order: Order,
        ranking: Ranking,
        count: int,
        snapshot: Snapshot,
        now: float,
        skip: Collection[Option],
        start: int,
    ) -> Ranked:
        """The slow way: place by place, leaving out what was tried, putting last what is out."""
        turning, gone = order.turning, order.gone
        chosen: list[Option] = []
        out: list[tuple[Option, Standing]] = []
        for place in range(min(len(order.options), SCAN_MAX + len(gone))):
            at = place if place >= turning else (start + place) % turning
            option = order.options[at]
            if option in chosen or option in gone or (skip and (option in skip or not option.key.state.eligible)):
                continue
            if snapshot.blocked and snapshot.is_blocked(option, now):
                if len(out) < count and all(option is not other for other, _ in out):
                    until_us = snapshot.blocked_until_us(option, now)
                    out.append((option, order.standing(at)._replace(out_until_us=until_us)))
                continue
            chosen.append(option)
            ranking.standings.append(order.standing(at))
            ranking.equals += at < turning
            if len(chosen) == count:
                break
        for option, standing in out[: count - len(chosen)]:
            chosen.append(option)
            ranking.standings.append(standing)
        return Ranked(chosen, ranking)

    def _waiting(
        self,
        plan: Plan,
        order: Order,
        ranking: Ranking,
        count: int,
        snapshot: Snapshot,
        now: float,
        skip: Collection[Option],
        start: int,
    ) -> Ranked:
        """Where waits decide: the leaders and some others, compared by what is under way now."""
        gone, blocked = order.gone, snapshot.blocked
        refused = skip or gone or blocked
        leaders = count if len(order.options) <= count else max(1, count - TURNING)
        if order.calm and not refused:
            near = _near(order.rows, order.turning, start, leaders)
            ranking.standings, options, ranking.equals = by_waits(plan, near, count)
            return Ranked(options, ranking)
        rows: list[Row] = []
        for known in _near(order.rows, order.turning, start, 2 * leaders if refused else leaders):
            option = known.option
            if refused and (option in gone or (skip and (option in skip or not option.key.state.eligible))):
                continue
            under_way = known.others + option.key.under_way
            values = list(known.values)
            values[plan.waits], values[plan.in_flight] = known.alone * (under_way + 1), float(under_way)
            row = Row(option, known.out_us, known.scarce, known.place, values, len(rows))
            row.value = plan.value(values) if plan.weights else values[plan.waits]
            if blocked and snapshot.is_blocked(option, now):
                row.out_us, row.place = snapshot.blocked_until_us(option, now), (True, *known.place[1:])
            rows.append(row)
        rows, equals = settled(plan, rows)
        del rows[count:]
        ranking.equals = min(equals, count)
        ranking.standings = [row.standing() for row in rows]
        return Ranked([row.option for row in rows], ranking)

    def rest(
        self, plan: Plan, seen: Collection[Option], *, snapshot: Snapshot, now: float
    ) -> Iterator[tuple[Option, Standing]]:
        """Every option that no round has tried yet, in order: a final denial has seen them all."""
        order = self.order(plan, snapshot, now)
        known = set(seen)
        parts = [order]
        if order.came:
            parts.append(_building((plan, False, ANY_SIZE), list(order.came), snapshot, now).whole())
        for part in parts:
            for at, option in enumerate(part.options):
                if option not in known and option.key.state.eligible:
                    known.add(option)
                    yield option, part.standing(at)

    def order(
        self,
        plan: Plan,
        snapshot: Snapshot,
        now: float,
        *,
        stream: bool = False,
        tokens: tuple[int, int] = TYPICAL_TOKENS,
    ) -> Order:
        """The order under a plan: as of this snapshot, or, of a large pool, of an earlier one, until it is renewed."""
        shaped = plan.costs >= 0 and self.shaped
        shape = (tokens[0].bit_length(), tokens[1].bit_length()) if shaped else ANY_SIZE
        which = (plan, stream and plan.waits >= 0, shape)
        known = self._orders.get(which)
        if known is not None:
            if known.came and not plan.moves:
                known.join(_building(which, list(known.came), snapshot, now).whole())
            if known.version == (snapshot.version if plan.moves else snapshot.out_version) and not known.worn:
                return known
            if len(self.options) > SCORED_AT_ONCE_MAX:
                if known.wanted_at != snapshot.version:
                    known.wanted_at = snapshot.version
                    snapshot.wanted[self, which] = None
                return known
        self.renew(which, snapshot, now, len(self.options))
        return self._orders[which]

    def renew(self, which: Which, snapshot: Snapshot, now: float, count: int) -> bool:
        """Score `count` more options for an order; whether it is up to date now."""
        building = self._building.get(which)
        if building is None:
            building = _building(which, list(self.eligible), snapshot, now)
        order = building.step(count)
        if order is None:
            self._building[which] = building
            return False
        self._building.pop(which, None)
        if len(self.options) > SCORED_AT_ONCE_MAX:
            order.tell_ahead(TURNING_FROM_MAX)
        if len(self._orders) >= ORDERS_MAX and which not in self._orders:
            self._orders.clear()
            self._building.clear()
        self._orders[which] = order
        return True


def _building(which: Which, options: list[Option], snapshot: Snapshot, now: float) -> Building:
    """An order of these options, as of this snapshot, to be built."""
    plan, stream, shape = which
    size = TYPICAL_TOKENS if shape == ANY_SIZE else (_typical(shape[0]), _typical(shape[1]))
    conditions = Conditions(
        lanes=snapshot.lanes, out=snapshot.out, capacity=snapshot.capacity, now=now, now_us=snapshot.ledger_us(now),
        stream=stream, input_tokens=size[0], output_tokens=size[1],
    )  # fmt: skip
    return Building(plan, options, conditions, version=snapshot.version if plan.moves else snapshot.out_version)


def _shape(price: ModelPrice) -> object:
    """Equal for prices that rank alike whatever the request: those whose input and output cost in the same ratio. None:
    the price is 0."""
    fee = price.expected(0, 0)
    read, written, much = (price.expected(*size) - fee for size in ((10**6, 0), (0, 10**6), (10**8, 0)))
    if not written:
        return (read, fee, much) if read or fee else None
    return round(read / written, 9), round(fee / written, 9), much == 100 * read


def _saves(price: ModelPrice) -> bool:
    """Whether cached input is cheaper."""
    cached = Usage(input_tokens=10**6, output_tokens=0, cache_read_tokens=10**6)
    return price.cost(cached) < price.expected(10**6, 0)


def _typical(bits: int) -> int:
    """The middle of the sizes that take this many bits."""
    return (3 << bits) >> 2


def _near(rows: list[Row], turning: int, start: int, leaders: int) -> list[Row]:
    """The leaders, equals in turn, and some others that take turns too."""
    count, first = len(rows), max(turning, leaders)
    at = start % turning
    end = at + leaders
    if turning <= leaders:
        near = rows[at:turning] + rows[:at] + rows[turning:leaders]
    else:
        near = rows[at:end] if end <= turning else rows[at:turning] + rows[: end - turning]
    others = min(count - first, TURNING_FROM_MAX) - TURNING
    if others >= 0:
        at = first + start // TURN_REQUESTS % (others + 1)
        return near + rows[at : at + TURNING]
    return near + rows[first:]
