"""The reference: a bare pass-through. uvicorn + aiohttp, JSON parsed both ways, no accounting (`design.md` §8).

`UPSTREAM_URL` names the provider's base URL. Parsing is by msgspec, the fastest there is, so that the comparison does
not flatter us.
"""

import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from apikeyrouter_proxy import worker

__all__ = ["app", "main"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_parse = msgspec.json.Decoder().decode
_HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-reference-key"}


class _PassThrough:
    """One ASGI application with one client session."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url}/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        body = await _read(receive)
        request = _parse(body)
        assert self._session is not None
        async with self._session.post(self._url, data=body, headers=_HEADERS) as response:
            if request.get("stream"):
                await _pass_stream(response, send)
                return
            answer = await response.read()
        _parse(answer)
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": response.status, "headers": head})
        await send({"type": "http.response.body", "body": answer})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _pass_stream(response: aiohttp.ClientResponse, send: Send) -> None:
    head = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": response.status, "headers": head})
    async for chunk in response.content.iter_any():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


app = _PassThrough(os.environ.get("UPSTREAM_URL", "http://127.0.0.1:1/v1"))
"""What the worker imports."""


def main(arguments: list[str]) -> int:
    """Serve it: our worker's uvicorn (uvloop, no access log) with uvicorn's own HTTP protocol."""
    return worker.main(["--app", "benchmarks.reference:app", *arguments], http=HttpToolsProtocol)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
