"""Limits as they are metered now: what of each is used, by whom it was stated, and when it is free again."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter

from apikeyrouter.domain.models.accounting import LaneState, LimitState, Metric
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.lanes import unused_limits
from apikeyrouter_proxy.management.desk import Desk, Page, ReadDesk, page_of

__all__ = ["routes"]

NANOUSD = 1_000_000_000
_KINDS = {"k": "key", "g": "quota_group", "p": "provider", "c": "client"}

routes = APIRouter()


@routes.get("/limits")
async def list_limits(desk: ReadDesk, page: Page, kind: str | None = None, everything: bool = False) -> dict[str, Any]:
    """Every lane that has limits, or is cooling, or whose breaker is not closed; with `everything` the others too.

    `kind`: those of a key, quota_group, provider or client.
    """
    catalogue = desk.router.catalogue
    ids = [*catalogue.lane_ids(), *(lane for terms in catalogue.clients.values() for lane in terms.lanes)]
    wanted = [id_ for id_ in dict.fromkeys(ids) if kind in (None, _KINDS.get(id_[0]))]
    found = [_shown(lane, desk) for lane in await desk.router.ledger.lanes(wanted)]
    told = {one["id"] for one in found}
    found += [_unused(id_, desk) for id_ in wanted if id_ not in told]
    return page_of("limits", (one for one in found if everything or _tells(one)), page)


@routes.get("/limits/{lane_id:path}")
async def get_limit(desk: ReadDesk, lane_id: str) -> dict[str, Any]:
    """One lane, e.g. `g:org-a:*` or `c:app-1`."""
    known = desk.router.lane_config(lane_id)
    if lane_id in {*desk.router.catalogue.lane_ids()} or known.limits:
        lanes = await desk.router.ledger.lanes([lane_id])
        return _shown(lanes[0], desk) if lanes else _unused(lane_id, desk)
    raise Refused(404, "not_found", f"no lane {lane_id[:256]!r}")


def _tells(shown: dict[str, Any]) -> bool:
    return bool(shown["limits"] or shown["blocked_until"] or shown["breaker"] != "closed")


def _shown(lane: LaneState, desk: Desk) -> dict[str, Any]:
    now_us = desk.router.ledger.stamp.now_us
    return {
        **_named(lane.id), "in_flight": lane.in_flight, "breaker": lane.breaker,
        "blocked_until": _time(lane.blocked_until_us) if lane.blocked_until_us > now_us else None,
        "requests_total": lane.requests_total, "failures_total": lane.failures_total,
        "limits": [_limit(limit) for limit in lane.limits],
    }  # fmt: skip


def _unused(lane_id: str, desk: Desk) -> dict[str, Any]:
    """A lane that nobody was held in yet."""
    limits = unused_limits(desk.router.lane_config(lane_id))
    return {
        **_named(lane_id), "in_flight": 0, "breaker": "closed", "blocked_until": None, "requests_total": 0,
        "failures_total": 0, "limits": [_limit(limit) for limit in limits],
    }  # fmt: skip


def _named(lane_id: str) -> dict[str, Any]:
    kind, _, rest = lane_id.partition(":")
    name, _, pool = rest.partition(":")
    return {"id": lane_id, "kind": _KINDS.get(kind, kind), "name": name, "models": pool or None}


def _limit(limit: LimitState) -> dict[str, Any]:
    """Spend is in dollars, everything else is counted."""
    remaining = max(0, limit.capacity - limit.used)
    amounts: dict[str, float] = {"capacity": limit.capacity, "used": limit.used, "remaining": remaining}
    if limit.metric is Metric.SPEND:
        amounts = {name: amount / NANOUSD for name, amount in amounts.items()}
    return {
        "name": limit.name, "counts": limit.metric.value, "kind": limit.kind.value, **amounts,
        "full_again_at": _time(limit.reset_at_us) if limit.reset_at_us else None, "learned": limit.learned,
    }  # fmt: skip


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat()
