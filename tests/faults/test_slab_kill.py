"""Real processes that admit from slabs on a real server, and are killed with -9; a provider counts what it was sent."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.faults.slab_worker import BOUND, COST, SENT, Did, Job
from tests.servers import Server, default_flavour, running

LONG = os.environ.get("AKR_LONG") == "1"
SECONDS, KILLS = (60.0, 20) if LONG else (2.5, 1)
PER_SECOND, AT_ONCE = 200, 900
LEASE_SECONDS = 1.0


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that nobody else uses."""
    with running(default_flavour()) as made:
        yield made


class Crew:
    """Workers that run, and what each wrote to the provider."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._running: list[tuple[subprocess.Popen[bytes], int]] = []
        self.sent: list[list[int]] = []
        self.did: list[Did] = []

    def begin(self) -> None:
        """One more worker."""
        here, there = os.pipe()
        job = msgspec.structs.replace(self._job, sent=there)
        command = [sys.executable, "-m", "tests.faults.slab_worker", msgspec.json.encode(job).decode()]
        process = subprocess.Popen(command, pass_fds=(there,), stdout=subprocess.PIPE)
        os.close(there)
        self._running.append((process, here))

    def kill(self) -> None:
        """The oldest dies, and another begins."""
        process, here = self._running.pop(0)
        process.send_signal(signal.SIGKILL)
        self._read(process, here)
        self.begin()

    def join(self) -> None:
        """All come to their end."""
        while self._running:
            self._read(*self._running.pop())

    def _read(self, process: subprocess.Popen[bytes], here: int) -> None:
        with open(here, "rb") as pipe:
            told = pipe.read()
        output, _ = process.communicate()
        if output:
            self.did.append(msgspec.json.decode(output, type=Did))
        whole = told[: len(told) // SENT.size * SENT.size]
        self.sent.append([at for (at,) in SENT.iter_unpack(whole)])


def most_over(sent: list[int]) -> float:
    """By how much a bucket of AT_ONCE that drains PER_SECOND was passed at most, in requests."""
    level, last, most = 0.0, 0, 0.0
    for at in sorted(sent):
        level = max(0.0, level - (at - last) * PER_SECOND / 1e9) + 1
        last, most = at, max(most, level - AT_ONCE)
    return most


async def test_no_limit_is_passed_and_no_money_lost_when_workers_are_killed(server: Server) -> None:
    job = Job(
        url=server.url, slabs=True, per_second=65, seconds=SECONDS, limit_per_second=PER_SECOND,
        limit_at_once=AT_ONCE, lease_us=int(LEASE_SECONDS * 1e6),
    )  # fmt: skip
    crew = Crew(job)
    with ExitStack() as stack:
        stack.callback(crew.join)
        for _ in range(3):
            crew.begin()
        ledger = ScriptLedger(RedisEngine(server.url))
        await ledger.open()
        for _ in range(KILLS):
            await asyncio.sleep(SECONDS / (KILLS + 1))
            crew.kill()
            for scope in await ledger.scopes(["all", "client0"]):
                assert scope.settled + scope.held + scope.suspense <= scope.limit
    sent = [at for each in crew.sent for at in each]
    assert most_over(sent) <= 0
    assert all(did.by_slab > did.admitted / 3 for did in crew.did)
    assert len(crew.did) == 3
    while any(state.held for state in await ledger.scopes(["all"])):
        await asyncio.sleep(0.1)
        await ledger.sweep()
    (state,) = await ledger.scopes(["all"])
    (lane,) = await ledger.lanes(["lane"])
    survivors = sum(len(each) for each in crew.sent[KILLS:]) * COST
    assert lane.in_flight == 0
    assert state.settled >= survivors
    assert state.settled + state.suspense >= len(sent) * COST
    assert state.settled <= len(sent) * BOUND
    await ledger.close()
