"""The counts of all workers of one host, whichever of them answers the scrape.

Each worker writes its own counts into a hash of the host, once a second and at its end. A scrape sums the answering
worker's live counts with the last of the others. What a dead worker had counted is taken over by a living one.
"""

import asyncio
import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from apikeyrouter.infrastructure.state_store.redis_connection import open_client
from apikeyrouter_proxy.metrics import Counters, add_counters

__all__ = ["HostCounts", "SharedMetrics"]

PUBLISH_SECONDS = 1.0
LIVE_SECONDS = 5.0
"""A worker that has not published for so long is not live: its gauges no longer count."""
DEAD_SECONDS = 60.0
"""After so long its counts are taken over."""
READ_SECONDS_MAX = 0.9
"""A scrape waits no longer for the other workers' counts, and then takes those that it had last."""
HASH_SECONDS = 32 * 24 * 3600
"""A host that is gone is forgotten after this."""


class _Record(msgspec.Struct, kw_only=True):
    at: float
    gauges: dict[str, int]
    counters: Counters


_read = msgspec.json.Decoder(_Record)


class HostCounts(msgspec.Struct, kw_only=True):
    """Summed over the host's workers: counters of all there ever were, gauges of the live ones."""

    counters: Counters
    gauges: dict[str, int]
    workers: int


class SharedMetrics:
    """Publishes `counters()` and `gauges()` of this worker, and sums them with the others'.

    Without a Redis (`url` None) there are no others. While Redis is away the others' counts are what they were.
    """

    def __init__(
        self,
        url: str | None,
        *,
        namespace: str,
        counters: Callable[[], Counters],
        gauges: Callable[[], dict[str, int]],
    ) -> None:
        self._client: Redis | None = None if url is None else open_client(url)
        self._key = f"{namespace}:metrics:{{{socket.gethostname()}}}"
        self._worker = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._counters, self._gauges = counters, gauges
        self._inherited: Counters = {}
        self._read: dict[str, _Record] = {}
        self._published: Counters | None = None
        self._next_takeover = 0.0
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        """Begin to publish."""
        if self._client is not None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="proxy.metrics")

    async def close(self) -> None:
        """Publish a last time, and stop."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._client is not None:
            with contextlib.suppress(RedisError, OSError):
                await self.publish(live=False)
            await self._client.aclose()

    async def totals(self) -> HostCounts:
        """The sums, this worker's own as of now."""
        own = self._own(live=True)
        with contextlib.suppress(TimeoutError, RedisError, OSError):
            async with asyncio.timeout(READ_SECONDS_MAX):
                self._read = await self._records()
        others = [record for name, record in self._read.items() if name != self._worker]
        live = [own, *(record for record in others if own.at - record.at < LIVE_SECONDS)]
        gauges: dict[str, int] = {}
        for record in live:
            for name, value in record.gauges.items():
                gauges[name] = gauges.get(name, 0) + value
        counters = add_counters([own.counters, *(record.counters for record in others)])
        return HostCounts(counters=counters, gauges=gauges, workers=len(live))

    async def publish(self, *, live: bool = True) -> None:
        """Write this worker's counts. Errors: RedisError, OSError."""
        assert self._client is not None
        record = self._own(live=live)
        is_new = await self._client.hset(self._key, self._worker, msgspec.json.encode(record).decode())
        if is_new and self._published is not None:
            # it was taken for dead and its last record taken over: what that held must not count twice
            self._inherited = _minus(self._inherited, self._published)
            record = self._own(live=live)
            await self._client.hset(self._key, self._worker, msgspec.json.encode(record).decode())
        self._published = record.counters
        await self._client.expire(self._key, HASH_SECONDS)

    async def take_over(self) -> None:
        """Add the counts of workers that are gone to this one's; of several takers, one gets them."""
        assert self._client is not None
        now = time.time()
        for name, record in (await self._records()).items():
            is_dead = now - record.at > DEAD_SECONDS
            if name != self._worker and is_dead and await self._client.hdel(self._key, name):
                self._inherited = add_counters([self._inherited, record.counters])
        await self.publish()

    def _own(self, *, live: bool) -> _Record:
        counters = add_counters([self._inherited, self._counters()])
        return _Record(at=time.time() if live else 0.0, gauges=self._gauges() if live else {}, counters=counters)

    async def _records(self) -> dict[str, _Record]:
        if self._client is None:
            return {}
        found = await self._client.hgetall(self._key)
        records = {}
        for name, text in found.items():
            with contextlib.suppress(msgspec.MsgspecError):  # another version's
                records[str(name)] = _read.decode(text)
        return records

    async def _run(self) -> None:
        while not self._closing:  # redis-py may take a cancellation for a time-out, and go on
            with contextlib.suppress(RedisError, OSError):
                if time.monotonic() >= self._next_takeover:
                    self._next_takeover = time.monotonic() + DEAD_SECONDS
                    await self.take_over()
                else:
                    await self.publish()
            if not self._closing:
                await asyncio.sleep(PUBLISH_SECONDS)


def _minus(counters: Counters, taken: Counters) -> Counters:
    return add_counters([counters, {labels: [-value for value in values] for labels, values in taken.items()}])
