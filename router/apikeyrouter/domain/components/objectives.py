"""Objectives, compiled: which measures are looked at, how they combine, what counts as equal, what excludes.

Without weights the primary objective ranks, and the secondaries break its ties in turn. With weights the ranking is the
weighted geometric mean of the measures: no unit matters, and twice the weight makes a halving worth a quartering.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from apikeyrouter.domain.components.scoring import (
    WORST,
    CandidateView,
    Conditions,
    Measure,
    cost_nanousd,
    failure_share,
    latency_us,
    outcomes,
    recent_load,
    shortfall,
)
from apikeyrouter.domain.models.ranking import ObjectiveKey
from apikeyrouter.domain.models.routing_decision import (
    ObjectiveType,
    RoutingObjective,
    RoutingStrategy,
    declare_strategy,
    known_objective,
)
from apikeyrouter.domain.models.system_error import InvalidRequestError

Scorer = Callable[[CandidateView], float]
"""A strategy: the higher, the better. Pure and quick; called when what is known of lanes moves, not per request."""
Report = Callable[[str, object], None]
"""Told when a strategy raises or returns what is no number: its name, and the error or the value."""

EXPECTED_US, LATENCY_US, IN_FLIGHT = "expected_us", "latency_us", "in_flight"
COST, FAILURE_SHARE, LOAD, SHORTFALL, OUTCOMES = "cost_nanousd", "failure_share", "load", "shortfall", "outcomes"
MEASURE_OF = {
    ObjectiveType.Cost.value: COST, ObjectiveType.Reliability.value: FAILURE_SHARE,
    ObjectiveType.Fairness.value: LOAD, ObjectiveType.Latency.value: EXPECTED_US,
    ObjectiveType.Quality.value: SHORTFALL,
}  # fmt: skip
_FUNCTIONS: dict[str, Measure] = {
    COST: cost_nanousd, FAILURE_SHARE: failure_share, LOAD: recent_load, EXPECTED_US: latency_us, SHORTFALL: shortfall,
    LATENCY_US: latency_us, OUTCOMES: outcomes,
}  # fmt: skip
_TELLS = {EXPECTED_US: (LATENCY_US, IN_FLIGHT, FAILURE_SHARE), FAILURE_SHARE: (OUTCOMES,)}
"""What is kept beside a measure, so that it can be recomputed."""
_STEADY = frozenset({COST})
"""Measures that lanes do not move."""
_FLOORS = {COST: 1.0, FAILURE_SHARE: 0.005, SHORTFALL: 0.01}
"""What a measure counts at least in a product, so that nothing is infinitely better than something."""
EQUAL_SHARE = {FAILURE_SHARE: 0.02, SHORTFALL: 0.01}
"""Measures that differ by no more than this are equal."""
EQUAL_RATIO = {EXPECTED_US: 1.02}
"""Measures whose ratio is no more than this are equal. Others are equal when they are the same."""
EQUAL_WEIGHTED = math.log(1.01)
"""Weighted means that differ by no more than a hundredth are equal."""
_DESCRIPTIONS = {
    ObjectiveType.Cost: "the lowest expected cost of the request; cached input counts at its price",
    ObjectiveType.Reliability: "the smallest proven share of failures, as the whole fleet has seen them lately",
    ObjectiveType.Fairness: "every key in turn, in proportion to the weights",
    ObjectiveType.Latency: "the shortest wait: latency times what is under way; of streams, to the first token",
    ObjectiveType.Quality: "the best declared quality times the share of good answers",
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """A compiled objective. `measures` names the values kept of each option, `functions` makes them.

    `ranked`: how many of them, from the front, rank; with `weights` as many, else one (or none: turns alone). `ties`:
    indexes of those that break ties, in order. `bounds`: (constraint, index of its measure, bound). `moves`: whether
    lanes move the order. `waits`, `costs`: the index of the expected wait and the cost among what ranks, else -1;
    `in_flight`: that of what is under way.
    """

    key: ObjectiveKey
    measures: tuple[str, ...]
    functions: tuple[Measure | None, ...]
    ranked: int
    weights: tuple[float, ...]
    ties: tuple[int, ...]
    bounds: tuple[tuple[str, int, float], ...]
    cost_max_nanousd: int | None
    moves: bool
    waits: int
    costs: int
    in_flight: int = -1

    @property
    def name(self) -> str:
        """The primary objective's name."""
        return self.key[0]

    @property
    def judges(self) -> bool:
        """Whether the quality of answers matters to it."""
        return SHORTFALL in self.measures

    def value(self, values: Sequence[float]) -> float:
        """What is ranked by, less is better: the first measure, or the logarithm of the weighted mean."""
        if self.weights:
            return combined(self.measures, self.weights, values)
        return values[0] if self.ranked else 0.0

    def equal_to(self, best: float) -> float:
        """The largest ranking value that counts as equal to the best one."""
        return best + EQUAL_WEIGHTED if self.weights else equal_to(self.measures[0], best) if self.ranked else best


def combined(measures: Sequence[str], weights: Sequence[float], values: Sequence[float]) -> float:
    """The logarithm of the weighted geometric mean of the first so many values."""
    total = 0.0
    for at, weight in enumerate(weights):
        total += weight * _logarithm(measures[at], values[at])
    return total


def equal_to(measure: str, best: float) -> float:
    """The largest value of a measure that counts as equal to the best one."""
    return best * EQUAL_RATIO.get(measure, 1.0) + EQUAL_SHARE.get(measure, 0.0)


def is_measure(name: str) -> bool:
    """Whether this is a measure in units of its own, and not a strategy, whose scores are logarithms."""
    return name in _FUNCTIONS


def _logarithm(measure: str, value: float) -> float:
    if not is_measure(measure):
        return value  # a strategy's score is a logarithm: one point more is worth a factor e
    return math.log(max(value, _FLOORS.get(measure, 1e-9)))


class Strategies:
    """The objectives that may be named: the five built in, and those registered with this router."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._registered: dict[str, tuple[Scorer, str]] = {}

    def register(self, name: str, scorer: Scorer, description: str, *, overwrite: bool) -> str:
        """Make a scorer known as an objective; its name as it is compared. Errors: InvalidRequestError."""
        if not callable(scorer):
            raise InvalidRequestError("must be callable with a CandidateView", field="scorer")
        if not isinstance(description, str):
            raise InvalidRequestError("must be text", field="description")
        folded = declare_strategy(name)
        if folded in self._registered and not overwrite:
            raise InvalidRequestError(f"{folded!r} is registered already; pass overwrite=True", field="name")
        self._registered[folded] = (scorer, description)
        return folded

    def listed(self) -> list[RoutingStrategy]:
        """All of them, the built-in ones first."""
        built_in = [RoutingStrategy(name=kind.value, description=text) for kind, text in _DESCRIPTIONS.items()]
        own = [
            RoutingStrategy(name=name, description=text, builtin=False)
            for name, (_, text) in sorted(self._registered.items())
        ]
        return built_in + own

    def compile(self, objective: RoutingObjective) -> Plan:
        """The plan of an objective. Errors: InvalidRequestError for a strategy that this router does not have."""
        weights = {name: weight for name, weight in objective.weights.items() if weight > 0}
        ranking = [self._measure(name) for name in weights] if weights else self._first(str(objective.primary))
        others = [str(objective.primary), *map(str, objective.secondary)] if weights else objective.secondary
        breaking = self._breaking(ranking, weights, map(str, others))
        bounds = _bounds(objective)
        names = list(dict.fromkeys([*ranking, *breaking, *(measure for _, measure, _ in bounds)]))
        names = list(dict.fromkeys([*names, *(told for name in names for told in _TELLS.get(name, ()))]))
        money = objective.constraints.get("max_cost_per_request")
        return Plan(
            key=key_of(objective), measures=tuple(names), functions=tuple(map(self._function, names)),
            ranked=len(ranking), weights=weighed(objective.weights),
            ties=tuple(map(names.index, breaking)),
            bounds=tuple((constraint, names.index(measure), bound) for constraint, measure, bound in bounds),
            cost_max_nanousd=None if money is None else int(money * 10**9), moves=not _STEADY.issuperset(names),
            waits=_place(EXPECTED_US, ranking), costs=_place(COST, ranking), in_flight=_place(IN_FLIGHT, names),
        )  # fmt: skip

    def _first(self, primary: str) -> list[str]:
        """What the primary ranks by: nothing where turns decide."""
        return [] if primary == ObjectiveType.Fairness.value else [self._measure(primary)]

    def _breaking(self, ranking: list[str], weights: dict[str, float], others: Iterable[str]) -> list[str]:
        """The measures that break ties. Turns never tie, so that nothing comes after fairness."""
        found: list[str] = []
        if not ranking:
            return found
        for name in others:
            if name == ObjectiveType.Fairness.value and name not in weights:
                break
            measure = self._measure(name)
            if measure not in ranking and measure not in found:
                found.append(measure)
        return found

    def _measure(self, name: str) -> str:
        if name in MEASURE_OF:
            return MEASURE_OF[name]
        if name not in self._registered:
            raise InvalidRequestError(f"{name!r} is not registered with this router", field="objective")
        return name

    def _function(self, measure: str) -> Measure | None:
        if measure in _FUNCTIONS or measure == IN_FLIGHT:
            return _FUNCTIONS.get(measure)
        return _guarded(measure, self._registered[measure][0], self._report)


def weighed(weights: Mapping[str, float]) -> tuple[float, ...]:
    """The weights that count, so that they add up to 1."""
    counting = [weight for weight in weights.values() if weight > 0]
    most = max(counting, default=1.0)
    total = math.fsum(weight / most for weight in counting)
    return tuple(weight / most / total for weight in counting)


def _place(measure: str, ranking: list[str]) -> int:
    return ranking.index(measure) if measure in ranking else -1


def _bounds(objective: RoutingObjective) -> list[tuple[str, str, float]]:
    measures = {"min_reliability": FAILURE_SHARE, "min_quality": SHORTFALL, "max_latency_ms": LATENCY_US}
    return [(name, measures[name], float(bound)) for name, bound in objective.constraints.items() if name in measures]


def _guarded(name: str, scorer: Scorer, report: Report) -> Measure:
    """A strategy as a measure. What raises, or returns what is no number, comes last and is reported."""

    def measure(option: Any, at: Conditions) -> float:
        score: object = None
        try:
            score = scorer(CandidateView(option, at))
            if isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score):
                return max(-WORST, min(WORST, -float(score)))
        except Exception as exc:
            report(name, exc)
            return WORST
        report(name, score)
        return WORST

    return measure


def key_of(objective: RoutingObjective) -> ObjectiveKey:
    """An objective as plain data; equal objectives have equal keys."""
    constraints = sorted(objective.constraints.items())
    return (
        str(objective.primary),
        tuple(map(str, objective.secondary)),
        tuple((name, str(bound) if isinstance(bound, Decimal) else float(bound)) for name, bound in constraints),
        tuple((name, float(weight)) for name, weight in objective.weights.items()),
    )


def objective_of(key: ObjectiveKey) -> RoutingObjective:
    """The objective behind a key; one whose strategy is unknown here keeps its name."""
    primary, secondary, constraints, weights = key
    for name in (primary, *secondary, *(weighed for weighed, _ in weights)):
        if known_objective(name) is None:
            declare_strategy(name)
    return RoutingObjective(primary, list(secondary), dict(constraints), dict(weights))
