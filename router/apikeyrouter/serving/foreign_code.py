"""Code of other people's adapters, run in tasks of its own: what does not end when its time is over is left behind.

A task that waits for a coroutine cannot go on before that ends, and one that swallows its cancellation never does.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter, where_raised
from apikeyrouter.domain.models.system_error import ErrorCategory, ProviderError, SystemError
from apikeyrouter.infrastructure.observability.events import EventLog

__all__ = ["Pieces", "called", "finish_within", "misbehaved"]

_log = EventLog("apikeyrouter")
T = TypeVar("T")
GRACE_SECONDS = 0.1
"""What is cancelled may take so long to clean up; then nobody waits for it any more."""
_leaving: set["asyncio.Task[Any]"] = set()
"""What was cancelled and is waited for."""
_left: set["asyncio.Task[Any]"] = set()
"""What was left behind and has not ended. Kept, for a task that nobody holds may vanish in its midst."""


def called(method: Callable[..., T], *args: Any) -> T:
    """What a method of an adapter that is not async returns or raises.

    Raises:
        SystemError: it raised a cancellation or GeneratorExit, which can be nobody's here.
    """
    try:
        return method(*args)
    except asyncio.CancelledError as exc:
        raise SystemError("the adapter cancelled itself") from exc
    except GeneratorExit as exc:
        raise SystemError("the adapter raised GeneratorExit") from exc


def misbehaved(provider_id: str, adapter: ProviderAdapter, method: str, found: object) -> ProviderError:
    """The error for an adapter's method that failed, or returned what it must not. `found`: the exception, or that."""
    if inspect.iscoroutine(found):
        found.close()
    what = f"failed: {where_raised(found)}" if isinstance(found, Exception) else f"returned {type(found).__name__}"
    error = ProviderError(
        f"the adapter of provider {provider_id!r} ({type(adapter).__name__}): {method} {what}",
        category=ErrorCategory.ProviderError, details={"provider_id": provider_id, "method": method},
    )  # fmt: skip
    error.__cause__ = found if isinstance(found, Exception) else None
    _log.warning("adapter.misbehaved", provider_id=provider_id, method=method, error=error.message)
    return error


async def finish_within(work: Awaitable[T], seconds: float | None, *, provider_id: str) -> T:
    """What `work` returns or raises. It is cancelled with its waiter, and when `seconds` are over.

    Raises:
        TimeoutError: `GRACE_SECONDS` after that at the latest, whatever `work` makes of its cancellation.
        SystemError: it cancelled itself.
    """
    task: asyncio.Task[T] = asyncio.ensure_future(_awaited(work))
    try:
        await asyncio.wait((task,), timeout=seconds)
        if task.done():
            return _result(task)
    except BaseException:
        await _leave(task, provider_id)
        raise
    await _leave(task, provider_id)
    raise TimeoutError


class Pieces:
    """An adapter's stream: one task reads it from its first piece to its end, as generators expect.

    `source`: an async iterator, or an awaitable of one.
    """

    def __init__(self, source: Any, *, provider_id: str) -> None:
        self._source, self._provider_id = source, provider_id
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._told: asyncio.Future[Any] | None = None
        self._over = False

    async def next(self, seconds: float | None) -> Any:
        """The next piece.

        Raises:
            StopAsyncIteration: there is none.
            TimeoutError: it did not come in time.
            Whatever the source raises.
        """
        told = self._told = asyncio.get_running_loop().create_future()
        self._wanted.set()
        if self._task is None:
            self._task = asyncio.create_task(self._read())
        elif self._task.done():
            raise StopAsyncIteration
        try:
            await asyncio.wait((told,), timeout=seconds)
        finally:
            if not told.done():
                told.cancel()
                await self.aclose()
            elif not told.cancelled():
                told.exception()  # heard, also by who was cancelled in the same moment
        if told.cancelled():
            raise TimeoutError
        return told.result()

    async def aclose(self) -> None:
        """Give up the rest: the source is closed, or left behind where it does not end. Idempotent."""
        self._over = True
        if self._task is not None:
            await _leave(self._task, self._provider_id)
        else:
            await _closed(self._source)

    async def _read(self) -> None:
        try:
            if inspect.isawaitable(self._source):
                self._source = await self._source
            while not self._over:
                await self._wanted.wait()
                self._wanted.clear()
                piece = await self._source.__anext__()
                if self._told is not None and not self._told.done():
                    self._told.set_result(piece)
        except BaseException as exc:
            self._tell(exc)
            if not isinstance(exc, Exception):
                raise
        finally:
            await _closed(self._source)

    def _tell(self, error: BaseException) -> None:
        if self._told is not None and not self._told.done():
            if isinstance(error, asyncio.CancelledError):
                error = SystemError("the adapter's stream was cancelled")
            elif isinstance(error, GeneratorExit):
                error = SystemError("the adapter's stream raised GeneratorExit")
            self._told.set_exception(error)


async def _awaited(work: Any) -> Any:
    if not inspect.isawaitable(work):
        told = f"the adapter returned {type(work).__name__} from a method that must be async"
        raise SystemError(told, category=ErrorCategory.ProviderError)
    return await work


def _result(task: "asyncio.Task[T]") -> T:
    if task.cancelled():
        raise SystemError("the adapter cancelled itself")
    try:
        return task.result()
    except GeneratorExit as exc:
        raise SystemError("the adapter raised GeneratorExit") from exc


async def _leave(task: "asyncio.Task[Any]", provider_id: str) -> None:
    """Cancel a task and wait for it, but not for long, and not twice."""
    if task in _left:
        return
    if task in _leaving:  # a timer and a reader may come to it at once
        await asyncio.wait((task,), timeout=GRACE_SECONDS)
        return
    if not task.done():
        task.cancel()
        _leaving.add(task)
        try:
            await asyncio.wait((task,), timeout=GRACE_SECONDS)
        finally:
            _leaving.discard(task)
            if not task.done():
                _left.add(task)
                task.add_done_callback(_left.discard)
                _log.warning("adapter.left_behind", provider_id=provider_id, left=len(_left))
    if task.done():
        _heard(task)
    else:
        task.add_done_callback(_heard)


def _heard(task: "asyncio.Task[Any]") -> None:
    """What it raised is nobody's any more."""
    if not task.cancelled():
        task.exception()


async def _closed(source: AsyncIterator[Any]) -> None:
    """Close a generator, whatever it makes of that."""
    closing = getattr(source, "aclose", None)
    if closing is not None:
        with suppress(Exception):
            await closing()
