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


@contextlib.contextmanager
def signals_heard(runtime: Runtime) -> Iterator[None]:
    """While inside: a stop signal starts the drain and then goes on to the server's own handler; SIGHUP reloads.

    A server waits for requests under way without an end of its own; the drain gives it one. Outside the main thread
    there are no signals to hear, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    chores: set[asyncio.Task[Any]] = set()

    def spawn(make: Callable[[], Any]) -> None:
        task = loop.create_task(make())
        chores.add(task)
        task.add_done_callback(chores.discard)

    before = {number: _chain(number, lambda: loop.call_soon_threadsafe(spawn, runtime.drain)) for number in _STOPS}
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) in (signal.SIG_DFL, signal.SIG_IGN):
        before[hangup] = _chain(hangup, lambda: loop.call_soon_threadsafe(spawn, runtime.reload_quietly))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _chain(number: signal.Signals, notify: Callable[[], object]) -> Any:
    """Call `notify`, then what was there before; returns the latter."""
    previous = signal.getsignal(number)

    def handle(received: int, frame: FrameType | None) -> None:
        notify()
        if callable(previous):
            previous(received, frame)

    signal.signal(number, handle)
    return previous
