"""What the transports for httpx and httpx2 share: both packages have the same classes, and nothing else in common."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

from apikeyrouter.integrations.in_process import Answer, AnswerStream, InProcess, TooSlow, headers_of, timeout_of

__all__ = ["AsyncServing", "BlockingServing", "Pieces", "PiecesInTurn"]


class AsyncServing(InProcess):
    """`handle_async_request` of either package. `package` is the module, `stream` its class for streamed answers."""

    package: ClassVar[Any]
    stream: ClassVar[Any]

    async def handle_async_request(self, request: Any) -> Any:
        """Serve one request. Errors: the package's ReadTimeout after the client's own read timeout."""
        asked = _asked(request, await request.aread())
        try:
            answer = await self.answer(**asked)
        except TooSlow as exc:
            raise _late(self.package, request) from exc
        stream = None if answer.chunks is None else self.stream(answer.chunks, request)
        return _response(self.package, request, answer, stream)


class BlockingServing(InProcess):
    """`handle_request`: the same for clients that are not async, from any number of threads."""

    package: ClassVar[Any]
    stream: ClassVar[Any]

    def handle_request(self, request: Any) -> Any:
        """Serve one request. Errors: the package's ReadTimeout; ConfigurationError on the router's own event loop."""
        asked = _asked(request, request.read())
        try:
            answer: Answer = self.router.sync.call(self.answer, **asked)
        except TooSlow as exc:
            raise _late(self.package, request) from exc
        pieces = None if answer.chunks is None else self.router.sync.iterate(aiter(answer.chunks))
        return _response(self.package, request, answer, None if pieces is None else self.stream(pieces, request))


class Pieces:
    """A streamed answer for async clients."""

    package: ClassVar[Any]

    def __init__(self, chunks: AnswerStream, request: Any) -> None:
        self._chunks, self._request = chunks, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._chunks:
                yield piece
        except TooSlow as exc:
            raise _late(self.package, self._request) from exc

    async def aclose(self) -> None:
        """Give up the rest."""
        await self._chunks.aclose()


class PiecesInTurn:
    """A streamed answer for clients that are not async."""

    package: ClassVar[Any]

    def __init__(self, pieces: Iterator[bytes], request: Any) -> None:
        self._pieces, self._request = pieces, request

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pieces
        except TooSlow as exc:
            raise _late(self.package, self._request) from exc

    def close(self) -> None:
        """Give up the rest."""
        closing = getattr(self._pieces, "close", None)
        if closing is not None:
            closing()


def _asked(request: Any, body: bytes) -> dict[str, Any]:
    return {
        "method": request.method, "path": request.url.path, "query": request.url.query,
        "headers": headers_of(request.headers.raw), "body": body, "read_seconds": timeout_of(request.extensions),
    }  # fmt: skip


def _response(package: Any, request: Any, answer: Answer, stream: Any) -> Any:
    content = {"content": answer.body} if stream is None else {"stream": stream}
    return package.Response(answer.status, headers=answer.headers, request=request, **content)


def _late(package: Any, request: Any) -> Exception:
    error: Exception = package.ReadTimeout("the answer, or its next piece, did not come in time", request=request)
    return error
