"""What the ledger would most likely say to a candidate, from what its lanes and budgets show. Pure; holds nothing.

The ledger alone decides, and decides at its own time: between this look and a reserve, others come and go.
"""

from collections.abc import Callable, Iterable, Mapping

from apikeyrouter.domain.models.accounting import (
    AMOUNT_MAX,
    UNPRICED,
    Candidate,
    Charge,
    LaneState,
    LimitState,
    Loss,
    Metric,
    Reason,
    RetryKind,
    ScopeConfig,
    ScopeState,
    UnpricedRule,
)

SECOND_US = 1_000_000
TURN_US_MIN = 10_000
"""What is in flight is expected to make room in its share of the usual latency, but no sooner."""


def foreseen(
    index: int,
    candidate: Candidate,
    shared: Iterable[str],
    *,
    lanes: Mapping[str, LaneState],
    budget: Callable[[str], ScopeConfig | None],
    scopes: Mapping[str, ScopeState],
    now_us: int,
) -> Loss | None:
    """Why a candidate would be denied now, None if it would not: of all that stands against it, what ends last.

    `now_us`: the ledger's time. Lanes and scopes in which nothing has happened yet may be missing; such a lane denies
    nothing.
    """
    found = [_lane_loss(index, lanes[name], candidate.charge, now_us) for name in candidate.lanes if name in lanes]
    for name in (*shared, *candidate.scopes):
        config = budget(name)
        if config is not None:
            found.append(_scope_loss(index, config, scopes.get(name), candidate.charge, now_us))
    return max((loss for loss in found if loss is not None), key=lambda loss: loss.retry_at_us, default=None)


def _lane_loss(index: int, lane: LaneState, charge: Charge, now_us: int) -> Loss | None:
    found: list[tuple[Reason, str, int, RetryKind]] = []
    if lane.blocked_until_us > now_us:
        found.append((Reason.COOLDOWN, "", lane.blocked_until_us, RetryKind.EXACT))
    if lane.breaker == "open" and lane.breaker_until_us > now_us:
        found.append((Reason.BREAKER_OPEN, "", lane.breaker_until_us, RetryKind.EXACT))
    for limit in lane.limits:
        needed = max(0, _needed(limit.metric, charge))
        if needed > limit.capacity:
            found.append((Reason.NEVER_FITS, limit.name, AMOUNT_MAX, RetryKind.NEVER))
        elif limit.used + needed > limit.capacity:
            found.append((Reason.LIMIT, limit.name, _free_at(lane, limit, now_us), RetryKind.ESTIMATED))
    if not found:
        return None
    reason, name, until_us, kind = max(found, key=lambda each: each[2])
    return Loss(index=index, reason=reason, where=lane.id, limit=name, retry_at_us=until_us, retry_kind=kind)


def _needed(metric: Metric, charge: Charge) -> int:
    metered = charge.metered_tokens
    return {
        Metric.REQUESTS: 1, Metric.CONCURRENCY: 1, Metric.INPUT_TOKENS: charge.input_tokens,
        Metric.OUTPUT_TOKENS: charge.output_tokens, Metric.SPEND: charge.expected_nanousd,
        Metric.TOKENS: charge.input_tokens + charge.output_tokens if metered is None else metered,
    }[metric]  # fmt: skip


def _free_at(lane: LaneState, limit: LimitState, now_us: int) -> int:
    if limit.metric is Metric.CONCURRENCY:
        return now_us + max(TURN_US_MIN, lane.latency_us // limit.capacity)
    return limit.reset_at_us if limit.reset_at_us > now_us else now_us + SECOND_US


def _scope_loss(index: int, config: ScopeConfig, state: ScopeState | None, charge: Charge, now_us: int) -> Loss | None:
    if not config.hard:
        return None

    def loss(reason: Reason, until_us: int, kind: RetryKind) -> Loss:
        return Loss(index=index, reason=reason, where=config.id, limit="", retry_at_us=until_us, retry_kind=kind)

    amount = charge.bound_nanousd
    if amount == UNPRICED:
        if config.unpriced is UnpricedRule.DENY:
            return loss(Reason.UNPRICED, AMOUNT_MAX, RetryKind.NEVER)
        amount = config.flat_nanousd if config.unpriced is UnpricedRule.FLAT else 0
    if amount > config.limit_nanousd:
        return loss(Reason.NEVER_FITS, AMOUNT_MAX, RetryKind.NEVER)
    if state is None:
        return None
    over = now_us >= state.resets_at_us
    settled = 0 if over else state.settled
    if settled + state.held + state.suspense + amount <= config.limit_nanousd:
        return None
    if settled + amount <= config.limit_nanousd:  # what is held may still come back
        return loss(Reason.BUDGET, now_us + SECOND_US, RetryKind.ESTIMATED)
    never = state.resets_at_us >= AMOUNT_MAX
    return loss(Reason.BUDGET, state.resets_at_us, RetryKind.NEVER if never else RetryKind.EXACT)
