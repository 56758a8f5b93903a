"""What management keeps beside entities, for all processes on a store: turns, journals, memos, counts, queues.

Nothing of it is told to the other processes: nobody decides by it. It lies where the entities lie.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.infrastructure.state_store.mongo_store import MongoStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore

__all__ = ["Records", "Taken", "Waiting", "records_for"]

TURN_SECONDS_MAX = 15
"""How long one may keep its turn; then it is the next one's, whatever became of it."""
WAIT_SECONDS_MAX = 20.0
WAIT_STEP_SECONDS = 0.02
QUEUE_LENGTH_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A job that is this caller's alone until `claim` (microseconds), which also proves that it is."""

    name: str
    claim: int
    job: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A job that waits, or that somebody has taken: due at `due_us`."""

    name: str
    due_us: int
    job: dict[str, Any]


class Records(Protocol):
    """Errors of every method: StateStoreUnavailableError when the backend cannot be reached."""

    def turn(self, name: str) -> AbstractAsyncContextManager[None]:
        """One holder of that name at a time among all processes. Errors: StateStoreUnavailableError after waiting
        WAIT_SECONDS_MAX."""
        ...

    async def append(self, journal: str, entry: Mapping[str, Any], *, kept: int) -> str:
        """Add to a journal; the oldest beyond `kept` go. Returns the entry's id; later ones are larger."""
        ...

    async def entries(self, journal: str, *, before: str = "", limit: int = 100) -> list[tuple[str, dict[str, Any]]]:
        """The newest entries, newest first, with their ids; only those older than the one with the id `before`."""
        ...

    async def claim(self, name: str, *, seconds: int) -> bool:
        """Whether this call is the first to claim a name within so many seconds."""
        ...

    async def remember(self, name: str, memo: Mapping[str, Any], *, seconds: int) -> None:
        """Keep a small JSON object for so many seconds."""
        ...

    async def recall(self, name: str) -> dict[str, Any] | None:
        """What was remembered, None when nothing was or its time is over."""
        ...

    async def add_counts(self, kind: str, counts: Mapping[str, int]) -> None:
        """Add to counters of a kind."""
        ...

    async def all_counts(self, kind: str) -> dict[str, int]:
        """Every counter of a kind."""
        ...

    async def enqueue(self, queue: str, name: str, job: Mapping[str, Any], *, once_seconds: int) -> bool | None:
        """Put a job into a queue, due at once, in one step. False: one of that name was, within `once_seconds`. None:
        the queue holds QUEUE_LENGTH_MAX."""
        ...

    async def take(self, queue: str, *, count: int, seconds: float) -> list[Taken]:
        """At most so many jobs that are due, the longest due first, for this caller alone for so many seconds: whoever
        does not settle them by then loses them to the next."""
        ...

    async def settle(self, queue: str, taken: Taken, *, again: Mapping[str, Any] | None, delay: float = 0.0) -> bool:
        """A job is over, or (`again`) due once more in so many seconds, as it is now. False: it is somebody else's."""
        ...

    async def waiting(self, queue: str, *, limit: int) -> list[Waiting]:
        """What is in a queue, the first due first."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def records_for(store: StateStore) -> Records:
    """The records of whoever shares a store: in the same database, else of this process alone."""
    if isinstance(store, MongoStateStore):
        from apikeyrouter.infrastructure.state_store.mongo_records import MongoRecords

        return MongoRecords(store.mongodb_url, store.database, store.namespace)
    if isinstance(store, RedisStateStore):
        from apikeyrouter.infrastructure.state_store.redis_records import RedisRecords

        return RedisRecords(store.redis_url, store.namespace)
    from apikeyrouter.infrastructure.state_store.memory_records import MemoryRecords

    return MemoryRecords()
