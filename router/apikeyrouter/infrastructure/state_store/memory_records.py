"""Records of one process."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from apikeyrouter.infrastructure.state_store.records import QUEUE_LENGTH_MAX, Taken, Waiting

__all__ = ["MemoryRecords"]


class MemoryRecords:
    """They end with the process."""

    def __init__(self) -> None:
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._journals: defaultdict[str, deque[tuple[str, dict[str, Any]]]] = defaultdict(deque)
        self._memos: dict[str, tuple[float, dict[str, Any]]] = {}
        self._counts: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._queues: defaultdict[str, dict[str, tuple[int, dict[str, Any]]]] = defaultdict(dict)
        self._appended = 0

    def turn(self, name: str) -> AbstractAsyncContextManager[None]:
        """One holder at a time."""
        return self._turns[name]

    async def append(self, journal: str, entry: Mapping[str, Any], *, kept: int) -> str:
        """Add to a journal."""
        self._appended += 1
        id_ = f"{time.time_ns() // 1_000_000}-{self._appended}"
        found = self._journals[journal]
        found.append((id_, dict(entry)))
        while len(found) > kept:
            found.popleft()
        return id_

    async def entries(self, journal: str, *, before: str = "", limit: int = 100) -> list[tuple[str, dict[str, Any]]]:
        """The newest entries, newest first."""
        older = [one for one in self._journals[journal] if not before or _place(one[0]) < _place(before)]
        return older[::-1][:limit]

    async def claim(self, name: str, *, seconds: int) -> bool:
        """Whether this call is the first."""
        if await self.recall(f"claim:{name}") is not None:
            return False
        await self.remember(f"claim:{name}", {}, seconds=seconds)
        return True

    async def remember(self, name: str, memo: Mapping[str, Any], *, seconds: int) -> None:
        """Keep a small JSON object."""
        now = time.monotonic()
        self._memos = {known: kept for known, kept in self._memos.items() if kept[0] > now}
        self._memos[name] = (now + seconds, dict(memo))

    async def recall(self, name: str) -> dict[str, Any] | None:
        """What was remembered."""
        until, memo = self._memos.get(name, (0.0, {}))
        return memo if until > time.monotonic() else None

    async def add_counts(self, kind: str, counts: Mapping[str, int]) -> None:
        """Add to counters of a kind."""
        for name, number in counts.items():
            self._counts[kind][name] += number

    async def all_counts(self, kind: str) -> dict[str, int]:
        """Every counter of a kind."""
        return dict(self._counts[kind])

    async def enqueue(self, queue: str, name: str, job: Mapping[str, Any], *, once_seconds: int) -> bool | None:
        """Put a job into a queue."""
        if len(self._queues[queue]) >= QUEUE_LENGTH_MAX:
            return None
        if not await self.claim(f"job:{queue}:{name}", seconds=once_seconds):
            return False
        self._queues[queue][name] = (_now_us(), dict(job))
        return True

    async def take(self, queue: str, *, count: int, seconds: float) -> list[Taken]:
        """Jobs that are due."""
        now = _now_us()
        waiting = self._queues[queue]
        due = sorted((at, name) for name, (at, _) in waiting.items() if at <= now)[:count]
        claim = now + int(seconds * 1e6)
        taken = [Taken(name=name, claim=claim, job=waiting[name][1]) for _, name in due]
        waiting.update((one.name, (claim, one.job)) for one in taken)
        return taken

    async def settle(self, queue: str, taken: Taken, *, again: Mapping[str, Any] | None, delay: float = 0.0) -> bool:
        """A job is over, or due once more."""
        if self._queues[queue].get(taken.name, (0, {}))[0] != taken.claim:
            return False
        if again is None:
            del self._queues[queue][taken.name]
        else:
            self._queues[queue][taken.name] = (_now_us() + int(delay * 1e6), dict(again))
        return True

    async def waiting(self, queue: str, *, limit: int) -> list[Waiting]:
        """What is in a queue."""
        found = [Waiting(name=name, due_us=due, job=job) for name, (due, job) in self._queues[queue].items()]
        return sorted(found, key=lambda one: (one.due_us, one.name))[:limit]

    async def close(self) -> None:
        """Nothing to let go of."""


def _now_us() -> int:
    return time.time_ns() // 1000


def _place(id_: str) -> tuple[int, int]:
    """Where an id stands in its journal; what is no id stands nowhere, and everything is younger."""
    at, _, number = id_.partition("-")
    return (int(at), int(number or 0)) if at.isdigit() and (not number or number.isdigit()) else (0, 0)
