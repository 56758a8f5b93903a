"""The fleet: what every worker says of itself, every two seconds, in one hash that all of them share.

A worker that ends takes its record away; one that died is lost after some seconds, and forgotten after ten minutes.
What is told was measured for other ends: a beat costs a look at the latest requests, and one HSET.
"""

import asyncio
import contextlib
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal

import msgspec

from apikeyrouter._version import __version__
from apikeyrouter.domain.components.reservation_ids import process_tag
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.infrastructure.cancellation import end_task, stop_if_cancelled
from apikeyrouter.infrastructure.state_store.redis_connection import open_client
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.serving.open_calls import OpenCall, open_calls
from apikeyrouter_proxy.key_failures import KeyFailures

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["LOST_US", "Fleet", "Mode", "WorkerRecord", "WorkerWatch"]

BEAT_SECONDS = 2.0
LOST_US = 6_000_000
"""A worker that has said nothing for so long is lost."""
KEPT_US = 600_000_000
LOST_KEPT_MAX = 100
"""So long, and so many, lost workers are remembered."""
TIDY_SECONDS = 60.0
HASH_SECONDS = 3600
"""With no worker left, all of it goes after this."""
OPEN_AFTER_MS, OPEN_TOLD_MAX = 1000, 50
"""Calls that are open for so long are told of, at most so many: the oldest."""
OWN_OPEN_TOLD_MAX = 1000
LOOKED_AT_MAX = 512
"""Requests of the time since the last beat that are looked at."""
Mode = Literal["normal", "store_away", "bounded", "draining"]


class WorkerRecord(msgspec.Struct, kw_only=True):
    """What a worker says of itself. Times are microseconds, of Unix where they end in `at_us`, by the ledger's clock.

    `reserve_p50_us`: from the ranking of candidates until one was held, Redis' answer included; None: nobody asked
    since the last beat. `clock_offset_us`: how far the ledger's clock is ahead of its machine's. `waiting`: requests
    that wait for room, `waiting_longest_us` the longest of them. `unsettled`: ends that the ledger has not confirmed.
    `cpu_share`: of one core, since the last beat. `oldest`: its oldest open calls.
    """

    id: str
    host: str
    pid: int
    version: str
    started_at_us: int
    at_us: int
    mode: Mode
    config_version: int
    decisions_per_second: float
    open_requests: int
    waiting: int
    waiting_longest_us: int
    reserve_p50_us: int | None
    reserve_p99_us: int | None
    clock_offset_us: int
    clock_suspected: bool
    unsettled: int
    memory_bytes: int
    cpu_share: float
    oldest: list[OpenCall] = []


_read = msgspec.json.Decoder(WorkerRecord)


class WorkerWatch:
    """One worker, as it sees itself. `mode` and `open_requests` are asked at each look."""

    def __init__(self, router: ApiKeyRouter, *, mode: Callable[[], Mode], open_requests: Callable[[], int]) -> None:
        self._router, self._mode, self._open_requests = router, mode, open_requests
        self.key_failures = router.key_manager.latest_failures
        self._host = socket.gethostname()
        self._started_us = time.time_ns() // 1000
        self._before = (time.monotonic(), time.process_time(), router.decided, self._started_us)
        self._rates = (0.0, 0.0)
        self._reserves: tuple[int | None, int | None] = (None, None)

    @property
    def keys(self) -> Mapping[str, object]:
        """The keys that this worker knows, by id."""
        return self._router.catalogue.keys

    def look(self) -> WorkerRecord:
        """As of now, with rates since the last look. To be called by the beat alone."""
        at, cpu, decided, wall_us = self._before
        self._before = (time.monotonic(), time.process_time(), self._router.decided, time.time_ns() // 1000)
        seconds = max(self._before[0] - at, 1e-3)
        self._rates = ((self._before[2] - decided) / seconds, (self._before[1] - cpu) / seconds)
        self._reserves = reserve_times(self._router.decisions, since_us=wall_us)
        return self.now()

    def now(self) -> WorkerRecord:
        """As of now, with the rates of the last look."""
        router, now_us = self._router, self._router.ledger_now_us
        return WorkerRecord(
            id=process_tag(), host=self._host, pid=os.getpid(), version=__version__, started_at_us=self._started_us,
            at_us=now_us, mode=self._mode(), config_version=router.ledger.stamp.config_version,
            decisions_per_second=round(self._rates[0], 2), open_requests=self._open_requests(),
            waiting=router.waiting, waiting_longest_us=int(router.waiting_longest_seconds * 1e6),
            reserve_p50_us=self._reserves[0], reserve_p99_us=self._reserves[1],
            clock_offset_us=now_us - time.time_ns() // 1000, clock_suspected=router.clock_suspected,
            unsettled=router.books.waiting, memory_bytes=memory_bytes(), cpu_share=round(self._rates[1], 4),
            oldest=list(self.open_calls(time.time_ns() // 1_000_000 - OPEN_AFTER_MS)),
        )  # fmt: skip

    def open_calls(self, before_ms: int | None = None, *, most: int = OPEN_TOLD_MAX) -> Iterator[OpenCall]:
        """Open calls of this worker: of those from before then, the oldest."""
        before_ms = time.time_ns() // 1_000_000 + 1 if before_ms is None else before_ms
        return open_calls(self._router.books, before_ms=before_ms, most=most)


class Fleet:
    """Tells of this worker, and finds all of them. Without a Redis (`url` None) there is this one alone.

    Redis being away is no error: nobody is told, and nobody else is found.
    """

    def __init__(self, url: str | None, namespace: str, watch: WorkerWatch) -> None:
        self._client: Redis | None = None if url is None else open_client(url)
        self._key = f"{namespace}:m:{{m}}:workers"
        self._watch = watch
        self.failures = KeyFailures(self._client, namespace, watch.key_failures)
        self._tidy_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to beat."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="proxy.workers")

    async def close(self) -> None:
        """Stop, and be there no more. Idempotent."""
        if self._task is None:
            return
        await end_task(self._task)
        self._task = None
        if self._client is not None:
            from redis.exceptions import RedisError

            with contextlib.suppress(RedisError, OSError):
                await self._client.hdel(self._key, process_tag())
            await self._client.aclose()

    async def find(self) -> list[WorkerRecord]:
        """Every worker that is known, this one as of now, by host and process id."""
        own = self._watch.now()
        others = [one for one in await self._all() if one.id != own.id]
        return sorted([own, *others], key=lambda one: (one.host, one.pid, one.id))

    async def open_calls(self) -> dict[str, OpenCall]:
        """What is known of the calls that reservations are held for, by reservation: every one of this worker, and of
        the others those that have been open for some time."""
        found = {call.rid: call for one in await self._all() for call in one.oldest}
        return found | {call.rid: call for call in self._watch.open_calls(most=OWN_OPEN_TOLD_MAX)}

    async def beat(self) -> None:
        """Tell of this worker. Errors: RedisError, OSError."""
        record = self._watch.look()
        if self._client is None:
            return
        await self._client.hset(self._key, record.id, msgspec.json.encode(record).decode())
        await self.failures.tell()
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + TIDY_SECONDS
            await self._client.expire(self._key, HASH_SECONDS)
            gone = forgotten(await self._all(), now_us=record.at_us)
            if gone:
                await self._client.hdel(self._key, *gone)
            await self.failures.forget_others(self._watch.keys)

    async def _run(self) -> None:
        from redis.exceptions import RedisError

        while True:
            stop_if_cancelled()
            with contextlib.suppress(RedisError, OSError):
                await self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def _all(self) -> list[WorkerRecord]:
        from redis.exceptions import RedisError

        if self._client is None:
            return []
        try:
            found = await self._client.hvals(self._key)
        except (RedisError, OSError):
            return []
        records = []
        for text in found:
            with contextlib.suppress(msgspec.MsgspecError):  # another version's
                records.append(_read.decode(text))
        return records


def forgotten(records: Iterable[WorkerRecord], *, now_us: int) -> list[str]:
    """The lost workers that are remembered no longer: too long gone, or too many."""
    lost = sorted((one for one in records if now_us - one.at_us > LOST_US), key=lambda one: -one.at_us)
    return [one.id for place, one in enumerate(lost) if place >= LOST_KEPT_MAX or now_us - one.at_us > KEPT_US]


def reserve_times(recent: Sequence[Facts], *, since_us: int) -> tuple[int | None, int | None]:
    """Median and 99th percentile of how long it took to hold something, of the latest requests since then."""
    times: list[int] = []
    for facts in islice(reversed(recent), LOOKED_AT_MAX):
        if facts.at_us < since_us:
            break
        times += [attempt.reserve_us for attempt in facts.attempts]
    if not times:
        return None, None
    times.sort()
    return times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]


def memory_bytes() -> int:
    """What this process has in memory now; where the system does not say, the most that it had."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
