"""Health and metrics."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from apikeyrouter._version import __version__
from apikeyrouter_proxy.access import CurrentRuntime
from apikeyrouter_proxy.edge import error_answer
from apikeyrouter_proxy.prometheus import CONTENT_TYPE

__all__ = ["operations"]

operations = APIRouter(tags=["operations"])


@operations.head("/health", include_in_schema=False)
@operations.get("/health")
async def health(runtime: CurrentRuntime) -> dict[str, str | int]:
    """How the service is, and what it has to route to. Always 200: what acts on it should ask `/health/ready`."""
    return {
        "status": "healthy" if await runtime.is_healthy() and not runtime.leaving else "degraded",
        "version": __version__,
        "keys_registered": len(runtime.router.catalogue.keys),
        "providers_registered": len(runtime.router.catalogue.providers),
    }


@operations.head("/health/live", include_in_schema=False)
@operations.get("/health/live")
async def live() -> dict[str, str]:
    """The process turns its event loop; nothing else is asked."""
    return {"status": "live"}


@operations.head("/health/ready", include_in_schema=False)
@operations.get("/health/ready", responses={503: {"description": "Stopping, or the store is away"}})
async def ready(runtime: CurrentRuntime) -> JSONResponse:
    """Whether requests should be sent here: 503 while stopping, or while the store is away."""
    if runtime.leaving:
        return JSONResponse({"status": "draining"}, status_code=503)
    if not await runtime.is_healthy():
        if runtime.router.ledger.gate.away and runtime.router.standby.stands:
            return JSONResponse({"status": "store_unavailable_bounded"})
        return JSONResponse({"status": "store_unavailable"}, status_code=503)
    return JSONResponse({"status": "ready"})


@operations.get(
    "/metrics", response_class=PlainTextResponse, responses={404: {"description": "METRICS_ENABLED is false"}}
)
async def metrics(runtime: CurrentRuntime) -> Response:
    """Prometheus' text format, right for all workers of this host, whichever answers."""
    if not runtime.settings.metrics_enabled:
        return error_answer(404, "metrics_disabled", "metrics are off; METRICS_ENABLED=true turns them on")
    return Response(await runtime.metrics_text(), media_type=CONTENT_TYPE)
