"""kill -9 of a primary while processes are under load: they find its successor, and the books equal the bill."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.faults.plan import KEYS, PARTS
from tests.router.house import SCOPE, SIMULATED, House, house, until
from tests.servers import Server, binaries, default_flavour
from tests.topologies.deployments import cluster, sentinels
from tests.topologies.deployments import until as by_and_by

LONG = bool(os.environ.get("AKR_LONG"))
PROCESSES, CONCURRENCY = (6, 8) if LONG else (2, 4)
FLAVOURS = list(binaries()) if LONG else [default_flavour()]
WAIT_SECONDS_MAX = 100.0
"""Processes begin slowly on a busy machine."""
CELL_KEY = "apikeyrouter:{c:main}:L"
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not binaries(), reason="no server programs here"),
]


class Process:
    """One caller, and the last that it said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.facts: dict[str, int] = {"answered": 0}
        self.listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if line.startswith(b"{"):
                self.facts.update(json.loads(line))

    async def stop(self) -> dict[str, int]:
        """End its calls; what it was answered."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        async with asyncio.timeout(60):
            await self.listening
            await self.process.wait()
        assert self.facts.get("done") == 1
        return self.facts


@asynccontextmanager
async def callers(
    url: str, simulator: SimulatorProcess, *, plan: str = "tests.faults.plan"
) -> AsyncIterator[list[Process]]:
    """Processes under load; killed at exit if they are still there."""
    arguments = (url, simulator.openai_url, simulator.anthropic_url, str(CONCURRENCY), plan)
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.caller", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(PROCESSES)
    ]  # fmt: skip
    try:
        yield [Process(process) for process in started]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def all_go_on(working: list[Process], count: int = 20) -> None:
    """Each is answered so many times more."""
    before = [process.facts["answered"] for process in working]
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while any(process.facts["answered"] < seen + count for process, seen in zip(working, before, strict=True)):
            await asyncio.sleep(0.02)


async def survives(url: str, primary: Server) -> None:
    """Load, kill -9, load; then three books agree: the callers', the ledger's, the providers'."""
    async with SimulatorProcess(SIMULATED) as simulator, callers(url, simulator) as working:
        await all_go_on(working)
        primary.stop()
        await all_go_on(working)
        told = [await process.stop() for process in working]
        assert all(facts["forgotten"] >= 1 for facts in told)
        async with house(simulator, RedisStateStore(url), KEYS, **PARTS) as made:
            cost = sum(facts["cost"] for facts in told)
            assert await made.billed() == cost
            assert await booked_in_the_end(made, cost)


async def booked_in_the_end(made: House, cost: int) -> bool:
    """Nothing is held, nothing suspended, and what was told is settled to the nano-dollar."""
    ledger = made.router.ledger

    async def books() -> bool:
        (state,) = await ledger.scopes([SCOPE])
        return (state.settled, state.held, state.suspense) == (cost, 0, 0)

    await until(books)
    return await ledger.audit(lanes=made.router.catalogue.lane_ids(), scopes=[SCOPE]) == []


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_processes_under_load_survive_the_death_of_a_primary_behind_sentinels(flavour: str) -> None:
    with sentinels(flavour) as watched:
        await asyncio.to_thread(by_and_by, watched.settled)
        primary = watched.primary()
        assert primary is not None
        await survives(watched.url, primary)


@pytest.mark.skipif(not LONG, reason="the long variant: AKR_LONG=1, make faults")
@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_processes_under_load_survive_the_death_of_a_clusters_primary(flavour: str) -> None:
    with cluster(flavour) as sharded:
        await survives(sharded.url, sharded.owner(CELL_KEY))
