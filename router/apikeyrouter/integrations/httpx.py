"""Transports for httpx: SDKs that speak HTTP through them are served by a router in this process, unmodified.

client = httpx.AsyncClient(transport=RouterTransport(router))
client = httpx.Client(transport=BlockingRouterTransport(router))   # in threads, or without async at all
"""

from typing import Any, ClassVar

import httpx

from apikeyrouter.integrations.transports import AsyncServing, BlockingServing, Pieces, PiecesInTurn

__all__ = ["BlockingRouterTransport", "RouterTransport"]


class _Stream(Pieces, httpx.AsyncByteStream):
    package: ClassVar[Any] = httpx


class _BlockingStream(PiecesInTurn, httpx.SyncByteStream):
    package: ClassVar[Any] = httpx


class RouterTransport(AsyncServing, httpx.AsyncBaseTransport):
    """An async transport of httpx over a router. See `InProcess` for its arguments.

    Base URL and API key of the SDK do not matter. Timeouts and cancellation act as over a network; retries are the
    SDK's own, by the hints of the error answers. Closing it leaves the router open.
    """

    package: ClassVar[Any] = httpx
    stream: ClassVar[Any] = _Stream


class BlockingRouterTransport(BlockingServing, httpx.BaseTransport):
    """The same for clients that are not async, from any number of threads: calls run on the router's event loop."""

    package: ClassVar[Any] = httpx
    stream: ClassVar[Any] = _BlockingStream
