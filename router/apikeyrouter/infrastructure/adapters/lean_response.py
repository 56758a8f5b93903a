"""An answer as it arrives over a lean connection: what is buffered, who waits for it, how it ended."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

from apikeyrouter.infrastructure.adapters.content_coding import Decoder
from apikeyrouter.infrastructure.adapters.response_headers import ResponseHeaders
from apikeyrouter.infrastructure.adapters.transport import (
    BODY_BYTES_MAX,
    Pouring,
    ResponseLost,
    ResponseTooLong,
    TransportError,
)

__all__ = ["LeanResponse"]

BUFFER_BYTES_MAX = 256 * 1024
"""Beyond this much unread, nothing more is read from the provider."""
LEFT_BYTES_MAX = 4096
"""Most bytes that are thrown away to keep a connection."""


class Connection(Protocol):
    """What an answer needs of its connection."""

    loop: asyncio.AbstractEventLoop

    def resume(self) -> None:
        """The buffer has room again."""
        ...

    def linger(self) -> None:
        """Nobody waits for the rest."""
        ...

    def end(self, error: TransportError | None) -> None:
        """Close at once."""
        ...


class LeanResponse(Pouring):
    """`Response` over a lean connection. One task reads it; any may close it."""

    __slots__ = (
        "_buffered", "_coding", "_connection", "_declined", "_error", "_left", "_parts", "_take_now", "_waiter",
        "_whole_bytes", "complete", "headers", "status",
    )  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        """0 until the headers are there."""
        self.headers: Mapping[str, str]
        self.complete = False
        """Whether the connection has brought all of it."""
        self._connection: Connection | None = connection
        self._coding = ""
        self._parts: list[bytes] = []
        self._buffered = 0
        self._whole_bytes = -1
        """Bytes allowed by who reads the whole body; -1: nobody does."""
        self._error: TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._take_now: Callable[[bytes], bool] | None = None
        """Who takes what comes, the moment it comes."""
        self._declined = False
        self._left = False

    # --- for the caller ------------------------------------------------------------------------------------------

    async def read(self, max_bytes: int = BODY_BYTES_MAX) -> bytes:
        """The whole body. Raises TransportError; ResponseTooLong beyond `max_bytes`."""
        if self._coding:
            return await self._read_decoded(max_bytes)
        self._whole_bytes = max_bytes
        self._resume()
        while not self.complete and self._error is None and self._buffered <= max_bytes:
            await self._wait()
        if self._buffered > max_bytes:
            self._drop()
            raise _too_long(max_bytes)
        if self._error is not None:
            raise self._error
        return self._take()

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises TransportError. Where it is not encoded, it is `Pouring`, too."""
        return self._decoded() if self._coding else self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.chunks()

    async def __anext__(self) -> bytes:
        if data := await self._some():
            return data
        raise StopAsyncIteration

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """As `Pouring` says."""
        while data := self._take() or await self._poured(take):
            self._resume()
            if not take(data):
                return False
        return not self._declined

    def leave(self) -> None:
        """As `Pouring` says."""
        connection = self._connection
        if connection is not None:
            self._left, self._parts, self._buffered = True, [], 0
            connection.linger()

    async def close(self) -> None:
        """Give up the rest: the connection is dropped unless the body has come to its end. Idempotent."""
        self._drop()

    async def begun(self) -> "LeanResponse":
        """This answer, once status and headers are there. Raises TransportError."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self

    # --- for the connection --------------------------------------------------------------------------------------

    def begin(self, status: int, headers: ResponseHeaders) -> None:
        """Status and headers are there."""
        coding = headers.get("content-encoding", "").lower()
        self.status, self.headers, self._coding = status, headers, "" if coding == "identity" else coding

    def add(self, data: bytes) -> None:
        """Some of the body is there."""
        self._parts.append(data)
        self._buffered += len(data)

    def is_full(self) -> bool:
        """Whether the connection has to wait for the reader."""
        return self._buffered > BUFFER_BYTES_MAX and self._whole_bytes < 0

    def end(self, error: TransportError | None) -> None:
        """The connection has no more to bring."""
        self._connection = None
        if not self.complete:
            self._error = error or ResponseLost("the answer was given up")
        self._rouse()

    def wake(self) -> None:
        """Something has come; who reads the whole body need not know yet."""
        if self._take_now is not None:
            self._hand_on(self._take_now)
        elif self._left:
            if self._buffered > LEFT_BYTES_MAX:
                self._drop()
        elif self._buffered > self._whole_bytes:
            self._rouse()

    # --- inside --------------------------------------------------------------------------------------------------

    def _rouse(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        """Until there is news. Whoever is cancelled here takes the connection along."""
        assert self._connection is not None
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        except BaseException:
            self._drop()
            raise

    async def _poured(self, take: Callable[[bytes], bool]) -> bytes:
        """Let what comes be taken until the end of the body, whose last piece is returned, or until it is declined."""
        self._declined = False
        while not (self._parts or self.complete or self._declined):
            if self._error is not None:
                raise self._error
            self._take_now = take
            try:
                await self._wait()
            finally:
                self._take_now = None
        return self._take()

    def _hand_on(self, take: Callable[[bytes], bool]) -> None:
        data = self._take()
        if not data:
            return
        try:
            self._declined = not take(data)
        except Exception as exc:  # it is raised where the pouring is awaited
            self._take_now = None
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(exc)
            return
        if self._declined:
            self._take_now = None
            self._rouse()

    def _drop(self) -> None:
        connection = self._connection
        if connection is not None:
            self._parts, self._buffered = [], 0
            connection.end(None)

    def _resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def _take(self) -> bytes:
        parts, self._parts, self._buffered = self._parts, [], 0
        return b"".join(parts)

    async def _some(self) -> bytes:
        """What has come since; empty at the end of the body."""
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._wait()
        data = self._take()
        self._resume()
        return data

    async def _decoded(self) -> AsyncIterator[bytes]:
        try:
            decoder = Decoder(self._coding)
            while data := await self._some():
                for piece in decoder.decode(data):
                    yield piece
            decoder.finish()
        except TransportError:
            self._drop()
            raise

    async def _read_decoded(self, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for piece in self._decoded():
            size += len(piece)
            if size > max_bytes:
                self._drop()
                raise _too_long(max_bytes)
            parts.append(piece)
        return b"".join(parts)


def _too_long(max_bytes: int) -> ResponseTooLong:
    return ResponseTooLong(f"the answer exceeds {max_bytes} bytes")
