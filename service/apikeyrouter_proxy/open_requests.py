"""Requests under way: who is cut off when its client goes away, and what a stopping process waits for."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from apikeyrouter.infrastructure.cancellation import end_task

__all__ = ["OpenRequest", "OpenRequests"]

LOOK_SECONDS = 0.25
"""A request older than this is watched; most end before."""
Receive = Callable[[], Awaitable[Any]]


class OpenRequest:
    """One request under way. `cut`: why its task was cancelled by us; "" when it was not."""

    __slots__ = ("cut", "receive", "since", "task", "watcher")

    def __init__(self, task: "asyncio.Task[Any]", receive: Receive, since: float) -> None:
        self.task = task
        self.receive = receive
        self.since = since
        self.watcher: asyncio.Task[None] | None = None
        self.cut = ""


class OpenRequests:
    """The data plane's requests under way in this process."""

    def __init__(self) -> None:
        self.draining = False
        self._open: set[OpenRequest] = set()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, receive: Receive, since: float) -> OpenRequest:
        """Note a request whose body has been read. `since`: a reading of `time.perf_counter()`."""
        task = asyncio.current_task()
        assert task is not None
        opened = OpenRequest(task, receive, since)
        self._open.add(opened)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look(), name="proxy.open_requests")
        return opened

    def leave(self, opened: OpenRequest) -> None:
        """Note its end; from here on its client may go without consequence. Idempotent."""
        self._open.discard(opened)
        if opened.watcher is not None:
            opened.watcher.cancel()

    async def drain(self, seconds: float) -> int:
        """Wait for every request, at most `seconds`, then cut off the rest; how many those were."""
        self.draining = True
        deadline = time.perf_counter() + seconds
        while self._open and time.perf_counter() < deadline:
            await asyncio.wait([opened.task for opened in self._open], timeout=deadline - time.perf_counter())
        late = list(self._open)
        for opened in late:
            self._cut(opened, "draining")
        if late:
            await asyncio.wait([opened.task for opened in late], timeout=LOOK_SECONDS * 4)
        return len(late)

    async def close(self) -> None:
        """Stop watching."""
        await end_task(self._task)
        self._task = None

    async def _look(self) -> None:
        """One look at all, again and again: a watcher is started only for what takes long enough to need one."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            before = time.perf_counter() - LOOK_SECONDS
            for opened in self._open:
                if opened.watcher is None and opened.since <= before:
                    opened.watcher = asyncio.get_running_loop().create_task(self._watch(opened))

    async def _watch(self, opened: OpenRequest) -> None:
        while (await opened.receive())["type"] != "http.disconnect":
            pass
        self._cut(opened, "disconnected")

    def _cut(self, opened: OpenRequest, why: str) -> None:
        if opened in self._open and not opened.cut:
            opened.cut = why
            opened.task.cancel()
