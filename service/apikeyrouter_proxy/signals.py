"""Signals, on top of what the server does with them: SIGTERM begins the drain, SIGHUP reads the configuration."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from apikeyrouter_proxy.runtime import Runtime

__all__ = ["signals_heard"]

_STOPS = (signal.SIGTERM, signal.SIGINT)
_Handler = Callable[[int, FrameType | None], Any]


@contextlib.contextmanager
def signals_heard(runtime: Runtime) -> Iterator[None]:
    """While inside: a stop signal starts the drain and goes on to the server's own handler; SIGHUP reloads.

    A server waits for requests under way without an end of its own; the drain gives it one. With a notice to give
    (`drain_notice_seconds`), the server hears of the signal when that is over, or at the second signal. Outside the
    main thread there are no signals to hear, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = _Heard(runtime)
    for number in _STOPS:
        heard.chain(number, heard.stop)
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) in (signal.SIG_DFL, signal.SIG_IGN):
        heard.chain(hangup, heard.hang_up)
    try:
        yield
    finally:
        heard.forget()


class _Heard:
    """The handlers of one running service, and what they start."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._chores: set[asyncio.Task[Any]] = set()
        self._before: dict[int, Any] = {}
        self._noticed = False

    def chain(self, number: int, handle: _Handler) -> None:
        """Handle a signal from now on."""
        self._before[number] = signal.signal(number, handle)

    def forget(self) -> None:
        """Handle signals as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """The first stop signal gives notice, where there is one to give; any other one stops at once."""
        seconds = self._runtime.options.drain_notice_seconds
        if seconds and not self._noticed:
            self._noticed = True
            self._loop.call_soon_threadsafe(self._give_notice, number, seconds)
            return
        self._drain_and_pass_on(number, frame)

    def hang_up(self, number: int, frame: FrameType | None) -> None:
        """Read the configuration again."""
        self._loop.call_soon_threadsafe(self._spawn, self._runtime.reload_quietly)

    def _give_notice(self, number: int, seconds: float) -> None:
        self._runtime.leaving = True
        self._loop.call_later(seconds, self._drain_and_pass_on, number, None)

    def _drain_and_pass_on(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._spawn, self._runtime.drain)
        before = self._before[number]
        if callable(before):
            before(number, frame)

    def _spawn(self, make: Callable[[], Any]) -> None:
        task = self._loop.create_task(make())
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
