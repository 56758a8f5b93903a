"""The configuration as a whole: the file read again."""

from typing import Any

from fastapi import APIRouter

from apikeyrouter_proxy.management.desk import OperateDesk

__all__ = ["routes"]

routes = APIRouter()


@routes.post("/config/reload")
async def reload(desk: OperateDesk) -> dict[str, Any]:
    """Read the configuration file again: all of it is taken over, or nothing and the complaints say why.

    The other workers that have the file do so within a second.
    """
    compiled = await desk.runtime.reload(desk.author)
    return {
        "keys": len(compiled.keys), "clients": len(compiled.clients), "budgets": len(compiled.budgets),
        "warnings": list(compiled.warnings),
    }  # fmt: skip
