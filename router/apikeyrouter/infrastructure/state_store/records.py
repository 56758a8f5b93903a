"""What management keeps beside entities, for all processes on a store: turns, journals, memos, counts.

Nothing of it is told to the other processes: nobody decides by it.
"""

import asyncio
import json
import secrets
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import StateStoreUnavailableError
from apikeyrouter.infrastructure.state_store.codec import check_kind
from apikeyrouter.infrastructure.state_store.mongo_store import MongoStateStore
from apikeyrouter.infrastructure.state_store.redis_connection import RedisClients, mapped_errors, open_client
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["MemoryRecords", "Records", "RedisRecords", "records_for"]

TURN_SECONDS_MAX = 15
"""How long one may keep its turn; then it is the next one's, whatever became of it."""
WAIT_SECONDS_MAX = 20.0
WAIT_STEP_SECONDS = 0.02
COUNT_SECONDS_MAX = 400 * 86_400
"""How long counts are kept after they were last added to."""
_END_TURN = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


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

    async def close(self) -> None:
        """Let go of connections."""
        ...


def records_for(store: StateStore) -> Records:
    """The records of whoever shares a store: in the same Redis, else of this process alone."""
    if isinstance(store, RedisStateStore | MongoStateStore) and store.redis_url is not None:
        return RedisRecords(store.redis_url, store.namespace)
    return MemoryRecords()


class MemoryRecords:
    """Records of one process; they end with it."""

    def __init__(self) -> None:
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._journals: defaultdict[str, deque[tuple[str, dict[str, Any]]]] = defaultdict(deque)
        self._memos: dict[str, tuple[float, dict[str, Any]]] = {}
        self._counts: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
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

    async def close(self) -> None:
        """Nothing to let go of."""


class RedisRecords:
    """Records in the Redis of a store, under its namespace."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        self._url, self._prefix = redis_url, f"{namespace}:m:{{m}}:"
        self._clients = RedisClients(lambda: open_client(redis_url))

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """One holder at a time, at most TURN_SECONDS_MAX."""
        key, mine = f"{self._prefix}turn:{name}", secrets.token_hex(8)
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while not await self._take(key, mine):
            if time.monotonic() > deadline:
                raise StateStoreUnavailableError("others are changing the configuration all the time; try again")
            await asyncio.sleep(WAIT_STEP_SECONDS)
        try:
            yield
        finally:
            with mapped_errors(self._url):
                await cast("Any", self._redis).eval(_END_TURN, 1, key, mine)

    async def _take(self, key: str, mine: str) -> bool:
        with mapped_errors(self._url):
            return bool(await self._redis.set(key, mine, nx=True, ex=TURN_SECONDS_MAX))

    async def append(self, journal: str, entry: Mapping[str, Any], *, kept: int) -> str:
        """Add to a journal."""
        fields: Any = {"e": json.dumps(entry)}
        with mapped_errors(self._url):
            return str(await self._redis.xadd(self._journal(journal), fields, maxlen=kept, approximate=False))

    async def entries(self, journal: str, *, before: str = "", limit: int = 100) -> list[tuple[str, dict[str, Any]]]:
        """The newest entries, newest first."""
        newest = f"({before}" if before else "+"
        with mapped_errors(self._url):
            rows: Any = await self._redis.xrevrange(self._journal(journal), max=newest, count=limit)
        return [(str(id_), json.loads(fields["e"])) for id_, fields in rows]

    async def claim(self, name: str, *, seconds: int) -> bool:
        """Whether this call is the first."""
        with mapped_errors(self._url):
            return bool(await self._redis.set(f"{self._prefix}claim:{name}", "1", nx=True, ex=seconds))

    async def remember(self, name: str, memo: Mapping[str, Any], *, seconds: int) -> None:
        """Keep a small JSON object."""
        with mapped_errors(self._url):
            await self._redis.set(f"{self._prefix}memo:{name}", json.dumps(memo), ex=seconds)

    async def recall(self, name: str) -> dict[str, Any] | None:
        """What was remembered."""
        with mapped_errors(self._url):
            text = await self._redis.get(f"{self._prefix}memo:{name}")
        return None if text is None else cast("dict[str, Any]", json.loads(text))

    async def add_counts(self, kind: str, counts: Mapping[str, int]) -> None:
        """Add to counters of a kind."""
        if not counts:
            return
        name = f"{self._prefix}counts:{check_kind(kind)}"
        with mapped_errors(self._url):
            async with self._redis.pipeline(transaction=True) as pipe:
                for counted, number in counts.items():
                    pipe.hincrby(name, counted, number)
                pipe.expire(name, COUNT_SECONDS_MAX)
                await pipe.execute()

    async def all_counts(self, kind: str) -> dict[str, int]:
        """Every counter of a kind."""
        with mapped_errors(self._url):
            found = await self._redis.hgetall(f"{self._prefix}counts:{check_kind(kind)}")
        return {str(name): int(number) for name, number in found.items()}

    async def close(self) -> None:
        """Let go of connections."""
        await self._clients.aclose()

    @property
    def _redis(self) -> "Redis":
        return self._clients.current()

    def _journal(self, name: str) -> str:
        return f"{self._prefix}journal:{check_kind(name)}"


def _place(id_: str) -> tuple[int, int]:
    """Where an id stands in its journal; what is no id stands nowhere, and everything is younger."""
    at, _, number = id_.partition("-")
    return (int(at), int(number or 0)) if at.isdigit() and (not number or number.isdigit()) else (0, 0)
