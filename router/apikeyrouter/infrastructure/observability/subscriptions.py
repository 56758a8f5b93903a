"""Subscriptions: each has a queue and a thread of its own, so that a slow callback delays nobody but itself."""

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from queue import SimpleQueue
from typing import Any, cast

from apikeyrouter.infrastructure.observability.events import EventLog

__all__ = ["Subscription"]

WAITING_MAX = 10_000
"""What may wait for one callback; what comes after is dropped, and counted."""
CALLBACK_SECONDS_MAX = 60.0
"""How long an async callback is waited for before the next one is called."""
POLL_SECONDS = 0.005
_END = object()
_log = EventLog("apikeyrouter")


class Subscription:
    """One callback and what waits for it. Plain callbacks run in the thread, async ones on the router's event loop.

    Awaiting it gives itself: it is in force at once. `dropped` counts what was given up because the callback is slow.
    """

    def __init__(
        self,
        callback: Callable[[Any], object],
        loop: Callable[[], asyncio.AbstractEventLoop | None],
        *,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._callback, self._loop, self._ended = callback, loop, ended
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._done = 0
        self._taken = 0
        self.dropped = 0
        self.cancelled = False

    def put(self, item: Any) -> None:
        """Queue something for the callback. Never waits, never raises."""
        if self.cancelled:
            return
        if self._queue.qsize() >= WAITING_MAX:
            self.dropped += 1
            if self.dropped == 1:
                _log.warning("subscriber.too_slow", callback=_name_of(self._callback), waiting=WAITING_MAX)
            return
        self._taken += 1
        self._queue.put(item)
        if self._thread is None:
            self._start()

    def cancel(self) -> None:
        """No further calls, not even for what waits. Idempotent."""
        self.cancelled = True
        self._queue.put(_END)
        self._ended()

    async def flush(self, seconds: float) -> bool:
        """Wait until everything queued before was delivered; whether it was, after at most `seconds`."""
        until = self._taken
        deadline = time.monotonic() + seconds
        while self._done < until and not self.cancelled and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        return self._done >= until or self.cancelled

    def forget_thread(self) -> None:
        """After a fork: the thread stayed in the parent, and what waits is the parent's."""
        self._queue, self._thread = SimpleQueue(), None
        self._taken = self._done = 0

    def __await__(self) -> Generator[Any, None, "Subscription"]:
        yield from ()
        return self

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="apikeyrouter.subscriber", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._queue.get()) is not _END and not self.cancelled:
            try:
                told = self._callback(item)
                if inspect.isawaitable(told):
                    self._wait_for(told)
            except Exception as exc:
                _log.error("subscriber.failed", callback=_name_of(self._callback), error=repr(exc))
            self._done += 1
        self._thread = None

    def _wait_for(self, told: Awaitable[object]) -> None:
        loop = self._loop()
        if loop is None or loop.is_closed():
            if inspect.iscoroutine(told):
                told.close()
            return
        made = cast("Coroutine[Any, Any, None]", told if inspect.iscoroutine(told) else _awaited(told))
        asyncio.run_coroutine_threadsafe(made, loop).result(CALLBACK_SECONDS_MAX)


async def _awaited(told: Awaitable[object]) -> None:
    await told


def _name_of(callback: object) -> str:
    return str(getattr(callback, "__qualname__", type(callback).__qualname__))
