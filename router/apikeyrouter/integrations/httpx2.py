"""Transports for httpx2: SDKs that speak HTTP through them are served by a router in this process, unmodified.

client = httpx2.AsyncClient(transport=RouterTransport(router))
client = httpx2.Client(transport=BlockingRouterTransport(router))   # in threads, or without async at all
"""

from typing import Any, ClassVar

import httpx2

from apikeyrouter.integrations.transports import AsyncServing, BlockingServing, Pieces, PiecesInTurn

__all__ = ["BlockingRouterTransport", "RouterTransport"]


class _Stream(Pieces, httpx2.AsyncByteStream):
    package: ClassVar[Any] = httpx2


class _BlockingStream(PiecesInTurn, httpx2.SyncByteStream):
    package: ClassVar[Any] = httpx2


class RouterTransport(AsyncServing, httpx2.AsyncBaseTransport):
    """An async transport of httpx2 over a router. See `InProcess` for its arguments.

    Base URL and API key of the SDK do not matter. Timeouts and cancellation act as over a network; retries are the
    SDK's own, by the hints of the error answers. Closing it leaves the router open.
    """

    package: ClassVar[Any] = httpx2
    stream: ClassVar[Any] = _Stream


class BlockingRouterTransport(BlockingServing, httpx2.BaseTransport):
    """The same for clients that are not async, from any number of threads: calls run on the router's event loop."""

    package: ClassVar[Any] = httpx2
    stream: ClassVar[Any] = _BlockingStream
