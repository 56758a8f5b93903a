"""Providers: which there are, where they are, and how they fare."""

from typing import Any

from fastapi import APIRouter

from apikeyrouter.domain.components.catalogue import provider_lane
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.management.desk import Desk, Page, ReadDesk, page_of

__all__ = ["routes"]

routes = APIRouter()


@routes.get("/providers")
async def list_providers(desk: ReadDesk, page: Page) -> dict[str, Any]:
    """The registered providers, with how many keys each has and what its breaker says."""
    paged = page_of("providers", ({"id": id_} for id_ in desk.router.catalogue.providers), page)
    return {**paged, "providers": await _shown(desk, [one["id"] for one in paged["providers"]])}


@routes.get("/providers/{provider_id}")
async def get_provider(desk: ReadDesk, provider_id: str) -> dict[str, Any]:
    """One provider."""
    if provider_id not in desk.router.catalogue.providers:
        raise Refused(404, "not_found", f"no provider {provider_id[:256]!r}")
    return (await _shown(desk, [provider_id]))[0]


async def _shown(desk: Desk, ids: list[str]) -> list[dict[str, Any]]:
    catalogue, config = desk.router.catalogue, desk.runtime.config
    lanes = {lane.id: lane for lane in await desk.router.ledger.lanes([provider_lane(id_) for id_ in ids])}
    found = []
    for id_ in ids:
        lane, record = lanes.get(provider_lane(id_)), config.providers.get(id_)
        keys = [key for key in catalogue.keys.values() if key.provider_id == id_]
        found.append(
            {
                "id": id_, "adapter": None if record is None else record.adapter,
                "base_url": None if record is None else record.base_url, "keys": len(keys),
                "breaker": "closed" if lane is None else lane.breaker,
                "in_flight": 0 if lane is None else lane.in_flight,
                "requests_total": 0 if lane is None else lane.requests_total,
                "failures_total": 0 if lane is None else lane.failures_total,
            }
        )  # fmt: skip
    return found
