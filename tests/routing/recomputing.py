"""A decision's choice, made again from its numbers alone, with arithmetic of its own (`docs/routing.md`)."""

import math
from collections.abc import Sequence

from apikeyrouter.domain.models.routing_decision import CandidateVerdict, RoutingDecision

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
    left, order = list(compared), []
    sticky = [verdict for verdict in left if "saved_nanousd" in verdict.parts]
    while left:
        place = min(_place(decision, verdict) for verdict in left)
        best = _best(decision, [verdict for verdict in left if _place(decision, verdict) == place])
        chosen = min(best, key=lambda verdict: UNKNOWN if verdict.turn is None else verdict.turn)
        order.append(chosen)
        left.remove(chosen)
    return sticky + [verdict for verdict in order if verdict not in sticky]


def _place(decision: RoutingDecision, verdict: CandidateVerdict) -> tuple[bool, int, float]:
    level = verdict.parts.get("quota_level", 0.0)
    spares = not any(decision.objective.weights.values()) and decision.objective.primary in ("fairness", "reliability")
    return verdict.outcome == "out" or level == 3, verdict.place, level if spares or level >= 2 else 0.0


def _best(decision: RoutingDecision, peers: list[CandidateVerdict]) -> list[CandidateVerdict]:
    objective = decision.objective
    weights = {name: weight for name, weight in objective.weights.items() if weight > 0}
    if weights:
        total = sum(weights.values())
        value = {id(peer): sum(w / total * _log(peer, name) for name, w in weights.items()) for peer in peers}
        least = min(value.values())
        peers = [peer for peer in peers if value[id(peer)] <= least + math.log(1.01) + 1e-12]
    elif objective.primary != "fairness":
        peers = _least(peers, MEASURES.get(objective.primary, objective.primary))
    else:
        return peers
    level = min(peer.parts.get("quota_level", 0.0) for peer in peers)
    peers = [peer for peer in peers if peer.parts.get("quota_level", 0.0) == level]
    for name in [str(objective.primary), *map(str, objective.secondary)] if weights else objective.secondary:
        if name == "fairness" and name not in weights:
            break
        peers = _least(peers, MEASURES.get(name, name))
    return peers


def _least(peers: list[CandidateVerdict], measure: str) -> list[CandidateVerdict]:
    least = min(peer.parts.get(measure, UNKNOWN) for peer in peers)
    limits = {"expected_us": least * 1.02, "failure_share": least + 0.02, "shortfall": least + 0.01}
    return [peer for peer in peers if peer.parts.get(measure, UNKNOWN) <= limits.get(measure, least)]


def _log(verdict: CandidateVerdict, name: str) -> float:
    measure = MEASURES.get(name)
    if measure is None:
        return verdict.parts.get(name, UNKNOWN)
    return math.log(max(verdict.parts.get(measure, UNKNOWN), LEAST.get(measure, 1e-9)))
