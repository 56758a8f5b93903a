"""How much a slab may hold, until when it may be used, and what of a bucket is kept so that it stays exact. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import ceil

from apikeyrouter.domain.models.accounting import LaneConfig, LaneState, Limit, LimitKind, Metric, ScopeState

__all__ = ["USE_SECONDS", "free_calls", "is_ready", "takes_slabs", "with_slack"]

USE_SECONDS = 2.0
"""So long after its reserve was sent a slab is used at most."""
END_SHARE = 0.05
"""Where less than this share of a limit is free, every request is decided by the ledger."""
_METRICS = {metric: place for place, metric in enumerate(Metric)}


def with_slack(limit: Limit) -> Limit:
    """The limit as the ledger admits it where slabs may be used.

    What is charged to a bucket drains from then on, and a provider counts it up to USE_SECONDS later: so much less may
    come at once. The rate stays. Windows need nothing: a slab ends with them.
    """
    if not limit.slabs or limit.kind is not LimitKind.BUCKET:
        return limit
    full = limit.amount if limit.burst is None else limit.burst
    drained = limit.amount * USE_SECONDS * 1e6 / limit.period_us
    return replace(limit, burst=full - ceil(drained / (1 - limit.headroom)))


def takes_slabs(lanes: Iterable[LaneConfig]) -> bool:
    """Whether every limit of these lanes says `slabs: auto`, and there is one."""
    limits = [limit for lane in lanes for limit in lane.limits]
    return bool(limits) and all(limit.slabs for limit in limits)


def is_ready(state: LaneState, capacities: Sequence[int], now_us: int) -> bool:
    """Whether slabs of this lane may be held now: it serves, and has the limits that it was given and no others.

    `capacities`: what the ledger was told to admit of each limit at once.
    """
    return (
        state.breaker == "closed"
        and state.blocked_until_us <= now_us
        and len(state.limits) == len(capacities)
        and all(limit.capacity == capacity for limit, capacity in zip(state.limits, capacities, strict=True))
        and not any(limit.learned for limit in state.limits)
    )


def free_calls(
    lanes: Iterable[LaneState], scopes: Iterable[ScopeState], means: Sequence[float], *, holders: int
) -> int:
    """Of how many calls a slab may be: a half of what is free, divided by those who may hold one. 0 near a limit.

    `means`: what a call takes by metric, in the order of `Metric` (requests, tokens, input tokens, output tokens,
    nano-dollars, slots), then the bound of its cost in nano-dollars.
    """
    least = float(2**31)
    for lane in lanes:
        for limit in lane.limits:
            mean = means[_METRICS[limit.metric]]
            least = min(least, _calls(limit.capacity, limit.capacity - limit.used, mean))
    for scope in scopes:
        if scope.hard:
            least = min(
                least, _calls(scope.limit, scope.limit - scope.settled - scope.held - scope.suspense, means[-1])
            )
    return int(least / (2 * max(1, holders)))


def _calls(limit: int, free: int, mean: float) -> float:
    if free <= limit * END_SHARE:
        return 0.0
    return free / mean if mean > 0 else float(2**31)
