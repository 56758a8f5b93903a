"""Registration calls that start at once, in order, whether or not they are awaited."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from apikeyrouter.domain.models.system_error import ConfigurationError

T = TypeVar("T")


class Deferred(Generic[T]):
    """What a registration call returns: awaiting it gives its result, not awaiting it loses nothing."""

    def __init__(self, work: Callable[[], Awaitable[T]], before: "Deferred[Any] | None") -> None:
        self._work = work
        self._before = before
        self._task: asyncio.Task[T] | None = None
        self._waiting = 0
        self._told = False

    @property
    def observed(self) -> bool:
        """Whether somebody has been told how it ended, or waits for that. Who gave up waiting was not."""
        return self._told or self._waiting > 0

    def start(self) -> "asyncio.Task[T]":
        """Begin, after the call before this one. Needs a running loop; what another one did not finish begins again."""
        loop, task = asyncio.get_running_loop(), self._task
        if task is None or (task.get_loop() is not loop and (not task.done() or task.cancelled())):
            task = self._task = loop.create_task(self._run())
        return task

    async def _run(self) -> T:
        if self._before is not None:
            before = self._before.start()
            if not before.done():
                await asyncio.wait([before])
            self._before = None
        return await self._work()

    def __await__(self) -> Generator[Any, None, T]:
        self._waiting += 1
        try:
            result = yield from asyncio.shield(self.start()).__await__()
        except Exception:
            self._told = True
            raise
        finally:
            self._waiting -= 1
        self._told = True
        return result


class Deferrals:
    """The chain of a router's registration calls."""

    def __init__(self) -> None:
        self._last: Deferred[Any] | None = None
        self._unfinished: deque[Deferred[Any]] = deque()
        self._unseen: list[BaseException] = []

    def add(self, work: Callable[[], Awaitable[T]]) -> Deferred[T]:
        """Queue a call behind all earlier ones, and start it when a loop runs."""
        made = Deferred(work, self._last)
        self._last = made
        self._unfinished.append(made)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return made
        made.start()
        return made

    @property
    def pending(self) -> bool:
        """Whether calls are queued whose end was not waited for yet, or whose error nobody was told."""
        return bool(self._unfinished or self._unseen)

    async def finish(self) -> None:
        """Wait for all of them, whatever becomes of each. Errors that nobody has seen are raised here, once.

        Raises:
            ConfigurationError: several failed; `errors` has a line for each, its cause is the group of them. One alone
                is raised as it is.
        """
        while self._unfinished:
            deferred = self._unfinished[0]
            task = deferred.start()
            if not task.done():
                await asyncio.wait([task])
            if not self._unfinished or self._unfinished[0] is not deferred:
                continue  # somebody else waited too, and was first
            self._unfinished.popleft()
            error = None if task.cancelled() else task.exception()
            if error is not None and not deferred.observed:
                self._unseen.append(error)
        self._last = None
        unseen, self._unseen = self._unseen, []
        if len(unseen) == 1:
            raise unseen[0]
        if unseen:
            told = f"{len(unseen)} registrations failed"
            errors = [str(error) or type(error).__name__ for error in unseen]
            raise ConfigurationError(told, errors=errors) from BaseExceptionGroup(told, unseen)

    async def wind_up(self, seconds: float) -> Exception | None:
        """Finish what nobody waits for any more; what `finish` raises, or TimeoutError, is returned."""
        try:
            async with asyncio.timeout(seconds):
                await self.finish()
        except Exception as exc:
            return exc
        return None
