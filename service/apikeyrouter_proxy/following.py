"""Follows the store: what another worker changed is taken over here within a second."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

import structlog

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.infrastructure.cancellation import end_task

__all__ = ["Follower"]

AGAIN_SECONDS = 1.0
_log = structlog.get_logger("apikeyrouter")


class Follower:
    """Calls what is registered for a kind of document whenever one of that kind may have changed."""

    def __init__(self, store: StateStore, takers: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        self._store, self._takers = store, takers
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take over everything once, then follow."""
        for take in self._takers.values():
            await take()
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="apikeyrouter.follower")

    async def close(self) -> None:
        """Stop."""
        await end_task(self._task)
        self._task = None

    async def _follow(self) -> None:
        while True:
            try:
                async for change in self._store.watch():
                    for kind, take in self._takers.items():
                        if change.kind in ("", kind):
                            await take()
                return
            except Exception as exc:  # whatever it was, the next look makes it good
                _log.warning("follower.failed", error=str(exc))
                await asyncio.sleep(AGAIN_SECONDS)
                for take in self._takers.values():
                    with contextlib.suppress(Exception):
                        await take()
