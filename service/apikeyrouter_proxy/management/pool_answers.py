"""What `/pool` answers: keys as routing sees them."""

from pydantic import AwareDatetime

from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.quota_state import CapacityState
from apikeyrouter_proxy.management.answers import Answer, Breaker, LimitShown, Paged

__all__ = ["PoolPage"]


class PoolBinding(LimitShown):
    """The limit of which the smallest share is left, and its lane."""

    lane: str


class LastError(Answer):
    """The last attempt with a key that failed, at any worker, told within two seconds: its category, its row of the
    taxonomy of failures, the provider's status (null: no answer came), and the request, which `/decisions` explains."""

    category: str
    meaning: str | None
    status: int | None
    model: str
    request_id: str
    at: AwareDatetime


class PoolKey(Answer):
    """A key as routing sees it. `headroom`: the share of the binding limit that is left, null: not known. `out_lane`:
    the lane that keeps it out, by cooling or an open breaker, until `out_until`. `lanes`: its own first, its provider's
    last. Counts are of its own lane."""

    id: str
    provider_id: str
    quota_group: str
    tier: str | None
    tags: list[str]
    team: str | None
    models: list[str] | None
    state: KeyState
    state_reason: str
    state_until: AwareDatetime | None
    capacity_state: CapacityState
    headroom: float | None
    binding: PoolBinding | None
    breaker: Breaker
    out_lane: str | None
    out_until: AwareDatetime | None
    lanes: list[str]
    in_flight: int
    requests_total: int
    failures_total: int
    latency_ms: int | None
    last_used_at: AwareDatetime | None
    last_error: LastError | None


class PoolPage(Paged):
    """Keys as routing sees them, by id. `as_of`: when the worker that answers last read the ledger."""

    keys: list[PoolKey]
    as_of: AwareDatetime | None
