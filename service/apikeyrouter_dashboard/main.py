"""The operator's page as an application, and the server that runs it."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request

from apikeyrouter_dashboard.gate import Gate, session_of
from apikeyrouter_dashboard.management import open_http
from apikeyrouter_dashboard.pages import PAGES
from apikeyrouter_dashboard.pages.frame import Page
from apikeyrouter_dashboard.sessions import Sessions

__all__ = ["DashboardOptions", "make_app", "serve"]

THEME = "akr_theme"
RECONNECT_SECONDS = 20.0
COMPRESSED_FROM_BYTES, COMPRESSION = 1000, 4
"""A fourth of the time that the highest level takes, for a twentieth more bytes."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardOptions:
    """What the page needs. `url`: of the service; `admin_key`: signs in whoever has the printed link, once.

    `secure`: the page is reached over TLS, so that its cookie goes over nothing else.
    """

    url: str
    host: str = "127.0.0.1"
    port: int = 8100
    admin_key: str | None = field(default=None, repr=False)
    secure: bool = False
    watch_stdin: bool = False
    """Stop when standard input closes: a child does not outlive whoever started it."""


def make_app(sessions: Sessions, *, secure: bool = False) -> Any:
    """The ASGI application. One a process: NiceGUI keeps its pages in the process."""
    inner = FastAPI(openapi_url=None)
    for page in PAGES:
        _route(page)
    ui.run_with(
        inner, title="ApiKeyRouter", dark=None, language="en-US", tailwind=False, reconnect_timeout=RECONNECT_SECONDS,
        gzip_middleware_factory=None, show_welcome_message=False, binding_refresh_interval=None, favicon="🗝️",
    )  # fmt: skip
    return GZipMiddleware(
        Gate(inner, sessions, secure=secure), minimum_size=COMPRESSED_FROM_BYTES, compresslevel=COMPRESSION
    )


def _route(page: type[Page]) -> None:
    async def opened(request: Request) -> None:
        theme = {"dark": True, "light": False}.get(request.cookies.get(THEME, ""))
        await page(session_of(request), request.query_params).open(PAGES, theme)

    ui.page(page.path, title=f"{page.title} · ApiKeyRouter", response_timeout=10)(opened)


def serve(options: DashboardOptions, *, tell: Tell) -> int:
    """Serve until stopped; the exit code. `tell` hears where the page is."""
    return asyncio.run(_serve(options, tell))


async def _serve(options: DashboardOptions, tell: Tell) -> int:
    import uvicorn

    try:
        socket.create_server((options.host, options.port), family=_family(options.host)).close()
    except OSError as exc:
        why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror
        sys.stderr.write(f"error: cannot listen on {options.host}:{options.port} ({why}); choose another port\n")
        return 2
    async with open_http(options.url) as http:
        sessions = Sessions(http)
        config = uvicorn.Config(
            make_app(sessions, secure=options.secure), host=options.host, port=options.port, log_level="warning",
            access_log=False, ws_per_message_deflate=True, timeout_graceful_shutdown=3,
        )  # fmt: skip
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not (server.started or task.done()):
            await asyncio.sleep(0.05)
        if server.started:
            port = server.servers[0].sockets[0].getsockname()[1]
            host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host  # noqa: S104 (any address)
            link = f"http://{host}:{port}"
            tell(f"{link}/sign-in?ticket={sessions.ticket(options.admin_key)}" if options.admin_key else link)
        watching = asyncio.create_task(_stop_with_stdin(server)) if options.watch_stdin else None
        await task
        if watching is not None:
            watching.cancel()
    return 0 if server.started else 2


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


async def _stop_with_stdin(server: Any) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass
    server.should_exit = True
