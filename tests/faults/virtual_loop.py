"""An event loop without a clock: time is a number, and whose turn it is, is drawn from a seed.

Many *processes* share it. A process is a context variable: what runs in its context belongs to it, and within a
process callbacks keep their order, as asyncio promises. Between processes there is no order but the seed's. A process
can be stopped (nothing of it runs until it goes on, as under SIGSTOP) and killed (nothing of it ever runs again, no
handler, no `finally`, as under SIGKILL), between any two steps of its tasks.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar, TypeVarTuple, Unpack

WORLD = "world"
PROCESS: ContextVar[str] = ContextVar("process", default=WORLD)
STEP_US_MAX = 40
"""A step of a task takes up to so long: time goes on while processes work."""
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class StalledError(Exception):
    """Nothing is ready and no timer runs, but what was waited for has not come: a deadlock."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """One thread, no clock, no I/O. `steps` counts callbacks that ran; `errors` has what nobody took."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self.now_us = 0
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        self.each_step: Callable[[], None] | None = None
        self._ready: dict[str, deque[asyncio.Handle]] = {}
        self._left: dict[str, deque[asyncio.Handle]] = {}
        """What the dead would do next."""
        self._timers: list[tuple[int, int, str, asyncio.TimerHandle]] = []
        self._count = 0
        self._stopped: set[str] = set()
        self._dead: set[str] = set()
        self._tasks: dict[asyncio.Task[Any], str] = {}
        self._running = self._closed = False

    # --- processes -----------------------------------------------------------------------------------------------

    def spawn(self, process: str, work: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        """Begin a task of a process."""
        context = copy_context()
        context.run(PROCESS.set, process)
        return self.create_task(work, context=context)

    def stop_process(self, process: str) -> None:
        """SIGSTOP."""
        self._stopped.add(process)

    def go_on(self, process: str) -> None:
        """SIGCONT. Timers that came due meanwhile fire now."""
        self._stopped.discard(process)

    def kill(self, process: str) -> None:
        """SIGKILL: no step of it runs any more."""
        self._dead.add(process)
        self._left[process] = self._ready.pop(process, deque())

    # --- what asyncio asks of a loop -----------------------------------------------------------------------------

    def time(self) -> float:
        return self.now_us / 1e6

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def call_soon(
        self, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        context = copy_context() if context is None else context
        handle = asyncio.Handle(callback, args, self, context)
        self._line(context.get(PROCESS, WORLD)).append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        context = copy_context() if context is None else context
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        due = max(self.now_us, round(when * 1e6))
        heapq.heappush(self._timers, (due, self._count, context.get(PROCESS, WORLD), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when it comes due."""

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any
    ) -> "asyncio.Task[Any]":
        context = copy_context() if context is None else context
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks[task] = context.get(PROCESS, WORLD)
        if len(self._tasks) % 256 == 0:
            self._tasks = {task: process for task, process in self._tasks.items() if not task.done()}
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    # --- running -------------------------------------------------------------------------------------------------

    def run_until_complete(self, future: Any) -> Any:
        """Run until `future` is done; its result. Errors: StalledError."""
        awaited = future if isinstance(future, asyncio.Future) else self.create_task(future)
        asyncio._set_running_loop(self)
        self._running = True
        try:
            while not awaited.done():
                self._one_step()
        finally:
            self._running = False
            asyncio._set_running_loop(None)
        return awaited.result()

    def close(self) -> None:
        """End every task, those of the dead too, so that none is left to the garbage collector."""
        self._dead.clear()
        self._stopped.clear()
        self._ready |= self._left
        self.each_step = None
        left = [task for task in self._tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            self.run_until_complete(self.create_task(_ended(left)))
        self._tasks.clear()
        self._timers.clear()
        self._ready.clear()
        self._closed = True

    def _line(self, process: str) -> "deque[asyncio.Handle]":
        line = self._ready.get(process)
        if line is None:
            lines = self._left if process in self._dead else self._ready
            line = lines.setdefault(process, deque())
        return line

    def _one_step(self) -> None:
        if self._timers and self._timers[0][0] <= self.now_us:
            self._take_due()
        stopped = self._stopped
        lines = [line for process, line in self._ready.items() if line and process not in stopped]
        if not lines:
            self._pass_time()
            return
        chance = self._random.random
        handle = (lines[0] if len(lines) == 1 else lines[int(chance() * len(lines))]).popleft()
        if handle.cancelled():
            return
        self.steps += 1
        self.now_us += int(chance() * STEP_US_MAX)
        handle._run()
        if self.each_step is not None:
            self.each_step()

    def _take_due(self) -> None:
        while self._timers and self._timers[0][0] <= self.now_us:
            _, _, process, handle = heapq.heappop(self._timers)
            if process not in self._dead and not handle.cancelled():
                self._line(process).append(handle)

    def _pass_time(self) -> None:
        if not self._timers:
            raise StalledError("nothing is ready, and no timer runs")
        self.now_us = max(self.now_us, self._timers[0][0])


async def _ended(tasks: list["asyncio.Task[Any]"]) -> None:
    await asyncio.wait(tasks, timeout=60.0)
