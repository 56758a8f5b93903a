"""An ASGI app for tests of the supervisor: says who it is, takes its time when asked, and notes its end in a file."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """`/` answers the process id, `/environ` what the worker was given, `/slow` answers after a while."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    if scope["path"] == "/slow":
        _note("slow-began")
        await asyncio.sleep(1.0)
    if scope["path"] == "/environ":
        body = json.dumps({name: value for name, value in os.environ.items() if "APIKEYROUTER" in name}).encode()
    else:
        body = str(os.getpid()).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    await receive()
    if _is_refused():
        await send({"type": "lifespan.startup.failed", "message": "it was told to"})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    _note(f"flushed-{os.getpid()}")
    await send({"type": "lifespan.shutdown.complete"})


def _is_refused() -> bool:
    return Path("refuse-to-start").exists()


def _note(name: str) -> None:
    Path(name).touch()
