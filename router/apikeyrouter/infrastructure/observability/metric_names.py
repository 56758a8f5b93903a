"""Every metric of the service: its name, type and help. `docs/metrics.md` shows this table."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "OUTCOMES", "MetricName"]

OUTCOMES: dict[str, str] = {
    "ok": "An answer, to its end.",
    "disconnected": "The client left while its request came in or its answer went out.",
    "cancelled": "Ended before there was an answer: the client left, or the service stopped.",
    "invalid_request": "The request is wrong; nothing was held.",
    "not_allowed": "The caller may not do this: no token, a wrong one, a model or a place that is not its own.",
    "no_eligible_keys": "No key had room; `denied_by` in the access line says what stood in the way.",
    "policy_denied": "Policies leave no key that may serve the request; 403.",
    "budget_exceeded_error": "A hard budget had no room.",
    "rate_limit_error": "The provider's rate limit, on every key that was tried.",
    "quota_exceeded_error": "The provider's quota or credit is used up, on every key that was tried.",
    "authentication_error": "The provider refused every key that was tried.",
    "validation_error": "The provider found the request wrong.",
    "provider_error": "The provider failed, or its answer could not be read.",
    "timeout_error": "The provider, or the client's own deadline, ran out of time.",
    "network_error": "The provider could not be reached, or the connection broke.",
    "unknown_error": "The router gave the request up: the lease of its hold was lost.",
    "store_error": "The store did not answer, or its clock is in doubt; nothing was sent.",
    "accounting_error": "The accounting refused what the router asked of it, a defect of either; nothing was sent.",
    "internal_error": "A defect of the service; its log says more.",
}
"""What becomes of requests: the whole set. `docs/metrics.md` shows this table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricName:
    """One metric. `labels` are in the order in which they are shown."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


REQUESTS = MetricName(
    name="apikeyrouter_requests_total",
    kind="counter",
    help="Requests that ended, by what became of them (the outcomes below).",
    labels=("route", "provider", "model", "outcome"),
)
ATTEMPTS = MetricName(
    name="apikeyrouter_attempts_total",
    kind="counter",
    help="Attempts at providers; more than requests when requests failed over.",
    labels=("route", "provider", "model"),
)
DURATION = MetricName(
    name="apikeyrouter_request_duration_seconds",
    kind="histogram",
    help="From the request's arrival to the end of its answer.",
    labels=("route", "provider"),
)
OVERHEAD = MetricName(
    name="apikeyrouter_router_overhead_seconds",
    kind="histogram",
    help="Time spent here, not at the provider, the accounting's round trip included.",
    labels=("route",),
)
FIRST_TOKEN = MetricName(
    name="apikeyrouter_ttft_seconds",
    kind="histogram",
    help="From a streaming request's arrival to the first substantive event.",
    labels=("provider", "model"),
)
TOKENS = MetricName(
    name="apikeyrouter_tokens_total",
    kind="counter",
    help="Tokens used. direction: input, output, cached_input (part of input).",
    labels=("provider", "model", "direction"),
)
COST = MetricName(
    name="apikeyrouter_cost_nanousd_total",
    kind="counter",
    help="Known cost in nano-dollars; requests without a known price add nothing.",
    labels=("provider", "model"),
)
DENIALS = MetricName(
    name="apikeyrouter_denials_total",
    kind="counter",
    help="Requests answered with an error, by its code; refused_by_provider: with the provider's own words.",
    labels=("reason",),
)
IN_FLIGHT = MetricName(
    name="apikeyrouter_inflight", kind="gauge", help="Requests under way in the host's live workers."
)
WAITING = MetricName(
    name="apikeyrouter_waiting", kind="gauge", help="Requests that wait for room, part of those under way."
)
SETTLEMENTS = MetricName(
    name="apikeyrouter_settlements_total", kind="counter", help="Reservations ended in the accounting, confirmed."
)
UNSETTLED = MetricName(
    name="apikeyrouter_settlements_pending", kind="gauge", help="Ends that the accounting has not confirmed yet."
)
UNSETTLED_ON_DISK = MetricName(
    name="apikeyrouter_settlements_on_disk",
    kind="gauge",
    help="Those of them that are on disk: the store is away.",
)
UNSETTLED_SECONDS = MetricName(
    name="apikeyrouter_settlements_oldest_seconds",
    kind="gauge",
    help="How long the worker that answers has had ends that it could not deliver; 0: none.",
)
STORE_AWAY = MetricName(
    name="apikeyrouter_store_away_total", kind="counter", help="How often the store went away, as a worker saw it."
)
STANDBY = MetricName(
    name="apikeyrouter_standby_admitted_total",
    kind="counter",
    help="Requests admitted while the store was away, from what `on_store_loss: bounded` sets aside.",
)
STANDBY_SHARE = MetricName(
    name="apikeyrouter_standby_share_millionths",
    kind="gauge",
    help="What the host's workers hold of it; 0: nothing is bounded, or nothing is free.",
)
SLAB_ADMITTED = MetricName(
    name="apikeyrouter_slab_admitted_total",
    kind="counter",
    help="Requests admitted in process, from slabs that workers held.",
)
SLABS = MetricName(name="apikeyrouter_slabs", kind="gauge", help="Slabs that the host's workers hold.")
SLAB_CALLS = MetricName(
    name="apikeyrouter_slab_stranded_calls",
    kind="gauge",
    help="Of what the host's workers hold in slabs: calls that nobody has begun, and others cannot.",
)
SLAB_MONEY = MetricName(
    name="apikeyrouter_slab_stranded_nanousd",
    kind="gauge",
    help="Of what the host's workers hold in slabs: nano-dollars of budgets that no call has, and others cannot.",
)
KEY_STATE = MetricName(
    name="apikeyrouter_key_state",
    kind="gauge",
    help="1 for the state that a key is in.",
    labels=("key", "provider", "state"),
)
STORE_UP = MetricName(
    name="apikeyrouter_store_up", kind="gauge", help="1 while the store answers this host, 0 while it is away."
)
HELD = MetricName(
    name="apikeyrouter_held_nanousd", kind="gauge", help="Money held for requests under way, of the whole fleet."
)
SUSPENSE = MetricName(
    name="apikeyrouter_suspense_nanousd",
    kind="gauge",
    help="Money of requests whose end was never told, of the whole fleet.",
)
BUDGET_LIMIT = MetricName(
    name="apikeyrouter_budget_limit_nanousd", kind="gauge", help="A budget's limit.", labels=("budget",)
)
BUDGET_SPENT = MetricName(
    name="apikeyrouter_budget_spent_nanousd",
    kind="gauge",
    help="What is settled in a budget in its period, of the whole fleet.",
    labels=("budget",),
)
WORKERS = MetricName(
    name="apikeyrouter_workers", kind="gauge", help="Live worker processes of this service on the host."
)
LOG_LINES = MetricName(name="apikeyrouter_access_lines_total", kind="counter", help="Access lines written.")
LOG_LOST = MetricName(
    name="apikeyrouter_access_lines_lost_total",
    kind="counter",
    help="Access lines given up because their destination did not take them in time.",
)

METRICS: tuple[MetricName, ...] = (
    REQUESTS,
    ATTEMPTS,
    DURATION,
    OVERHEAD,
    FIRST_TOKEN,
    TOKENS,
    COST,
    DENIALS,
    IN_FLIGHT,
    WAITING,
    SETTLEMENTS,
    UNSETTLED,
    UNSETTLED_ON_DISK,
    UNSETTLED_SECONDS,
    STANDBY,
    STANDBY_SHARE,
    SLAB_ADMITTED,
    SLABS,
    SLAB_CALLS,
    SLAB_MONEY,
    KEY_STATE,
    BUDGET_LIMIT,
    BUDGET_SPENT,
    HELD,
    SUSPENSE,
    STORE_UP,
    STORE_AWAY,
    WORKERS,
    LOG_LINES,
    LOG_LOST,
)
