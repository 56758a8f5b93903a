"""The state of the whole deployment in a few numbers."""

from typing import Any

from fastapi import APIRouter

from apikeyrouter_proxy.management.desk import ReadDesk

__all__ = ["aliases", "routes"]

routes, aliases = APIRouter(), APIRouter()


@routes.get("/state")
@aliases.get("/state")
async def state(desk: ReadDesk) -> dict[str, Any]:
    """Keys, quotas and costs in a few numbers."""
    summary = await desk.runtime.unless_away(desk.router.get_state_summary())
    shown: dict[str, Any] = summary.model_dump(mode="json")
    return shown
