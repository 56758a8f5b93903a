"""Hearing of changes in MongoDB: a capped collection that is followed, with the version as the truth behind it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from apikeyrouter.domain.interfaces.state_store import Change
from apikeyrouter.domain.models.system_error import StateStoreError
from apikeyrouter.infrastructure.cancellation import stop_if_cancelled
from apikeyrouter.infrastructure.state_store.redis_watch import POLL_SECONDS, Watermark

if TYPE_CHECKING:
    from pymongo.asynchronous.collection import AsyncCollection

__all__ = ["CHANGES_BYTES_MAX", "watch_collection"]

CHANGES_BYTES_MAX = 4 * 2**20
"""Size of the capped collection: tens of thousands of notices."""
Changes = "AsyncCollection[dict[str, Any]]"


async def watch_collection(
    changes: Callable[[], Awaitable["AsyncCollection[dict[str, Any]]"]], version: Callable[[], Awaitable[int]]
) -> AsyncIterator[Change]:
    """Yield every change; those whose notices were lost as one Change without kind and id. Never ends by itself.

    An outage of the server ends nothing: after it the version tells whether something was missed.
    Errors: StateStoreError when the server cannot be reached at the start.
    """
    from pymongo.errors import PyMongoError

    mark = Watermark(await version())
    while True:
        stop_if_cancelled()
        with contextlib.suppress(StateStoreError, PyMongoError):
            async for change in _follow(await changes(), mark):
                yield change
            if not mark.caught_up(now := await version()):
                yield Change(version=now)
        await asyncio.sleep(POLL_SECONDS)


async def _follow(changes: "AsyncCollection[dict[str, Any]]", mark: Watermark) -> AsyncIterator[Change]:
    """New notices as they are written; ends when the server ends the cursor."""
    from pymongo import CursorType

    cursor = changes.find({"_id": {"$gt": mark.seen}}, cursor_type=CursorType.TAILABLE_AWAIT)
    async with cursor.max_await_time_ms(int(POLL_SECONDS * 1000)) as following:
        while following.alive:
            stop_if_cancelled()
            async for notice in following:
                if notice["_id"] > mark.seen:
                    mark.heard(notice["_id"])
                    yield _change(notice)


def _change(notice: Mapping[str, Any]) -> Change:
    return Change(version=int(notice["_id"]), kind=str(notice["kind"]), id=str(notice["id"]))
