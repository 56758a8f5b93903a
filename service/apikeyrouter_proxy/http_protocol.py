"""HTTP/1.1 as the worker speaks it: uvicorn's protocol over httptools, with a short way for what is common.

Under it an application may take a body that has arrived without waiting for it, and send a complete answer in one
write (`Exchanging`, in the scope's extensions). Any other ASGI server lacks the extension, and nothing else changes.
"""

import asyncio
import urllib.parse
from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from apikeyrouter.infrastructure.surface.answers import head_lines

__all__ = ["EXTENSION", "Exchanging", "ServiceProtocol", "exchanging"]

EXTENSION = "apikeyrouter.exchange"
JOINED_BYTES_MAX = 64 * 1024
"""Up to this size a body is copied behind its head; a larger one is written beside it."""
_CHUNKED = (b"transfer-encoding", b"chunked")
_LOOKED_AT = frozenset((b"expect", b"host", b"transfer-encoding"))
"""Headers that say how the message is to be read."""
_OF_UPGRADES = (b"connection", b"upgrade", b"http2-settings")
URLS_MAX = 1024
_default: tuple[list[tuple[bytes, bytes]], bytes] = [], b""
_urls: dict[bytes, tuple[str, bytes, bytes]] = {}
"""Request targets → path, raw path and query; emptied when full."""


class Exchanging(Protocol):
    """One request and its answer, without messages."""

    def body_now(self) -> bytes | None:
        """The whole body, if all of it has arrived; to be asked once, before anything is received."""
        ...

    def send_now(self, status: int, head: bytes, body: bytes) -> bool:
        """Send a complete answer. `head`: its headers as lines, which say its length. False: not possible now; nothing
        was sent."""
        ...

    def begin_now(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Begin an answer of unknown length: its head leaves with the first piece. False: not possible now."""
        ...

    def write_now(self, piece: bytes) -> bool:
        """Send a piece, which is not empty, of an answer that was begun by `begin_now`; its end is a message as ever.

        False: the client takes them more slowly; wait until `drained` before the next. One that has gone takes all.
        """
        ...

    async def drained(self) -> None:
        """Wait until the client has taken most of what was sent."""
        ...


def exchanging(scope: MutableMapping[str, Any]) -> Exchanging | None:
    """The short way of a request, where its server has one.

    It is taken out of the scope, which it refers to: a circle for each request would keep the garbage collector busy.
    """
    extensions = scope.get("extensions")
    return None if extensions is None else extensions.pop(EXTENSION, None)


class _Cycle(RequestResponseCycle):
    """One request and its answer."""

    _head = b""
    """A head that waits for its first piece."""

    def body_now(self) -> bytes | None:
        """As `Exchanging` says."""
        if self.more_body or self.disconnected:
            return None
        self.message_event.clear()
        body, self.body = bytes(self.body), bytearray()
        return body

    def send_now(self, status: int, head: bytes, body: bytes) -> bool:
        """As `Exchanging` says."""
        head = self._begun(status, head)
        if not head:
            return False
        self.response_complete = True
        if len(body) <= JOINED_BYTES_MAX:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))
        self.message_event.set()
        self.on_response()
        return True

    def begin_now(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """As `Exchanging` says."""
        self._head = self._begun(status, head_lines((*headers, _CHUNKED)))
        self.chunked_encoding = True if self._head else None
        return bool(self._head)

    def write_now(self, piece: bytes) -> bool:
        """As `Exchanging` says."""
        if self.disconnected:
            return True
        self.transport.write(b"%b%x\r\n%b\r\n" % (self._head, len(piece), piece))
        self._head = b""
        return not self.flow.write_paused

    async def send(self, message: Any) -> None:
        """A message, after a head that no piece has followed yet."""
        if self._head:
            head, self._head = self._head, b""
            self.transport.write(head)
        await super().send(message)

    async def drained(self) -> None:
        """As `Exchanging` says."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()

    def _begun(self, status: int, head: bytes) -> bytes:
        """The head of an answer that begins with it; empty where it has to be left to messages."""
        if self.response_started or self.disconnected or self.flow.write_paused or not self.keep_alive:
            return b""
        self.response_started = True
        self.waiting_for_100_continue = False
        return b"%b%b%b\r\n" % (STATUS_LINE[status], _by_default(self.default_headers), head)


class _UntilClosed(RequestResponseCycle):
    """A request of HTTP/1.0, which knows no chunks: where an answer does not tell its length, it ends with the
    connection."""

    _unending = False

    async def send(self, message: Any) -> None:
        """A message."""
        if message["type"] == "http.response.start":
            self._unending = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            self.chunked_encoding = False if self._unending else None
        elif self._unending:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class _Nowhere(list[tuple[bytes, bytes]]):
    """Takes headers, and keeps none."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Forget it."""


_TRAILERS = _Nowhere()
"""Where headers behind a body go: they have no end that anybody counts, and say nothing that may be believed."""


class _Answered:
    """In place of a request that is not begun."""

    response_complete = True


_ANSWERED = _Answered()


class ServiceProtocol(HttpToolsProtocol):
    """uvicorn's protocol with `_Cycle` for requests, and one timer per connection instead of one per request."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._idle_since = 0.0
        self._before_upgrade: Any = None

    def data_received(self, data: bytes) -> None:
        """Some bytes of requests."""
        self._idle_since = 0.0  # the connection is not idle; its timer stays
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._go_on_as_before(data[exc.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("this is no HTTP/1.1 request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, of the head or behind the body."""
        name = name.lower()
        if name in _LOOKED_AT:
            self._look_at(name, value)
        self.headers.append((name, value))

    def _look_at(self, name: bytes, value: bytes) -> None:
        """Refuse what somebody in front of us may have read otherwise (RFC 9112, 3.2 and 6.1): two hosts, a transfer
        coding that is not `chunked` alone. What is raised becomes the parser's error."""
        if name == b"expect":
            self.expect_100_continue = self.expect_100_continue or value.lower() == b"100-continue"
            return
        if self.headers is _TRAILERS:
            return
        for known, _ in self.headers:
            if known == name:
                raise ValueError("it is given twice")
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise ValueError("an unknown transfer coding")

    def send_400_response(self, msg: str) -> None:
        """Say that this cannot be read, where no answer is under way that it would end up in, and close."""
        cycle = self.cycle
        if self.transport.is_closing():
            return
        if cycle is not None and not cycle.response_complete and cycle.response_started:
            self.transport.close()
            return
        body = msgspec.json.encode(
            {"error": {"message": msg, "type": "invalid_request_error", "param": None, "code": "malformed_http"}}
        )
        self.transport.write(
            b"%bcontent-type: application/json\r\nx-content-type-options: nosniff\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (STATUS_LINE[400], len(body), body)
        )
        self.transport.close()

    def _go_on_as_before(self, rest: bytes) -> None:
        """A client would change to another protocol (HTTP/2, most often): it is answered in this one (RFC 9110, 7.8).

        The parser takes what follows for the other protocol, so that the request is told to a new one.
        """
        self.cycle = self._before_upgrade
        lines = [b"%b %b HTTP/1.1\r\n" % (self.parser.get_method(), self.url)]
        lines += [b"%b: %b\r\n" % header for header in self.scope["headers"] if header[0] not in _OF_UPGRADES]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join((*lines, b"\r\n", rest)))

    def on_headers_complete(self) -> None:
        """A request begins. The unusual ones (upgrades, other versions, a server at its limit) are left to uvicorn."""
        parser, scope = self.parser, self.scope
        if (
            self.limit_concurrency is not None
            or self.root_path
            or parser.get_http_version() != "1.1"
            or parser.should_upgrade()
            or not parser.should_keep_alive()
        ):
            self._begin_unusual()
            return
        self.headers = _TRAILERS
        scope["method"] = parser.get_method().decode("ascii")
        scope["path"], scope["raw_path"], scope["query_string"] = _urls.get(self.url) or _parsed(self.url)
        before = self.cycle
        cycle = self.cycle = _Cycle(
            scope=scope, transport=self.transport, flow=self.flow, logger=self.logger,
            access_logger=self.access_logger, access_log=self.access_log,
            default_headers=self.server_state.default_headers, message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue, keep_alive=True, on_response=self.on_response_complete,
        )  # fmt: skip
        scope["extensions"] = {EXTENSION: cast("dict[object, object]", cycle)}
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _begin_unusual(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._before_upgrade, self.cycle = self.cycle, cast("RequestResponseCycle", _ANSWERED)
            return
        super().on_headers_complete()
        self.headers = _TRAILERS
        if self.parser.get_http_version() == "1.0":
            self.cycle.__class__ = _UntilClosed

    def on_response_complete(self) -> None:
        """The next pipelined request, or a connection that is idle from now on."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for too long; look again at one that has been used since."""
        self.timeout_keep_alive_task = None
        if not self._idle_since or self.transport.is_closing():
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._look_again(left)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection."""
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _look_again(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


def _by_default(headers: list[tuple[bytes, bytes]]) -> bytes:
    """What the server puts into every answer, as lines. It makes a new list once a second, for the time is in it."""
    global _default
    if _default[0] is not headers:
        _default = headers, head_lines(headers)
    return _default[1]


def _parsed(url: bytes) -> tuple[str, bytes, bytes]:
    """A request target taken apart, as uvicorn does it. Errors: httptools' for what is none."""
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    if "%" in path:
        path = urllib.parse.unquote(path)
    if len(_urls) >= URLS_MAX:
        _urls.clear()
    found = _urls[url] = (path, parsed.path, parsed.query or b"")
    return found
