"""What a connection may cost: bytes of headers, time to send a request and to take an answer; and how many there are.

Under `apikeyrouter serve`. Other ASGI servers have limits of their own, or a load balancer in front of them.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, ClassVar

from apikeyrouter_proxy.http_protocol import ServiceProtocol
from apikeyrouter_proxy.options import ProxyOptions

__all__ = ["LOOK_SECONDS", "GuardedProtocol", "watch_connections"]

LOOK_SECONDS = 1.0
"""How often connections are looked at: a limit of time may be passed by so much."""
_ANSWERS = {
    "too_many_connections": (503, "Service Unavailable", "too many connections"),
    "headers_too_large": (431, "Request Header Fields Too Large", "the headers are too large"),
    "header_timeout": (408, "Request Timeout", "the headers took too long"),
    "body_timeout": (408, "Request Timeout", "the body took too long"),
}
"""Reason → status, phrase and message."""
LINGER_SECONDS = 1.0
"""How long a stopping server waits for the first request of a connection: it may be on its way."""


class GuardedProtocol(ServiceProtocol):
    """A connection within limits. Costs a request about a microsecond of CPU, and no timer of its own."""

    limits: ClassVar[ProxyOptions] = ProxyOptions()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading_since = 0.0
        self._stalled_since = 0.0
        self._head_bytes = 0
        self._cycle_before: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came; its first request is expected from now on."""
        super().connection_made(transport)
        self._reading_since = self.loop.time()
        if len(self.connections) > self.limits.connections_max:
            self._refuse("too_many_connections")

    def data_received(self, data: bytes) -> None:
        """Some bytes. Headers are counted until they are complete."""
        if len(data) > self.limits.header_bytes_max and self._is_all_head(data):
            self._refuse("headers_too_large")
            return
        super().data_received(data)
        if self._reading_since and self.cycle is self._cycle_before:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.header_bytes_max:
                self._refuse("headers_too_large")

    def _is_all_head(self, data: bytes) -> bool:
        """Whether the head of a request takes more of these bytes than it may."""
        in_head = not self._reading_since or self.cycle is self._cycle_before
        return in_head and not 0 <= data.find(b"\r\n\r\n") <= self.limits.header_bytes_max

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._cycle_before, self._head_bytes, self._reading_since = self.cycle, 0, self.loop.time()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        super().on_message_complete()
        self._reading_since = 0.0

    def pause_writing(self) -> None:
        """The client takes its answer more slowly than it comes."""
        super().pause_writing()
        self._stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        """The client has taken what waited for it."""
        super().resume_writing()
        self._stalled_since = 0.0

    def shutdown(self) -> None:
        """The server stops. A connection that was just made is no idle one: its client would find it reset."""
        cycle: object = self.cycle
        if cycle is None:
            self.loop.call_later(LINGER_SECONDS, self._shut_down)
        else:
            self._shut_down()

    def _shut_down(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def look(self, now: float) -> None:
        """End what has taken too long by `now` (a reading of the loop's clock)."""
        limits, since = self.limits, self._reading_since
        if self._stalled_since and now - self._stalled_since > limits.write_seconds:
            self._note("write_timeout")
            self.transport.abort()
        elif since and self.cycle is self._cycle_before:
            if now - since > limits.header_seconds:
                self._refuse("header_timeout")
        elif since and now - since > limits.body_seconds:
            self._refuse("body_timeout")

    def _refuse(self, reason: str) -> None:
        """Say why, where no answer has begun, and close."""
        if self.transport.is_closing():
            return
        self._note(reason)
        self._reading_since = 0.0
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            status, phrase, message = _ANSWERS[reason]
            body = (
                b'{"error": {"message": "%b", "type": "invalid_request_error", "param": null, "code": "%b"}}'
                % (message.encode(), reason.encode())
            )  # fmt: skip
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nx-content-type-options: nosniff\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (status, phrase.encode(), len(body), body)
            )
        self.transport.close()

    def _note(self, reason: str) -> None:
        note = getattr(self.app, "connection_refused", None)
        if note is not None:
            note(reason)


async def watch_connections(connections: Iterable[object]) -> None:
    """Look at all connections of a server, again and again; ends by being cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = loop.time()
        for connection in list(connections):
            if isinstance(connection, GuardedProtocol):
                connection.look(now)
