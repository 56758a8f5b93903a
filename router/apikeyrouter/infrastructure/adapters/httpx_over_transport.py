"""An httpx transport over one of ours: what guards the connections of ours guards those of an httpx client, too."""

from collections.abc import AsyncIterator

import httpx

from apikeyrouter.domain.interfaces.wire import UpstreamRequest
from apikeyrouter.infrastructure.adapters.transport import (
    ConnectFailed,
    Response,
    Timeouts,
    Transport,
    TransportError,
    UpstreamTimeout,
)

__all__ = ["HttpxOverTransport"]

_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})
"""Headers that the transport below writes itself, or that say how it is to write."""
_READ_BELOW = frozenset({"content-encoding", "transfer-encoding", "content-length"})
"""Headers of an answer that speak of bytes which the transport below has read already."""


class HttpxOverTransport(httpx.AsyncBaseTransport):
    """Sends an httpx client's requests through `transport`, which its owner closes."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange. Raises httpx's errors."""
        limits = request.extensions.get("timeout", {})
        timeouts = Timeouts(
            connect=limits.get("connect"), first_byte=limits.get("read"), first_token=None, idle=limits.get("read"),
            total=None,
        )  # fmt: skip
        headers = tuple((name, value) for name, value in request.headers.items() if name not in _OURS)
        sent = UpstreamRequest(method=request.method, url=str(request.url), headers=headers, body=await request.aread())
        try:
            response = await self._transport.send(sent, timeouts=timeouts)
        except TransportError as exc:
            raise _as_httpx(exc, request) from exc
        told = [(name, value) for name, value in response.headers.items() if name not in _READ_BELOW]
        return httpx.Response(response.status, headers=told, stream=_Body(response, request), request=request)


class _Body(httpx.AsyncByteStream):
    """A body as it arrives."""

    def __init__(self, response: Response, request: httpx.Request) -> None:
        self._response, self._request = response, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._response.chunks():
                yield piece
        except TransportError as exc:
            raise _as_httpx(exc, self._request) from exc

    async def aclose(self) -> None:
        """Give up the rest."""
        await self._response.close()


def _as_httpx(error: TransportError, request: httpx.Request) -> httpx.TransportError:
    """The same trouble in httpx's words."""
    kind: type[httpx.TransportError]
    if isinstance(error, UpstreamTimeout):
        kind = httpx.ReadTimeout if error.sent else httpx.ConnectTimeout
    else:
        kind = httpx.ConnectError if isinstance(error, ConnectFailed) else httpx.ReadError
    return kind(str(error), request=request)
