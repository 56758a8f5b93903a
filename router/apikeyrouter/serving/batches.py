"""Many pieces of work with bounded concurrency: results in order, progress told, nothing left behind at a failure."""

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sized
from typing import TypeVar

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.observability.events import EventLog

__all__ = ["CONCURRENCY_MAX", "Progress", "run_batch"]

CONCURRENCY_MAX = 10_000
Progress = Callable[[int, int | None], object]
"""`on_progress(done, total)`, plain or async; `total` None: the input does not say. What it raises is logged."""
I = TypeVar("I")  # noqa: E741 (an input)
R = TypeVar("R")
_log = EventLog("apikeyrouter")


async def run_batch(
    items: Iterable[I] | AsyncIterable[I],
    work: Callable[[I], Awaitable[R]],
    *,
    concurrency: int,
    on_progress: Progress | None,
    return_exceptions: bool,
) -> list[R | Exception]:
    """The results of `work` for each item, in the items' order; at most `concurrency` of them at a time.

    Items are taken as they are needed. The first error ends the others and is raised, unless `return_exceptions`: then
    errors stand in the results' places. A cancellation ends all.

    Raises:
        InvalidRequestError: `concurrency` out of range, or no items to be iterated.
    """
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or not 1 <= concurrency <= CONCURRENCY_MAX:
        raise InvalidRequestError(f"must be between 1 and {CONCURRENCY_MAX}", field="concurrency")
    if on_progress is not None and not callable(on_progress):
        raise InvalidRequestError("must be callable", field="on_progress")
    total = len(items) if isinstance(items, Sized) else None
    source = _numbered(items)
    results: dict[int, R | Exception] = {}

    async def worker() -> None:
        async for place, item in source:
            try:
                results[place] = await work(item)
            except Exception as exc:
                if not return_exceptions:
                    raise
                results[place] = exc
            await _tell(on_progress, len(results), total)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency if total is None else min(concurrency, total)):
                group.create_task(worker())
    except BaseExceptionGroup as exc:
        raise exc.exceptions[0] from None
    return [results[place] for place in range(len(results))]


class _Numbered(AsyncIterator[tuple[int, I]]):
    """Items with their places, for several workers at once."""

    def __init__(self, items: AsyncIterator[I]) -> None:
        self._items, self._next, self._turn = items, 0, asyncio.Lock()

    async def __anext__(self) -> tuple[int, I]:
        async with self._turn:
            item = await anext(self._items)
            place, self._next = self._next, self._next + 1
            return place, item


def _numbered(items: Iterable[I] | AsyncIterable[I]) -> _Numbered[I]:
    if isinstance(items, AsyncIterable):
        return _Numbered(aiter(items))
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidRequestError("must be an iterable of requests", field="intents")
    return _Numbered(_plain(items))


async def _plain(items: Iterable[I]) -> AsyncIterator[I]:
    for item in items:
        yield item


async def _tell(on_progress: Progress | None, done: int, total: int | None) -> None:
    if on_progress is None:
        return
    try:
        told = on_progress(done, total)
        if inspect.isawaitable(told):
            await told
    except Exception as exc:
        _log.error("progress.failed", error=repr(exc))
