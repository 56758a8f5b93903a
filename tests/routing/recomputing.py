"""A decision's choice, made again from its numbers alone, with arithmetic of its own (`docs/routing.md`)."""

import math
from collections.abc import Sequence

from apikeyrouter.domain.models.routing_decision import CandidateVerdict, RoutingDecision, RoutingObjective

MEASURES = {
    "cost": "cost_nanousd", "reliability": "failure_share", "latency": "expected_us", "quality": "shortfall",
    "fairness": "load",
}  # fmt: skip
LEAST = {"cost_nanousd": 1.0, "failure_share": 0.005, "shortfall": 0.01}
UNKNOWN = 1e300


def rechosen(decision: RoutingDecision) -> str:
    """The key that should have been chosen; "" for none."""
    compared = [verdict for verdict in decision.candidates if verdict.score is not None]
    for verdict in reordered(decision, compared):
        if verdict.outcome != "denied":
            return verdict.key_id
    return ""


def reordered(decision: RoutingDecision, compared: Sequence[CandidateVerdict]) -> list[CandidateVerdict]:
    """Candidates in the order in which they should have been offered."""
    if not compared:
        return []
    sticky = [verdict for verdict in compared if "saved_nanousd" in verdict.parts]
    value = _values(decision.objective, compared)
    ordered = sorted(compared, key=lambda verdict: (_place(decision, verdict), value[id(verdict)]))
    first = ordered[0]
    limit = _limit(decision.objective, value[id(first)])
    head = [
        verdict for verdict in ordered
        if _place(decision, verdict) == _place(decision, first) and value[id(verdict)] <= limit
    ]  # fmt: skip
    rest = ordered[len(head) :]
    for measure, more in (("quota_level", 0.0), *((tie, None) for tie in _ties(decision.objective))):
        head, lost = _split(head, measure, more)
        rest = lost + rest
    head.sort(key=lambda verdict: UNKNOWN if verdict.turn is None else verdict.turn)
    return sticky + [verdict for verdict in head + rest if verdict not in sticky]


def _values(objective: RoutingObjective, compared: Sequence[CandidateVerdict]) -> dict[int, float]:
    """What the primary, or the weights, say to each: less is better."""
    weights = {name: weight for name, weight in objective.weights.items() if weight > 0}
    total = sum(weights.values())
    if weights:
        return {id(each): sum(w / total * _log(each, name) for name, w in weights.items()) for each in compared}
    if objective.primary == "fairness":
        return {id(each): 0.0 for each in compared}
    return {id(each): each.parts.get(_measure(objective.primary), UNKNOWN) for each in compared}


def _limit(objective: RoutingObjective, least: float) -> float:
    if any(objective.weights.values()):
        return least + math.log(1.01) + 1e-12
    return _equal_to(_measure(objective.primary), least)


def _ties(objective: RoutingObjective) -> list[str]:
    """The measures that break ties, in order."""
    weighted = any(objective.weights.values())
    if objective.primary == "fairness" and not weighted:
        return []
    found = []
    for name in [str(objective.primary), *map(str, objective.secondary)] if weighted else objective.secondary:
        if name == "fairness" and not (weighted and objective.weights.get(name)):
            break
        found.append(_measure(name))
    return found


def _split(
    head: list[CandidateVerdict], measure: str, unknown: float | None
) -> tuple[list[CandidateVerdict], list[CandidateVerdict]]:
    """Those that are equal to the best by a measure, and the others, best first."""
    default = UNKNOWN if unknown is None else unknown
    ordered = sorted(head, key=lambda verdict: verdict.parts.get(measure, default))
    limit = _equal_to(measure, ordered[0].parts.get(measure, default))
    count = sum(1 for verdict in ordered if verdict.parts.get(measure, default) <= limit)
    return ordered[:count], ordered[count:]


def _place(decision: RoutingDecision, verdict: CandidateVerdict) -> tuple[bool, int, float]:
    level = verdict.parts.get("quota_level", 0.0)
    spares = not any(decision.objective.weights.values()) and decision.objective.primary in ("fairness", "reliability")
    return verdict.outcome == "out" or level == 3, verdict.place, level if spares or level >= 2 else 0.0


def _measure(name: str) -> str:
    return MEASURES.get(name, name)


def _equal_to(measure: str, least: float) -> float:
    """The largest value that is as good as the least."""
    limits = {"expected_us": least * 1.02, "failure_share": least + 0.02, "shortfall": least + 0.01}
    return limits.get(measure, least)


def _log(verdict: CandidateVerdict, name: str) -> float:
    measure = MEASURES.get(name)
    if measure is None:
        return verdict.parts.get(name, UNKNOWN)
    return math.log(max(verdict.parts.get(measure, UNKNOWN), LEAST.get(measure, 1e-9)))
