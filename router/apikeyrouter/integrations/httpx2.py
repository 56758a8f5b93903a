"""A transport for httpx2: SDKs that speak HTTP through it are served by a router in this process, unmodified.

client = httpx2.AsyncClient(transport=RouterTransport(router))
"""

from collections.abc import AsyncIterator

import httpx2

from apikeyrouter.integrations.in_process import AnswerStream, InProcess, TooSlow, headers_of, timeout_of

__all__ = ["RouterTransport"]


class RouterTransport(InProcess, httpx2.AsyncBaseTransport):
    """An async transport of httpx2 over a router. See `InProcess` for its arguments.

    Base URL and API key of the SDK do not matter. Timeouts and cancellation act as over a network; retries are the
    SDK's own, by the hints of the error answers. Closing it leaves the router open.
    """

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Serve one request. Errors: httpx2.ReadTimeout after the client's own read timeout."""
        url, body = request.url, await request.aread()
        seconds = timeout_of(request.extensions)
        try:
            answer = await self.answer(
                request.method, url.path, url.query, headers_of(request.headers.raw), body, read_seconds=seconds
            )
        except TooSlow as exc:
            raise httpx2.ReadTimeout("the answer did not begin in time", request=request) from exc
        if answer.chunks is None:
            return httpx2.Response(answer.status, headers=answer.headers, content=answer.body, request=request)
        stream = _Stream(answer.chunks, request)
        return httpx2.Response(answer.status, headers=answer.headers, stream=stream, request=request)


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, chunks: AnswerStream, request: httpx2.Request) -> None:
        self._chunks, self._request = chunks, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._chunks:
                yield piece
        except TooSlow as exc:
            raise httpx2.ReadTimeout("the stream paused for too long", request=self._request) from exc

    async def aclose(self) -> None:
        await self._chunks.aclose()
