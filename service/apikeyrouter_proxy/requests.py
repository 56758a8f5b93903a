"""A client's body over HTTP, within bounds: of size, of time, of headers."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from apikeyrouter.infrastructure.surface.problems import RequestRefused, refuse
from apikeyrouter.infrastructure.surface.requests import Headers
from apikeyrouter_proxy.http_protocol import Exchanging

__all__ = ["ClientGone", "read_body"]

Receive = Callable[[], Awaitable[Any]]

HEADERS_MAX = 100
BODY_IDLE_SECONDS_MAX = 30.0
"""How long the next piece of a body may take."""
DISCARD_SECONDS_MAX = 10.0
DISCARDED_BYTES_MAX = 64 * 2**20


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(receive: Receive, headers: Headers, bytes_max: int, exchange: Exchanging | None = None) -> bytes:
    """The whole body. Raises RequestRefused (408, 413, 415, 431) and ClientGone."""
    if len(headers) > HEADERS_MAX:
        raise refuse(431, "invalid_request_error", "headers_too_large", f"more than {HEADERS_MAX} headers")
    declared = headers.get(b"content-length")
    if declared is not None and (not declared.isdigit() or len(declared) > 15 or int(declared) > bytes_max):
        raise await _too_large(receive, bytes_max, more=b"expect" not in headers)  # who asks first has sent nothing
    coding = headers.get(b"content-encoding")
    if coding is not None and coding.strip().lower() not in (b"", b"identity"):
        raise refuse(
            415,
            "invalid_request_error",
            "unsupported_encoding",
            f"send the body uncompressed, not {coding[:20].decode('latin-1')!r}",
        )
    if exchange is not None and declared is not None and (body := exchange.body_now()) is not None:
        return body
    try:
        async with asyncio.timeout(BODY_IDLE_SECONDS_MAX) as patience:
            return await _read_parts(receive, patience, bytes_max)
    except TimeoutError:
        message = f"nothing of the body came for {BODY_IDLE_SECONDS_MAX:g} s"
        raise refuse(408, "invalid_request_error", "request_timeout", message, retry=True) from None


async def _read_parts(receive: Receive, patience: asyncio.Timeout, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        more = message.get("more_body", False)
        if size > bytes_max:
            raise await _too_large(receive, bytes_max, more=more)
        if not more:
            return part if len(parts) == 1 else b"".join(parts)
        patience.reschedule(asyncio.get_running_loop().time() + BODY_IDLE_SECONDS_MAX)


async def _too_large(receive: Receive, bytes_max: int, *, more: bool) -> RequestRefused:
    """The error, after reading what is left: a connection that is closed on unread bytes is reset, and its client
    may never see why."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS_MAX):
            while more and size <= DISCARDED_BYTES_MAX:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
    return refuse(413, "invalid_request_error", "request_too_large", f"the body is larger than {bytes_max} bytes")
