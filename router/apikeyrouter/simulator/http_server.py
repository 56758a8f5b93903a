"""A small, fast HTTP/1.1 server: one asyncio protocol over httptools, keep-alive, chunked answers.

It does what a simulated provider needs and no more: one request at a time per connection (pipelined ones wait),
bodies by Content-Length or chunked, and, unlike a polite server, ways to stall, to cut and to lie about a body.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import httptools

__all__ = ["BODY_BYTES_MAX", "Connection", "Handler", "Request", "serve"]

BODY_BYTES_MAX = 32 * 1024 * 1024
HEADER_BYTES_MAX = 64 * 1024
HEADER_COUNT_MAX = 128
URL_BYTES_MAX = 8 * 1024
PIPELINED_REQUESTS_MAX = 32
LISTEN_BACKLOG = 4096

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


class Request:
    """One request as it came: upper-case method, path and query apart, lower-case header names, whole body."""

    __slots__ = ("body", "headers", "keep_alive", "method", "path", "query")

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = ""
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keep_alive = True

    def header(self, name: bytes) -> str | None:
        """The value of header ``name`` (lower case), or None."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


Handler = Callable[[Request, "Connection"], None]
"""Called once per request; must not block, and must sooner or later end the answer on the connection, or abort it."""


class Connection(asyncio.Protocol):
    """One client connection; also the handle through which the handler answers.

    ``on_disconnect`` is called at most once per request, when the client goes away before its answer has ended.
    """

    def __init__(self, handler: Handler, open_connections: set[Connection]) -> None:
        self._handler = handler
        self._open = open_connections
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._incoming = Request()
        self._pieces: list[bytes] = []
        self._body_bytes = 0
        self._header_bytes = 0
        self._waiting: deque[Request] = deque()
        self._outgoing: list[bytes] = []
        self._current: Request | None = None
        self._writable: asyncio.Event | None = None
        self.peer_host = ""
        self.on_disconnect: Callable[[], None] | None = None

    # --- asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport and who is at the other end."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        peer = transport.get_extra_info("peername")
        self.peer_host = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handler of an unfinished answer that nobody listens any more."""
        self._transport = None
        self._open.discard(self)
        self._waiting.clear()
        if self._writable is not None:
            self._writable.set()
        hook, self.on_disconnect = self.on_disconnect, None
        if hook is not None:
            hook()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; answer 400 and close on what is not HTTP."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refuse(HTTPStatus.BAD_REQUEST)
        except httptools.HttpParserError:
            self.refuse(HTTPStatus.BAD_REQUEST)

    def pause_writing(self) -> None:
        """The client reads too slowly: :meth:`drained` waits from now on."""
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._writable is not None:
            self._writable.set()
        self._writable = None

    # --- httptools callbacks
    def on_message_begin(self) -> None:
        """A new request begins."""
        self._url = b""
        self._incoming = Request()
        self._pieces = []
        self._body_bytes = 0
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url
        if len(self._url) > URL_BYTES_MAX:
            raise httptools.HttpParserInvalidURLError("request target too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        headers = self._incoming.headers
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADER_BYTES_MAX or len(headers) >= HEADER_COUNT_MAX:
            raise httptools.HttpParserCallbackError("headers too large")
        headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head is complete."""
        request = self._incoming
        request.method = self._parser.get_method().decode("ascii")
        path, _, query = self._url.partition(b"?")
        request.path, request.query = path.decode("latin-1"), query.decode("latin-1")
        request.keep_alive = self._parser.should_keep_alive()
        if request.headers.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        if self._body_bytes <= BODY_BYTES_MAX:
            self._pieces.append(body)
        else:
            self._pieces.clear()

    def on_message_complete(self) -> None:
        """A whole request: handle it now, or after the ones before it."""
        request = self._incoming
        if self._body_bytes > BODY_BYTES_MAX:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        request.body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if self._current is not None or self._waiting:
            self._enqueue(request)
        else:
            self._begin(request)

    # --- what the handler uses
    @property
    def is_open(self) -> bool:
        """Whether anybody still listens."""
        return self._transport is not None and not self._transport.is_closing()

    def respond(self, status: int, headers: str, body: bytes) -> None:
        """Answer in one write and end. ``headers`` are whole lines, each with its CRLF; Content-Length is added."""
        if self._transport is not None:
            head = f"{_status_line(status)}{headers}content-length: {len(body)}\r\n\r\n"
            self._transport.write(head.encode("latin-1", "replace") + body)
        self.finish()

    def begin_stream(self, status: int, headers: str) -> None:
        """Send the head of a chunked answer."""
        if self._transport is not None:
            head = f"{_status_line(status)}{headers}transfer-encoding: chunked\r\n\r\n"
            self._queue(head.encode("latin-1", "replace"))

    def begin_sized(self, status: int, headers: str, size: int) -> None:
        """Send the head of an answer that promises ``size`` bytes, which :meth:`write_raw` may or may not keep."""
        if self._transport is not None:
            head = f"{_status_line(status)}{headers}content-length: {size}\r\n\r\n"
            self._transport.write(head.encode("latin-1", "replace"))

    def write_chunk(self, data: bytes) -> None:
        """Send one chunk of a chunked answer; nothing for empty data."""
        if self._transport is not None and data:
            self._queue(b"%x\r\n%b\r\n" % (len(data), data))

    def write_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._transport is not None:
            self._transport.write(data)

    def end_stream(self) -> None:
        """End a chunked answer cleanly."""
        if self._transport is not None:
            self._outgoing.append(b"0\r\n\r\n")
        self._flush()
        self.finish()

    async def drained(self) -> None:
        """Wait until the client has read enough, or has gone."""
        if self._writable is not None:
            await self._writable.wait()

    def refuse(self, status: int) -> None:
        """Answer with an empty ``status`` and close."""
        self._flush()
        if self._transport is not None:
            self._transport.write(f"{_status_line(status)}content-length: 0\r\nconnection: close\r\n\r\n".encode())
            self._transport.close()

    def close(self) -> None:
        """Close after what was written has been sent: a body that is not complete stays so."""
        self.on_disconnect = None
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Reset the socket at once: the client sees a broken connection, not an end."""
        self.on_disconnect = None
        self._flush()
        if self._transport is not None:
            raw = self._transport.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def finish(self) -> None:
        """The answer has ended: take the next request of this connection, or close it if the client wants that."""
        request, self._current = self._current, None
        self.on_disconnect = None
        if self._transport is None or request is None:
            return
        if not request.keep_alive:
            self._transport.close()
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._begin_next)

    # --- inside
    def _queue(self, data: bytes) -> None:
        """Send ``data`` with whatever else this turn of the loop produces: one system call for many small events."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(data)

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _begin(self, request: Request) -> None:
        self._current = request
        self._handler(request, self)

    def _begin_next(self) -> None:
        if self._waiting and self._current is None:
            self._begin(self._waiting.popleft())

    def _enqueue(self, request: Request) -> None:
        if len(self._waiting) >= PIPELINED_REQUESTS_MAX:
            self.refuse(HTTPStatus.TOO_MANY_REQUESTS)
            return
        self._waiting.append(request)


def _status_line(status: int) -> str:
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Status {status}\r\n"


async def serve(handler: Handler, *, host: str, port: int) -> tuple[asyncio.Server, set[Connection]]:
    """Listen on ``host``:``port`` (0 picks a free one); returns the server and the set of its open connections."""
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(handler, connections), host, port, backlog=LISTEN_BACKLOG)
    return server, connections
