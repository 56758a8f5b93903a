"""The ASGI application: `uvicorn apikeyrouter_proxy.main:app`, or gunicorn with the uvicorn worker.

Importing this connects to nothing; the lifespan (or, on servers without one, the first request) does.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from apikeyrouter._version import __version__
from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.surface.routes import PREFIXES, ROUTES, Route, find_route
from apikeyrouter_proxy.data_plane import Receive, Send
from apikeyrouter_proxy.edge import Edge, add_error_handlers, error_answer
from apikeyrouter_proxy.management import aliases, management
from apikeyrouter_proxy.operations import operations
from apikeyrouter_proxy.runtime import Runtime
from apikeyrouter_proxy.signals import signals_heard

__all__ = ["Service", "app", "create_app"]


class Service(FastAPI):
    """FastAPI for management and operations, with the data plane in front of all of its machinery."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(
            title="ApiKeyRouter",
            version=__version__,
            summary="One endpoint for all your LLM keys: never over a provider's limit, never over your budget.",
            lifespan=_lifespan,
            redirect_slashes=False,  # where to would be told from the caller's Host
        )
        self.runtime: Runtime | None = None
        self._environ = environ
        self._opening = asyncio.Lock()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "lifespan" and (complaint := await self._refusal_to_start()):
            await receive()
            await send({"type": "lifespan.startup.failed", "message": complaint})
            return
        if scope["type"] == "http":
            path: str = scope["path"]
            if root := scope.get("root_path"):
                path = path.removeprefix(root)
            runtime = self.runtime
            if runtime is None:
                runtime = await self.opened()
            if runtime.arrivals is not None:
                runtime.arrivals.note(scope)
            route = ROUTES.get(path)
            if route is None and path.startswith(PREFIXES):
                route = find_route(path, scope["query_string"], dict(scope["headers"]), scope["method"])
            if runtime.options.management_port and not _is_asked_at_its_port(scope, path, route, runtime):
                await _NOT_ON_THIS_PORT(scope, receive, send)
                return
            if route is not None:
                await runtime.serve(route, scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    async def _refusal_to_start(self) -> str:
        """Open everything; one line about what stands in the way, "" when nothing does."""
        try:
            await self.opened()
        except ApiKeyRouterError as exc:
            return in_one_line(exc)
        return ""

    async def opened(self) -> Runtime:
        """The runtime, opened now if it was not."""
        async with self._opening:
            if self.runtime is None:
                self.runtime = await Runtime.open(self._environ)
            return self.runtime

    def connection_refused(self, reason: str) -> None:
        """Count a connection that was ended before or beside a request, by its reason."""
        if self.runtime is not None:
            self.runtime.connection_refused(reason)

    async def closed(self) -> None:
        """Close the runtime, if there is one."""
        if self.runtime is not None:
            await self.runtime.close()
            self.runtime = None

    def openapi(self) -> dict[str, Any]:
        """The description of everything, the data plane included."""
        if not self.openapi_schema:
            from apikeyrouter_proxy.openapi import with_data_plane  # few workers are ever asked

            self.openapi_schema = with_data_plane(super().openapi())
        return self.openapi_schema


_NOT_ON_THIS_PORT = Edge(error_answer(404, "unknown_url", "no such path on this port"))


def create_app(environ: Mapping[str, str] | None = None) -> Service:
    """A new application, not started. `environ` None: the process's own environment and a `.env` file."""
    service = Service(environ)
    service.include_router(operations)
    service.include_router(management)
    service.include_router(aliases)
    add_error_handlers(service)
    service.add_middleware(Edge)
    return service


@asynccontextmanager
async def _lifespan(service: FastAPI) -> AsyncIterator[None]:
    assert isinstance(service, Service)
    runtime = await service.opened()
    try:
        with signals_heard(runtime):
            yield
    finally:
        await service.closed()


def _is_asked_at_its_port(scope: MutableMapping[str, Any], path: str, route: Route | None, runtime: Runtime) -> bool:
    """With a port of its own, management is served there alone, and the data plane is not; health is at both."""
    server = scope.get("server")
    at_management = server is not None and server[1] == runtime.options.management_port
    return path.startswith("/health") or at_management == (route is None)


def in_one_line(error: ApiKeyRouterError) -> str:
    """An error for a log: its complaints one after the other."""
    head, *complaints = str(error).split("\n  ")
    return " ".join([head, "; ".join(complaints)]) if complaints else head


app = create_app()
"""What servers import."""
