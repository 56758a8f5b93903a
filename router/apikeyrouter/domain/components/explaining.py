"""Facts into words, on demand: why each candidate won or lost, with the numbers that decided it. Pure."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from apikeyrouter.domain.components.capacity import Level
from apikeyrouter.domain.components.objectives import (
    COST,
    FAILURE_SHARE,
    SHORTFALL,
    combined,
    is_measure,
    objective_of,
    weighed,
)
from apikeyrouter.domain.components.quotas import told_name
from apikeyrouter.domain.components.reservation_ids import process_of
from apikeyrouter.domain.components.scoring import WORST
from apikeyrouter.domain.models.accounting import Loss, Reason, RetryKind
from apikeyrouter.domain.models.call import AttemptFacts, Facts
from apikeyrouter.domain.models.cost_estimate import dollars
from apikeyrouter.domain.models.money import plainly
from apikeyrouter.domain.models.ranking import Exclusion, Ranking, Standing
from apikeyrouter.domain.models.routing_decision import CandidateVerdict, RoutingDecision, Tried

SCORES = "scores"
AGE_HALF_SECONDS = 10.0
"""A snapshot of this age is worth half the confidence of a fresh one."""
_WHY = {
    Reason.LIMIT: "limit {limit} of {where} is full",
    Reason.COOLDOWN: "{where} is cooling",
    Reason.BREAKER_OPEN: "{where} is out: its circuit breaker is open",
    Reason.PROBE_IN_FLIGHT: "{where} is being probed",
    Reason.BUDGET: "budget {where} is used up",
    Reason.UNPRICED: "budget {where} refuses what cannot be priced or bounded",
    Reason.FAIR_SHARE: "others are owed the rest of {where}",
    Reason.NEVER_FITS: "the request is larger than {limit}{where} ever admits",
    Reason.CLOCK_SUSPECT: "the ledger's clock is in doubt, so {where} refuses",
    Reason.STORE_FORGOT: "the store forgot writes lately, so an eighth of {where} stays free",
}


def told(loss: Loss) -> str:
    """Why a candidate lost, with when it is back."""
    limit = told_name(loss.limit) or "requests"
    if loss.reason is Reason.NEVER_FITS:
        limit = f"limit {limit} of " if loss.limit else ""
    text = _WHY[loss.reason].format(limit=limit, where=loss.where)
    back = back_at(loss)
    return f"{text} until {back.isoformat()}" if back is not None and loss.retry_kind is RetryKind.EXACT else text


def back_at(loss: Loss) -> datetime | None:
    """When a candidate is back; None: never by itself."""
    return None if loss.retry_kind is RetryKind.NEVER else _utc(loss.retry_at_us)


def told_exclusion(exclusion: Exclusion) -> str:
    """Which constraint excluded a candidate, with both numbers."""
    value = "unknown" if exclusion.value is None else plainly(exclusion.value)
    return f"{exclusion.constraint} is {plainly(exclusion.bound)}, and this would be {value}"


def confidence(age_seconds: float, winner: float | None, runner_up: float | None) -> float:
    """How sure a choice is, 0 … 1: `2 ** (-age / 10 s) × (1 + margin) / 2`.

    The margin is the share by which the runner-up's score falls short of the winner's; 1 where nobody else was left.
    """
    margin = 1.0
    if winner is not None and runner_up is not None:
        margin = 1.0 - min(1.0, max(0.0, runner_up / winner)) if winner > 0 else 0.0
    return float(2.0 ** (-max(0.0, age_seconds) / AGE_HALF_SECONDS) * (1.0 + margin) / 2.0)


def scores(ranking: Ranking) -> list[float]:
    """How good each candidate is, compared with the best of them: 1, and half as good is 0.5.

    Of cost and expected wait the inverse ratio, of success and quality the ratio, of a weighted objective the ratio of
    the weighted means, of a strategy `exp` of what it scores less than the best. Turns alone: 1.
    """
    values = [_value(ranking, standing) for standing in ranking.standings]
    if not values:
        return []
    best = min(values)
    plain = ranking.ranked and not ranking.objective[3] and is_measure(ranking.measures[0])
    return [_score(ranking.measures[0] if plain else "", best, value) for value in values]


def _value(ranking: Ranking, standing: Standing) -> float:
    weights = ranking.objective[3]
    if weights:
        return combined(ranking.measures, weighed(dict(weights)), standing.values)
    return standing.values[0] if ranking.ranked else 0.0


def _score(measure: str, best: float, value: float) -> float:
    """`measure` "": the values are logarithms."""
    if value == best:
        return 1.0
    if value >= WORST:
        return 0.0
    if not measure:
        return math.exp(best - value)
    if measure in (FAILURE_SHARE, SHORTFALL):
        return (1.0 - value) / (1.0 - best)
    return best / value


def decision_of(facts: Facts) -> RoutingDecision:
    """A call's facts as the documented decision: of its last attempt, or of its refusal."""
    last = facts.attempts[-1] if facts.attempts else None
    refused = facts.refusal
    ranking = last.ranking if last is not None else None if refused is None else refused.ranking
    verdicts = _verdicts(facts, ranking, last)
    chosen = next((verdict for verdict in verdicts if verdict.outcome == "chosen"), None)
    rivals = [verdict.score for verdict in verdicts if verdict.outcome == "outranked" and verdict.score is not None]
    sure = confidence(facts.snapshot_age_us / 1e6, None if chosen is None else chosen.score, max(rivals, default=None))
    return RoutingDecision(
        id=facts.request_id, request_id=facts.request_id, selected_key_id="" if chosen is None else chosen.key_id,
        selected_provider_id="" if chosen is None else chosen.provider_id, model=facts.model,
        objective=objective_of(ranking.objective if ranking is not None else (facts.objective, (), (), ())),
        explanation=_explanation(facts, verdicts, chosen), confidence=0.0 if chosen is None else sure,
        timestamp=_utc(facts.at_us), candidates=verdicts, hold_ids=[attempt.rid.hex() for attempt in facts.attempts],
        snapshot_age_ms=facts.snapshot_age_us // 1000, attempts=len(facts.attempts), policy_ids=list(facts.policies),
        outcome=facts.outcome, client=facts.client, team=facts.team, stream=facts.stream,
        tried=[_tried(attempt) for attempt in facts.attempts], waited_us=facts.waited_us, upstream_us=facts.upstream_us,
        first_token_us=facts.first_token_us or None, overhead_us=facts.overhead_us, total_us=facts.total_us,
        input_tokens=None if facts.usage is None else facts.usage.input_tokens,
        output_tokens=None if facts.usage is None else facts.usage.output_tokens,
        cost=_money(facts.cost_nanousd), cost_estimated=facts.cost_estimated,
    )  # fmt: skip


def _tried(attempt: AttemptFacts) -> Tried:
    expected = attempt.expected_nanousd
    return Tried(
        key_id=attempt.key_id, provider_id=attempt.provider_id, model=attempt.model, reservation_id=attempt.rid.hex(),
        worker=process_of(attempt.rid), failure=attempt.failure, status=attempt.status, probe=attempt.probe,
        reserve_us=attempt.reserve_us, upstream_us=attempt.upstream_us, expected_input_tokens=attempt.expected_input,
        expected_output_tokens=attempt.expected_output, expected_cost=_money(None if expected < 0 else expected),
        cost=_money(attempt.cost_nanousd), cost_estimated=attempt.cost_estimated,
    )  # fmt: skip


def _money(amount_nanousd: int | None) -> Decimal | None:
    return None if amount_nanousd is None else dollars(amount_nanousd)


def explained(decision: RoutingDecision) -> str:
    """A decision in words: one line for what was asked, one for each candidate."""
    lines = [
        f"{decision.request_id or decision.id}: model {decision.model}, {_objective_words(decision)}; lanes as of"
        f" {decision.snapshot_age_ms} ms before, confidence {decision.confidence:.2f}"
    ]
    for verdict in decision.candidates:
        who = f"{verdict.key_id} ({verdict.model} at {verdict.provider_id})"
        told_why = verdict.reason.startswith(SCORES)
        score = "" if verdict.score is None or told_why else f" {SCORES} {verdict.score:.3g}"
        turn = "" if verdict.turn is None else f", turn {verdict.turn}"
        numbers = ", ".join(f"{name} {plainly(value)}" for name, value in verdict.parts.items())
        lines.append(f"  {verdict.outcome}: {who}{score}{turn}" + (f" [{numbers}]" if numbers else ""))
        if verdict.reason:
            lines[-1] += f": {verdict.reason}"
    if not decision.candidates:
        lines.append("  no candidate is remembered")
    return "\n".join(lines)


def _objective_words(decision: RoutingDecision) -> str:
    objective = decision.objective
    words = f"objective {objective.primary}"
    if objective.weights:
        words += " with weights " + ", ".join(f"{name} {weight:g}" for name, weight in objective.weights.items())
    if objective.secondary:
        words += ", then " + ", ".join(objective.secondary)
    if objective.constraints:
        words += ", held to " + ", ".join(f"{name} {bound}" for name, bound in objective.constraints.items())
    return words


def _verdicts(facts: Facts, ranking: Ranking | None, last: AttemptFacts | None) -> list[CandidateVerdict]:
    if ranking is None:
        return []
    losses: Sequence[Loss] = last.losses if last is not None else facts.refusal.losses if facts.refusal else ()
    chosen_at = -1 if last is None else last.place
    found = [
        _verdict(ranking, at, score, chosen_at, losses[at] if at < len(losses) and at != chosen_at else None)
        for at, score in enumerate(scores(ranking))
    ]
    if chosen_at > 0:
        found.insert(0, found.pop(chosen_at))
    for excluded in ranking.excluded:
        found.append(
            CandidateVerdict(
                key_id=excluded.key_id, provider_id=excluded.provider_id, model=excluded.model, outcome="excluded",
                parts={} if excluded.value is None else {excluded.constraint: excluded.value},
                reason=told_exclusion(excluded),
            )
        )  # fmt: skip
    for barred in facts.barred:
        found.append(
            CandidateVerdict(
                key_id=barred.key_id, provider_id=barred.provider_id, model=barred.model, outcome="excluded",
                reason=barred.why,
            )
        )  # fmt: skip
    for attempt in facts.attempts[:-1]:
        found.append(
            CandidateVerdict(
                key_id=attempt.key_id, provider_id=attempt.provider_id, model=attempt.model, outcome="failed",
                reason=f"was tried before: {attempt.failure or 'failed'}",
            )
        )  # fmt: skip
    return found


def _verdict(ranking: Ranking, at: int, score: float, chosen_at: int, loss: Loss | None) -> CandidateVerdict:
    standing = ranking.standings[at]
    parts = dict(zip(ranking.measures, standing.values, strict=True))
    outcome, reason = "outranked", ""
    if at == chosen_at:
        outcome = "chosen"
    elif loss is not None:
        outcome, reason = "denied", told(loss)
    elif standing.out_until_us:
        outcome, reason = "out", f"a lane of it is out until {_utc(standing.out_until_us).isoformat()}"
    elif at < ranking.equals:
        reason = "it is another's turn"
    else:
        reason = f"{SCORES} {score:.3g}"
        reason += f"; its quota is {Level(standing.scarce).state.value}" if standing.scarce else ""
    if standing.scarce:
        parts["quota_level"] = float(standing.scarce)
    if ranking.expected_nanousd and ranking.expected_nanousd[at] >= 0:
        parts[COST] = float(ranking.expected_nanousd[at])
    if standing.weight != 1.0:
        parts["weight"] = standing.weight
    if ranking.cached_tokens and ranking.cached_tokens[at]:
        parts["cached_tokens"] = float(ranking.cached_tokens[at])
    if at == ranking.sticky:
        parts["saved_nanousd"] = float(ranking.saved_nanousd)
    return CandidateVerdict(
        key_id=standing.key_id, provider_id=standing.provider_id, model=standing.model, outcome=outcome, score=score,
        parts={name: value for name, value in parts.items() if abs(value) < WORST}, place=standing.place,
        turn=at if at < ranking.equals else None, reason=reason, binding="" if loss is None else loss.where,
        limit="" if loss is None else loss.limit, retry_at=None if loss is None else back_at(loss),
    )  # fmt: skip


def _explanation(facts: Facts, verdicts: Sequence[CandidateVerdict], chosen: CandidateVerdict | None) -> str:
    compared = sum(verdict.score is not None for verdict in verdicts)
    if chosen is None:
        text = f"objective {facts.objective}: nothing was held"
    else:
        numbers = ", ".join(f"{name} {plainly(value)}" for name, value in chosen.parts.items())
        text = f"objective {facts.objective}: {chosen.key_id} ({chosen.model} at {chosen.provider_id})"
        text += f", the best of {compared} candidates that had room" if compared > 1 else ", the only candidate"
        text += f" [{numbers}]" if numbers else ""
    others = [f"{verdict.key_id}: {verdict.reason}" for verdict in verdicts if verdict is not chosen]
    if facts.policies:
        others.insert(0, f"under {_named(facts.policies)}")
    if facts.standby:
        others.insert(1, "the store was away: held in the share that this worker has of what is set aside for that")
    if facts.slab:
        others.insert(1, f"held in slab {facts.slab.hex()}, which this worker had for many calls")
    if facts.yielded:
        others.insert(1, f"soft {_named(facts.yielded)} passed over, for nothing else was left")
    for policy_id, refused in facts.shadowed:
        others.append(f"shadow policy {policy_id} would have {'refused it' if refused else 'sent it elsewhere'}")
    return "; ".join([text, *others])


def _named(policies: Sequence[str]) -> str:
    return f"polic{'y' if len(policies) == 1 else 'ies'} {', '.join(policies)}"


def _utc(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)
