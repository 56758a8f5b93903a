"""One pipelined connection: what is asked within one turn of the event loop leaves in one write."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import hiredis

from apikeyrouter.domain.models.system_error import LedgerUnavailableError

__all__ = ["PipelinedConnection", "packed"]

PENDING_MAX = 10_000
SILENCE_SECONDS_MAX = 1.0
"""A server that owes an answer for so long is given up: it is stopped, or the way to it is cut."""
packed = cast("Callable[[tuple[str | bytes | int, ...]], bytes]", hiredis.pack_command)
"""One command as the protocol has it. (The package's own stub takes a tuple of one word only.)"""


class PipelinedConnection(asyncio.Protocol):
    """One connection: writes what was asked in a turn of the loop at once, hands replies out in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop, self.timeout_s = loop, timeout_s
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._waiting: deque[asyncio.Future[object]] = deque()
        self._due: deque[float] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._retired = False
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The event loop connected it."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is no subclass of it

    def data_received(self, data: bytes) -> None:
        """Hand out the replies in it, in the order in which their commands were sent."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not Ellipsis:
                future = self._waiting.popleft()
                self._due.popleft()
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as exc:
            self._fail(f"the server's answer is not Redis protocol: {exc}")
        if self._retired and not self._waiting:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """What waits is told that nobody knows whether it ran."""
        self._fail(f"connection lost: {exc or 'closed by the server'}")

    def _fail(self, why: str) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        self._due.clear()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(LedgerUnavailableError(f"Redis: {why}"))

    def send(self, command: bytes) -> asyncio.Future[object]:
        """Put a command behind those that were sent; its reply, or LedgerUnavailableError."""
        future: asyncio.Future[object] = self._loop.create_future()
        if self.closed or len(self._waiting) >= PENDING_MAX:
            why = "connection lost" if self.closed else "too many calls wait"
            future.set_exception(LedgerUnavailableError(f"Redis: {why}"))
            return future
        self._waiting.append(future)
        self._outgoing.append(command)
        if len(self._outgoing) == 1:
            self._loop.call_soon(self._flush)
        return future

    def answer_within(self, timeout_s: float) -> None:
        """From now on a call may take so long. Called while nothing waits."""
        self.timeout_s = timeout_s
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        """End the waiting for what is overdue; its reply, if it still comes, is thrown away in its turn."""
        self._timer = None
        now = self._loop.time()
        if self._due and now - self._due[0] >= SILENCE_SECONDS_MAX:
            self._fail(f"no answer for {SILENCE_SECONDS_MAX:g} s")
            return
        for future, due in zip(self._waiting, self._due, strict=False):  # the last ones may not be written yet
            if due > now:
                self._timer = self._loop.call_at(due, self._expire)
                return
            if not future.done():
                future.set_exception(LedgerUnavailableError("Redis did not answer within the deadline"))

    def _flush(self) -> None:
        """Write what was asked in this turn. The deadline begins here: a long turn is not the server's fault."""
        if self._transport is not None and not self.closed:
            due = self._loop.time() + self.timeout_s
            self._due.extend([due] * len(self._outgoing))
            if self._timer is None:
                self._timer = self._loop.call_at(due, self._expire)
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def retire(self) -> None:
        """Close as soon as everything that was sent is answered."""
        self._retired = True
        if not self._waiting:
            self.close()

    def close(self) -> None:
        """Close now; what waits ends with LedgerUnavailableError."""
        self._fail("closed")
