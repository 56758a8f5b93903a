"""A worker that only admits and books, at a pace, for tests and benchmarks: `python -m tests.faults.slab_worker JOB`.

It writes when it sent each call (nanoseconds of the machine's monotonic clock) to the provider's pipe, before it goes
on, and what it did to its output, at its end.
"""

import asyncio
import contextlib
import os
import struct
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec
import uvloop

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    LaneConfig,
    Limit,
    LimitKind,
    Metric,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
)
from apikeyrouter.domain.models.system_error import LedgerError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.serving.bookkeeping import Bookkeeper
from apikeyrouter.serving.housekeeping import cell_now_us
from apikeyrouter.serving.presence import Presence
from apikeyrouter.serving.slabs import Slabs

COST, BOUND = 600, 1000
CHARGE = Charge(input_tokens=20, output_tokens=30, expected_nanousd=800, bound_nanousd=BOUND)
SENT = struct.Struct("<q")
TICK_SECONDS, PACE_SECONDS = 0.25, 0.005


class Job(msgspec.Struct, kw_only=True):
    """What it does. `clients`: calls come from so many, each with a budget of its own; `sent`: the pipe's number."""

    url: str
    slabs: bool
    per_second: int
    seconds: float
    limit_per_second: int
    limit_at_once: int
    clients: int = 1
    client: int = -1
    budget_nanousd: int = 10**15
    latency_seconds: float = 0.05
    lease_us: int = 30_000_000
    sent: int = -1

    @property
    def lane(self) -> LaneConfig:
        """What the provider meters: requests and tokens."""
        rpm = Limit(
            name="rpm", metric=Metric.REQUESTS, kind=LimitKind.BUCKET, amount=self.limit_per_second,
            period_us=1_000_000, burst=self.limit_at_once, slabs=self.slabs,
        )  # fmt: skip
        tpm = Limit(
            name="tpm", metric=Metric.TOKENS, kind=LimitKind.BUCKET, amount=self.limit_per_second * 1000,
            period_us=1_000_000, burst=self.limit_at_once * 1000, slabs=self.slabs,
        )  # fmt: skip
        return LaneConfig(id="lane", limits=(rpm, tpm), fair=True)

    def scope(self, name: str) -> ScopeConfig:
        """A hard budget."""
        return ScopeConfig(id=name, limit_nanousd=self.budget_nanousd, hard=True, period=Period.TOTAL)

    @property
    def scopes(self) -> list[ScopeConfig]:
        """All budgets: one of everybody, one of each client."""
        return [self.scope(name) for name in ("all", *(f"client{number}" for number in range(self.clients)))]


class Did(msgspec.Struct, kw_only=True):
    """What became of it."""

    asked: int = 0
    admitted: int = 0
    by_slab: int = 0
    by_client: list[int]
    cpu_seconds: float = 0.0


class Worker:
    """The parts of a worker that admit and book, over a real server."""

    def __init__(self, job: Job) -> None:
        self.job, self.did = job, Did(by_client=[0] * job.clients)
        self.ledger = ScriptLedger(RedisEngine(job.url))
        self.books = Bookkeeper(self.ledger)
        self.ledger.on_unanswered = self.books.cancel
        scopes = {scope.id: scope for scope in job.scopes}
        self.slabs = Slabs(
            self.ledger, self.books, Presence(self.ledger, self.books, lease_us=job.lease_us),
            lane_config=lambda _: job.lane, scope_config=scopes.get, now_us=lambda: cell_now_us(self.ledger),
        )  # fmt: skip
        self._open: set[asyncio.Task[None]] = set()

    async def run(self) -> Did:
        """All of the job."""
        await self.ledger.open()
        self.version = (await self.ledger.put(lanes=[self.job.lane], scopes=self.job.scopes)).config_version
        self.books.start()
        keeper = asyncio.create_task(self._repeat(self._keep_house, TICK_SECONDS))
        began, before = time.perf_counter(), time.process_time()
        while (passed := time.perf_counter() - began) < self.job.seconds:
            for _ in range(int(passed * self.job.per_second) - self.did.asked):
                self.did.asked += 1
                task = asyncio.create_task(self._call(self.did.asked))
                self._open.add(task)
                task.add_done_callback(self._open.discard)
            await asyncio.sleep(PACE_SECONDS)
        if self._open:
            await asyncio.wait(self._open)
        keeper.cancel()
        self.slabs.recall()
        await self.books.flush(seconds=10)
        self.did.by_slab, self.did.cpu_seconds = self.slabs.admitted, time.process_time() - before
        await self.books.close()
        await self.ledger.close()
        return self.did

    async def _repeat(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            with contextlib.suppress(LedgerError):
                await work()
            await asyncio.sleep(seconds)

    async def _keep_house(self) -> None:
        self.books.give_up(await self.books.renew(), "its lease was lost")
        await self.ledger.sweep()
        if self.job.slabs:
            await self.slabs.tick(wanted=True)

    async def _call(self, number: int) -> None:
        client = self.job.client if self.job.client >= 0 else number % self.job.clients
        request = ReserveRequest(
            rid=new_rid(), candidates=(Candidate(lanes=("lane",), charge=CHARGE),), scopes=("all", f"client{client}"),
            lease_us=self.job.lease_us, config_version=self.version, principal=f"client{client}", pool="pool",
        )  # fmt: skip
        try:
            answer = await (self.slabs if self.job.slabs else self.ledger).reserve(request)
        except LedgerError:
            return
        if not isinstance(answer, Admission):
            return
        hold = self.books.held(request, answer.index)
        if answer.slab:
            self.slabs.joined(hold, answer.slab)
        self.did.admitted += 1
        self.did.by_client[client] += 1
        if self.job.sent >= 0:
            os.write(self.job.sent, SENT.pack(time.monotonic_ns()))
        await asyncio.sleep(self.job.latency_seconds)
        self.books.hand_in(Settlement(rid=request.rid, input_tokens=20, output_tokens=20, cost_nanousd=COST))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(Worker(msgspec.json.decode(sys.argv[1], type=Job)).run())))
