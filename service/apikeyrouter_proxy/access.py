"""What management and operations endpoints depend on: the running service, and an operator's key."""

import hmac
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import APIKeyHeader

from apikeyrouter_proxy.runtime import Runtime

if TYPE_CHECKING:
    from apikeyrouter_proxy.main import Service

__all__ = ["CurrentRuntime", "require_operator"]

_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="MANAGEMENT_API_KEY")


async def _runtime(request: Request) -> Runtime:
    service: Service = request.app
    return await service.opened()


CurrentRuntime = Annotated[Runtime, Depends(_runtime)]


async def require_operator(runtime: CurrentRuntime, given: Annotated[str | None, Security(_header)]) -> None:
    """Let an operator through. 404 when management is switched off, 403 when it has no key, 401 for a wrong one."""
    settings = runtime.settings
    if not settings.management_api_enabled:
        raise HTTPException(404, "the management API is off; MANAGEMENT_API_ENABLED=true turns it on")
    wanted = settings.management_api_key
    if not wanted:
        raise HTTPException(403, "the management API has no key; set MANAGEMENT_API_KEY and send it as X-API-Key")
    if given is None or not hmac.compare_digest(given.encode(), wanted.encode()):
        raise HTTPException(401, "X-API-Key is missing or wrong", headers={"www-authenticate": "X-API-Key"})
