"""The pool at a glance: every key as routing sees it, from what this worker knows.

The store is asked for one thing, the keys' last failures at other workers.
"""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from apikeyrouter.domain.components.key_tally import KeyFailure
from apikeyrouter.domain.components.outlook import KeyOutlook, outlooks
from apikeyrouter.domain.models.accounting import LimitState
from apikeyrouter_proxy.lanes import unused_limits
from apikeyrouter_proxy.management.desk import Page, ReadDesk, page_of
from apikeyrouter_proxy.management.limits import show_limit

__all__ = ["routes"]

TAG_LENGTH_MAX, TAGS_MAX = 64, 32
Only = Annotated[str | None, Query(max_length=256)]

routes = APIRouter()


@routes.get("/pool")
async def show_pool(desk: ReadDesk, page: Page, provider_id: Only = None, quota_group: Only = None) -> dict[str, Any]:
    """Every key as routing sees it now: what is left to it, which limit binds it, what keeps it out and until when."""
    catalogue, snapshot = desk.router.catalogue, desk.router.snapshot
    keys = [
        key
        for key in catalogue.keys.values()
        if provider_id in (None, key.provider_id) and quota_group in (None, key.quota_group)
    ]
    paged = page_of("keys", ({"id": key.id} for key in keys), page)
    wanted = [catalogue.keys[one["id"]] for one in paged["keys"]]

    def unused(lane_id: str) -> tuple[LimitState, ...]:
        return unused_limits(desk.router.lane_config(lane_id))

    found = outlooks(catalogue, snapshot, wanted, unused)
    as_of = _time(snapshot.now_us) if snapshot.now_us else None
    failures = await desk.runtime.fleet.failures.find([key.id for key in wanted])
    return {**paged, "keys": [_shown(one, failures.get(one.key.id)) for one in found], "as_of": as_of}


def _shown(found: KeyOutlook, failure: KeyFailure | None) -> dict[str, Any]:
    key, own = found.key, found.own
    tier, team = key.metadata.get("tier"), key.team
    return {
        "id": key.id, "provider_id": key.provider_id, "quota_group": key.quota_group,
        "tier": tier if isinstance(tier, str) else None, "tags": _tags(key.metadata.get("tags")), "team": team,
        "models": None if key.models is None else sorted(key.models), "state": key.state.value,
        "state_reason": key.state_reason,
        "state_until": None if key.state_until is None else key.state_until.isoformat(),
        "capacity_state": found.level.state.value, "headroom": found.headroom, "binding": _binding(found),
        "breaker": found.breaker, "out_lane": found.out_lane or None,
        "out_until": _time(found.out_until_us) if found.out_until_us else None, "lanes": list(found.lanes),
        "in_flight": own.in_flight if own else 0, "requests_total": own.requests_total if own else 0,
        "failures_total": own.failures_total if own else 0,
        "latency_ms": own.latency_us // 1000 if own and own.latency_us else None,
        "last_used_at": _time(own.last_used_us) if own and own.last_used_us else None,
        "last_error": None if failure is None else _error(failure),
    }  # fmt: skip


def _error(failure: KeyFailure) -> dict[str, Any]:
    return {
        "category": failure.category, "meaning": failure.meaning or None, "status": failure.status or None,
        "model": failure.model, "request_id": failure.request_id, "at": _time(failure.at_us),
    }  # fmt: skip


def _binding(found: KeyOutlook) -> dict[str, Any] | None:
    if found.binding is None:
        return None
    lane, limit = found.binding
    return {"lane": lane, **show_limit(limit)}


def _tags(told: object) -> list[str]:
    """Metadata is the operator's own: whatever is no list of short texts is no tags."""
    if not isinstance(told, list | tuple):
        return []
    return [tag for tag in told[:TAGS_MAX] if isinstance(tag, str) and len(tag) <= TAG_LENGTH_MAX]


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()
