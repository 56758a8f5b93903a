"""A pool: every way to serve one model, and the order in which a request tries them.

Ranking costs O(K) per request, whatever the number of keys: the order is rebuilt when the snapshot of lanes moves, and
a request takes its K candidates from there. Whoever asks next starts one further, so that equals share evenly.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from apikeyrouter.domain.components.price_book import ModelPrice
from apikeyrouter.domain.models.accounting import LaneState, place_words

if TYPE_CHECKING:
    from apikeyrouter.domain.components.catalogue import Key, Provider

SHORTLIST_MAX = 256
"""Longest order kept; more keys than that are rotated through rebuild by rebuild."""
SCAN_MAX = 64
"""Most places of the order that one request looks at, however many of them are known to be out."""
PLACES_MAX = 64
"""Clients with limits of their own whose places an option remembers."""
PRICED_TOKENS = (1000, 500)
"""Input and output tokens of the typical request by which prices are compared."""


@dataclass(slots=True, kw_only=True, eq=False)
class Option:
    """One key with one upstream model: the lanes that meter it (own lane first, provider's last) and its price.

    `rank`: the place of its target in an alias; a lower one is preferred. `hard`: a hard budget of its own applies.
    `rate`: equal for options on which a request costs the same.
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
    _words: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str | int, ...]]] = field(default_factory=dict)

    def place(self, more: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
        """Its lanes with a client's own behind them, and both with its scopes as the ledger sends them. Made once."""
        known = self._words.get(more)
        if known is None:
            if len(self._words) >= PLACES_MAX:
                self._words.clear()
            lanes = (*self.lanes, *more)
            known = self._words[more] = (lanes, place_words(lanes, self.scopes))
        return known


@dataclass(slots=True)
class Snapshot:
    """What is known of the lanes, read from the ledger now and then. Times are the ledger's, in microseconds."""

    lanes: dict[str, LaneState] = field(default_factory=dict)
    version: int = 0
    taken: float = 0.0
    """`time.perf_counter()` of the last refresh."""
    blocked: dict[str, float] = field(default_factory=dict)
    """Lanes this process knows to be out until that `perf_counter()`, ahead of the next refresh."""

    def is_blocked(self, option: Option, now: float) -> bool:
        """Whether a lane of this option was reported out and is not back yet."""
        return any(self.blocked.get(lane, 0.0) > now for lane in option.lanes)


Score = Callable[[Option, Mapping[str, LaneState]], float]
"""Lower is better. Pure over the snapshot."""


def cost_score(option: Option, lanes: Mapping[str, LaneState]) -> float:
    """Nano-dollars of a typical request; what has no price comes last."""
    return float("inf") if option.price is None else option.price.expected(*PRICED_TOKENS)


def reliability_score(option: Option, lanes: Mapping[str, LaneState]) -> float:
    """Estimated failure rate, with a prior of one failure in twenty that evidence outweighs; the worst lane speaks."""
    worst = 0.0
    for lane in (lanes.get(option.lanes[0]), lanes.get(option.lanes[-1])):
        ok, failed = (lane.successes, lane.failures) if lane else (0, 0)
        worst = max(worst, (failed + 1) / (ok + failed + 20))
    return worst


def latency_score(option: Option, lanes: Mapping[str, LaneState]) -> float:
    """Peak-EWMA: expected latency × what is under way. An unknown key is tried; failures are no short cut."""
    lane = lanes.get(option.lanes[0])
    if lane is None:
        return 0.0
    penalty = 1 + 10 * reliability_score(option, lanes)
    return lane.latency_us * (lane.in_flight + 1) * penalty / option.key.weight


def fairness_score(option: Option, lanes: Mapping[str, LaneState]) -> float:
    """All alike: the rotation spreads the load, the weights stretch it."""
    return 0.0


def quality_score(option: Option, lanes: Mapping[str, LaneState]) -> float:
    """The quality declared in the key's metadata; what declares none is of middling quality."""
    return -option.key.quality


SCORES: dict[str, Score] = {
    "cost": cost_score, "reliability": reliability_score, "latency": latency_score, "fairness": fairness_score,
    "quality": quality_score,
}  # fmt: skip


class Pool:
    """The options for one model, in an order per objective. Keys that are out by their state are never offered."""

    def __init__(self, model: str, options: Sequence[Option]) -> None:
        self.model = model
        self.options = list(options)
        self.eligible = [option for option in self.options if option.key.state.eligible]
        self.samples = tuple({option.provider.id: option for option in self.options}.values())
        """One option of each provider."""
        self._orders: dict[str, tuple[int, list[Option], int]] = {}
        self._turn = random.randrange(max(1, len(self.eligible)))  # noqa: S311 (workers should not start in step)

    @property
    def out(self) -> list[Option]:
        """The options whose keys are out by their state, whatever the limits say."""
        return [option for option in self.options if not option.key.state.eligible]

    def rank(
        self, objective: str, count: int, *, snapshot: Snapshot, now: float, skip: Collection[Option] = ()
    ) -> list[Option]:
        """At most `count` distinct options, best first, without `skip`; those known to be out come last.

        Looks at SCAN_MAX places of the order; what lies beyond is found by `rest`.
        """
        known = self._orders.get(objective)
        if known is None or known[0] != snapshot.version:
            known = self._orders[objective] = (snapshot.version, *self._order(objective, snapshot.lanes))
        _, order, turning = known
        if not order:
            return []
        self._turn = start = (self._turn + 1) % turning
        if not skip and not snapshot.blocked and turning == len(self.eligible) and count <= turning:
            return order[start : start + count] + order[: max(0, start + count - turning)]
        chosen: list[Option] = []
        out: list[Option] = []
        for place in range(min(len(order), SCAN_MAX)):
            at = place if place >= turning else (start + place) % turning
            option = order[at]
            if option in chosen or (skip and (option in skip or not option.key.state.eligible)):
                continue
            if snapshot.blocked and snapshot.is_blocked(option, now):
                if len(out) < count and option not in out:
                    out.append(option)
                continue
            chosen.append(option)
            if len(chosen) == count:
                return chosen
        return (chosen + out)[:count] if out else chosen

    def rest(self, seen: Collection[Option], count: int) -> list[Option]:
        """The next `count` options that no round has tried yet, in any order: a final denial has seen them all."""
        known = frozenset(seen)
        found: list[Option] = []
        for option in self.eligible:
            if option not in known and option.key.state.eligible:
                found.append(option)
                if len(found) == count:
                    break
        return found

    def _order(self, objective: str, lanes: Mapping[str, LaneState]) -> tuple[list[Option], int]:
        """The order, and how many at its head take turns: those that are equally good."""
        if not self.eligible:
            return [], 1
        if objective == "fairness":
            first = min(option.rank for option in self.eligible)
            head = _woven([option for option in self.eligible if option.rank == first])
            rest = [option for option in self.eligible if option.rank != first]
            return head + sorted(rest, key=lambda option: option.rank), len(head)
        score = SCORES[objective]
        scored = [((option.rank, score(option, lanes)), option) for option in self.eligible]
        random.shuffle(scored)  # equals take turns, rebuild by rebuild
        scored.sort(key=lambda pair: pair[0])
        equals = sum(1 for value, _ in scored[:SHORTLIST_MAX] if value == scored[0][0])
        return [option for _, option in scored[:SHORTLIST_MAX]], equals


def _woven(options: Sequence[Option]) -> list[Option]:
    """Smooth weighted round robin: an order in which an option of weight 3 stands three times, well apart."""
    weights = [option.key.weight for option in options]
    if max(weights) == min(weights):
        return list(options)
    least = min(weights)
    turns = [min(16, max(1, round(weight / least))) for weight in weights]
    places = [
        ((turn + 0.5) / count, option) for count, option in zip(turns, options, strict=True) for turn in range(count)
    ]
    return [option for _, option in sorted(places, key=lambda place: place[0])]
