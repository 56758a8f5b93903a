"""Who asks: whose admin key this is, and what it may do."""

from typing import Any

from fastapi import APIRouter

from apikeyrouter._version import __version__
from apikeyrouter_proxy.management.desk import ReadDesk

__all__ = ["routes"]

routes = APIRouter()


@routes.get("/whoami")
async def whoami(desk: ReadDesk) -> dict[str, Any]:
    """The name and role of the admin key that asks, and the version of the service that answers."""
    return {"name": desk.operator.name, "role": desk.operator.role.name.lower(), "version": __version__}
