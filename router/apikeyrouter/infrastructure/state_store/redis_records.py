"""Records in Redis or Valkey. The keys are described in docs/redis-keys.md."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from apikeyrouter.domain.models.system_error import StateStoreUnavailableError
from apikeyrouter.infrastructure.state_store.codec import check_kind
from apikeyrouter.infrastructure.state_store.records import (
    QUEUE_LENGTH_MAX,
    TURN_SECONDS_MAX,
    WAIT_SECONDS_MAX,
    WAIT_STEP_SECONDS,
    Taken,
    Waiting,
)
from apikeyrouter.infrastructure.state_store.redis_connection import RedisClients, mapped_errors, open_client

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisRecords"]

COUNT_SECONDS_MAX = 400 * 86_400
"""How long counts are kept after they were last added to."""
_END_TURN = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
_NOW = "local t = redis.call('TIME') local now = t[1] * 1000000 + t[2] "
_ENQUEUE = (
    _NOW
    + """
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then return -1 end
if not redis.call('SET', KEYS[3], '1', 'NX', 'EX', ARGV[3]) then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
return 1
"""
)
"""KEYS due, jobs, marker. ARGV name, job, seconds of the marker, most jobs. 1, 0 (known), -1 (full)."""
_TAKE = (
    _NOW
    + """
local claim, taken = string.format('%.0f', now + ARGV[2]), {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])) do
  redis.call('ZADD', KEYS[1], claim, name)
  taken[#taken + 1], taken[#taken + 2], taken[#taken + 3] = name, claim, redis.call('HGET', KEYS[2], name) or '{}'
end
return taken
"""
)
"""KEYS due, jobs. ARGV most, microseconds of the claim. Name, claim and job of each that was due."""
_SETTLE = (
    _NOW
    + """
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) ~= tonumber(ARGV[2]) then return 0 end
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
else
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[4]), ARGV[1])
end
return 1
"""
)
"""KEYS due, jobs. ARGV name, claim, job as it is now ('': over), microseconds until it is due. 0: another has it."""


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
        while not await self._take_turn(key, mine):
            if time.monotonic() > deadline:
                raise StateStoreUnavailableError("others are changing the configuration all the time; try again")
            await asyncio.sleep(WAIT_STEP_SECONDS)
        try:
            yield
        finally:
            await self._run(_END_TURN, [key], mine)

    async def _take_turn(self, key: str, mine: str) -> bool:
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

    async def enqueue(self, queue: str, name: str, job: Mapping[str, Any], *, once_seconds: int) -> bool | None:
        """Put a job into a queue."""
        keys = [*self._queue(queue), f"{self._prefix}claim:job:{queue}:{name}"]
        done = int(await self._run(_ENQUEUE, keys, name, json.dumps(job), once_seconds, QUEUE_LENGTH_MAX))
        return None if done < 0 else bool(done)

    async def take(self, queue: str, *, count: int, seconds: float) -> list[Taken]:
        """Jobs that are due."""
        told = await self._run(_TAKE, self._queue(queue), count, int(seconds * 1e6))
        each = zip(*[iter(told)] * 3, strict=True)
        return [Taken(name=name, claim=int(claim), job=json.loads(job)) for name, claim, job in each]

    async def settle(self, queue: str, taken: Taken, *, again: Mapping[str, Any] | None, delay: float = 0.0) -> bool:
        """A job is over, or due once more."""
        text = "" if again is None else json.dumps(again)
        return bool(await self._run(_SETTLE, self._queue(queue), taken.name, taken.claim, text, int(delay * 1e6)))

    async def waiting(self, queue: str, *, limit: int) -> list[Waiting]:
        """What is in a queue."""
        due, jobs = self._queue(queue)
        with mapped_errors(self._url):
            found: Any = await self._redis.zrange(due, 0, limit - 1, withscores=True)
            texts = await self._redis.hmget(jobs, [name for name, _ in found]) if found else []
        return [
            Waiting(name=name, due_us=int(at), job=json.loads(text))
            for (name, at), text in zip(found, texts, strict=True)
            if text is not None
        ]

    async def close(self) -> None:
        """Let go of connections."""
        await self._clients.aclose()

    async def _run(self, script: str, keys: list[str], *words: object) -> Any:
        with mapped_errors(self._url):
            return await cast("Any", self._redis).eval(script, len(keys), *keys, *words)

    @property
    def _redis(self) -> "Redis":
        return self._clients.current()

    def _journal(self, name: str) -> str:
        return f"{self._prefix}journal:{check_kind(name)}"

    def _queue(self, name: str) -> list[str]:
        return [f"{self._prefix}queue:{check_kind(name)}:{part}" for part in ("due", "jobs")]
