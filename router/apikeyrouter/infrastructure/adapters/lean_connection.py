"""One connection to a provider, and the answer that comes over it.

What may go wrong is decided here once: `_lost` says which error a broken connection is, `_overdue` which a silent one.
"""

import asyncio
import select
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from apikeyrouter.infrastructure.adapters.lean_response import LeanResponse
from apikeyrouter.infrastructure.adapters.response_headers import ResponseHeaders
from apikeyrouter.infrastructure.adapters.transport import (
    ResponseLost,
    SendFailed,
    Timeouts,
    TransportError,
    UpstreamTimeout,
)

__all__ = ["Home", "LeanConnection"]

HEAD_BYTES_MAX = 64 * 1024
"""Most bytes of headers, and most bytes that come without a byte of body among them."""
JOINED_BYTES_MAX = 64 * 1024
"""Up to this size a body is copied behind its head; a larger one is written beside it."""
IDLE_SECONDS = 30.0
"""How long a connection is kept that nobody uses."""
AGE_SECONDS = 300.0
"""About how long a connection is used: who changes the address of a name is followed, however busy we are."""
LINGER_SECONDS = 0.5
"""How long the end of a body may take that nobody waits for."""

_NEVER = float("inf")
_CLOSING_BITS = getattr(select, "POLLIN", 0) | getattr(select, "POLLRDHUP", 0)


class Home(Protocol):
    """Where a connection lives."""

    def take_back(self, connection: "LeanConnection") -> None:
        """The exchange is over, and the connection can carry another."""
        ...

    def forget(self, connection: "LeanConnection") -> None:
        """The connection is closed."""
        ...


class LeanConnection(asyncio.Protocol):
    """Carries one exchange at a time.

    Its one timer is set for the earliest limit and looks again when it fires: a limit that moves on costs nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, home: Home, origin: object) -> None:
        self.loop, self.origin = loop, origin
        self.closed = False
        self._old_at = loop.time() + AGE_SECONDS
        self._is_old = False
        self._home = home
        self._headers: dict[bytes, bytes] = {}
        self.on_header = self._headers.setdefault  # called for each header; of one name, the first counts
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._plain = True
        self._poll: select.poll | None = None
        self._response: LeanResponse | None = None
        self._idle_seconds: float | None = None
        self._deadline = _NEVER
        self._due = _NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER
        self._paused = False
        self._forget_answer()

    def _forget_answer(self) -> None:
        self._quiet_bytes = 0
        self._keep = False
        self._until_closed = False
        self._surplus = False

    # --- what the transport asks ---------------------------------------------------------------------------------

    def is_usable(self) -> bool:
        """Whether the connection is open and silent; what the loop has not noticed yet, the kernel is asked."""
        if self.closed or self._transport.is_closing():
            return False
        return self._poll is None or not self._poll.poll(0)

    def begin(self, head: bytes, body: bytes, timeouts: Timeouts, deadline: float | None) -> LeanResponse | None:
        """Write a request. None when the connection turned out broken before it accepted a single byte."""
        if self.closed:
            return None
        transport = self._transport
        response = self._response = LeanResponse(self)
        if len(body) <= JOINED_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        if self._plain and transport.is_closing():  # over TLS, some bytes may have left before
            self._response = None
            self.end(None)
            return None
        self._idle_seconds = timeouts.idle
        self._deadline = _NEVER if deadline is None else deadline
        self._limit(timeouts.first_byte)
        return response

    def resume(self) -> None:
        """The buffer has room again."""
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()
            self._limit(self._idle_seconds)

    def linger(self) -> None:
        """Nobody waits for the rest of the answer: the connection is used again if that comes soon."""
        self._idle_seconds = LINGER_SECONDS
        self._deadline = min(self._deadline, self.loop.time() + LINGER_SECONDS)
        if self._paused:
            self.resume()
        else:
            self._limit(LINGER_SECONDS)

    def end(self, error: TransportError | None) -> None:
        """Close at once; an answer under way ends with the error. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._home.forget(self)
        self._transport.abort()
        response, self._response = self._response, None
        if response is not None:
            response.end(error)

    # --- what the event loop tells -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands, TLS included."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass of it
        self._plain = transport.get_extra_info("sslcontext") is None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), _CLOSING_BITS)

    def data_received(self, data: bytes) -> None:
        """Part of an answer, or of something that is none."""
        response = self._response
        if response is None:
            self.end(None)  # nobody asked
            return
        self._quiet_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._surplus = True
        if response.complete:
            self._finish(response)
        elif self._surplus or self._quiet_bytes > HEAD_BYTES_MAX:
            self.end(ResponseLost("the provider's answer is not HTTP, or its headers are too long"))
        elif response.status:
            self._go_on(response)

    def eof_received(self) -> None:
        """The provider has said all it will ever say."""
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection; where an answer has no length, of the answer."""
        if self.closed:
            return
        response = self._response
        if self._until_closed and exc is None and response is not None:
            response.complete = True
            self.end(None)
        else:
            self.end(None if response is None else self._lost(exc))

    # --- what the parser tells -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins, or an interim one."""
        if self._response is None or self._response.complete:
            self._surplus = True
            raise ValueError("an answer that nobody asked for")

    def on_headers_complete(self) -> None:
        """Status and headers are there; those of interim answers are passed over."""
        response, status = self._response, self._parser.get_status_code()
        if response is None or status < 200:
            return
        if self._quiet_bytes > HEAD_BYTES_MAX and _size(self._headers) > HEAD_BYTES_MAX:
            raise ValueError("headers are too long")
        headers = ResponseHeaders(self._headers.copy())
        self._headers.clear()  # what still comes are trailers
        transfer = headers.get("transfer-encoding", "")
        if transfer and transfer.lower() != "chunked":
            raise ValueError("a transfer coding that we did not ask for")
        self._keep = self._parser.should_keep_alive()
        if not self._keep:
            self._until_closed = not transfer and "content-length" not in headers
        response.begin(status, headers)

    def on_body(self, data: bytes) -> None:
        """Some of the body, without its framing."""
        self._quiet_bytes = 0
        if self._response is not None:
            self._response.add(data)

    def on_message_complete(self) -> None:
        """The answer is complete, or an interim one is."""
        response = self._response
        if response is not None and response.status:
            response.complete = True
        self._headers.clear()  # trailers, or headers of an interim answer

    # --- the exchange --------------------------------------------------------------------------------------------

    def _go_on(self, response: LeanResponse) -> None:
        """Some of the body is there, or none yet."""
        response.wake()
        if self.closed:
            return
        if response.is_full() and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._limit(None if self._paused else self._idle_seconds)

    def _finish(self, response: LeanResponse) -> None:
        """The answer is complete; a connection with anything left on it, either way, is not used again."""
        if self._surplus or not self._keep or self._is_old or self._transport.get_write_buffer_size():
            self.end(None)
            return
        self.resume()
        self._response, self._deadline = None, _NEVER
        self._forget_answer()
        self._limit(IDLE_SECONDS)
        response.end(None)
        self._home.take_back(self)

    def _lost(self, exc: Exception | None) -> TransportError:
        """Which error a connection is that ended under way. The text names the kind only: addresses may be internal."""
        kind = "closed" if exc is None else type(exc).__name__
        if isinstance(exc, OSError) and self._response is not None and not self._response.status:
            return SendFailed(f"the connection broke while sending ({kind})")
        return ResponseLost(f"the connection broke before the answer was complete ({kind})")

    # --- time ----------------------------------------------------------------------------------------------------

    def _limit(self, seconds: float | None) -> None:
        """From now on this is how long may pass until something happens."""
        due = _NEVER if seconds is None else self.loop.time() + seconds
        self._due = due if due < self._deadline else self._deadline
        if self._due < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self.loop.call_at(self._due, self._look), self._due

    def _look(self) -> None:
        self._timer, self._timer_at = None, _NEVER
        now = self.loop.time()
        if now > self._old_at:  # looked at here, where it costs the requests nothing
            self._is_old = True
        if self._due > now:
            if self._due < _NEVER:
                self._set_timer()
            return
        self.end(self._overdue())

    def _overdue(self) -> TransportError | None:
        if self._response is None:
            return None
        if self._due >= self._deadline:
            return UpstreamTimeout("total", sent=True)
        return UpstreamTimeout("idle" if self._response.status else "first_byte", sent=True)


def _size(headers: dict[bytes, bytes]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.items())
