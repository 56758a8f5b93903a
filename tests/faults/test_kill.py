"""kill -9 of a worker with streams open and settlements unflushed: nothing stays held, nothing is forgotten."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from apikeyrouter.infrastructure.ledger.records import ReservationRecord
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.faults.plan import CONCURRENCY, KEYS, LEASE_MS, PARTS
from tests.router.house import SCOPE, SIMULATED, House, house, intent, until

STREAMS = 60
SETTLEMENTS = 25


@asynccontextmanager
async def worker(redis_url: str, simulator: SimulatorProcess) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of its own; killed at exit, if nobody did before."""
    arguments = (redis_url, simulator.openai_url, simulator.anthropic_url, str(STREAMS), str(SETTLEMENTS))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.worker", *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def said(process: asyncio.subprocess.Process) -> dict[str, int]:
    """The worker's next line of facts; lines of its log are passed over."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if line.startswith(b"{"):
            facts: dict[str, int] = json.loads(line)
            return facts
    raise AssertionError("the worker ended before it was killed")


def kill_nine(process: asyncio.subprocess.Process) -> None:
    """As the kernel does when memory is short: no handler runs, nothing is flushed."""
    os.kill(process.pid, signal.SIGKILL)


async def sweep_all(made: House) -> None:
    """One sweep, as housekeeping does it: until there is nothing due."""
    while await made.router.ledger.sweep():
        pass


async def orphans(made: House, mine: set[bytes]) -> list[ReservationRecord]:
    """Open reservations of other workers, as of the ledger's time now."""
    await made.router.ledger.sweep()
    return [record for record in await made.router.ledger.reservations() if record.rid not in mine]


async def keep_working(made: House, stop: asyncio.Event) -> int:
    """Load of the worker that lives on; nano-dollars it was told."""
    cost = 0
    while not stop.is_set():
        answer = await made.route(provider_id="other")
        assert answer.cost is not None
        cost += int(answer.cost.amount * 10**9)
    return cost


async def organisations(simulator: SimulatorProcess) -> dict[str, Any]:
    """What each organisation saw."""
    report = await simulator.report()
    found: dict[str, Any] = report["organisations"]
    return found


async def test_a_worker_killed_under_load_leaves_no_hold_no_drift_and_no_debt(redis_url: str) -> None:
    async with (
        SimulatorProcess(SIMULATED) as simulator,
        house(simulator, RedisStateStore(redis_url), KEYS, **PARTS) as made,
        worker(redis_url, simulator) as process,
    ):
        begun = await said(process)
        assert begun["settled"] == SETTLEMENTS
        ready = await said(process)
        assert (ready["streams"], ready["open"]) == (STREAMS, STREAMS)
        assert ready["waiting"] >= SETTLEMENTS >= 20
        stop = asyncio.Event()
        working = [asyncio.create_task(keep_working(made, stop)) for _ in range(4)]
        await until(lambda: len(made.finished) > 20)

        kill_nine(process)
        await process.wait()
        dead = await orphans(made, set(made.router.books.open))
        assert sum("g:org-s:*" in record.lanes for record in dead) == STREAMS
        one_lease_later = made.router.ledger.stamp.now_us + LEASE_MS * 1000

        await until(lambda: made.router.ledger.stamp.now_us > one_lease_later)
        await sweep_all(made)
        still_open = {record.rid for record in await made.router.ledger.reservations()}
        assert still_open.isdisjoint(record.rid for record in dead)

        stop.set()
        earned = sum(await asyncio.gather(*working))
        await at_rest_but_for_suspense(made, settled=begun["cost"] + earned)
        await nothing_was_over_a_limit(simulator)
        await freed_capacity_is_used_again(made)


async def at_rest_but_for_suspense(made: House, *, settled: int) -> None:
    """What usage was told for is settled to the nano-dollar; the dead worker's holds bound the rest."""
    router = made.router
    await until(lambda: router.in_flight == 0)
    assert await router.books.flush(seconds=10)
    billed = await made.billed()
    (state,) = await router.ledger.scopes([SCOPE])
    assert (state.held, state.settled) == (0, settled)
    assert state.settled + state.suspense >= billed
    suspended = await router.ledger.reservations(suspended=True)
    assert len(suspended) == STREAMS + SETTLEMENTS
    assert sum(record.scopes[0][1] for record in suspended) == state.suspense
    lanes = router.catalogue.lane_ids()
    seen = await organisations(made.simulator)
    in_flight = {lane.id: lane.in_flight for lane in await router.ledger.lanes(["g:org-s:*"])}
    assert in_flight["g:org-s:*"] == seen["org-s"]["in_flight"] == 0
    assert await router.ledger.audit(lanes=lanes, scopes=[SCOPE]) == []


async def nothing_was_over_a_limit(simulator: SimulatorProcess) -> None:
    """The providers refused nobody, and saw no more at once than they allow."""
    seen = await organisations(simulator)
    assert [name for name, tally in seen.items() if tally["over_limit"]] == []
    assert STREAMS <= seen["org-s"]["peak_concurrency"] <= CONCURRENCY


async def freed_capacity_is_used_again(made: House) -> None:
    """As many streams as the provider allows find room, and no more."""
    streams = [made.router.route_stream(intent(provider_id="openai")) for _ in range(CONCURRENCY + 5)]
    begun = await asyncio.gather(*(anext(stream) for stream in streams), return_exceptions=True)
    assert sum(not isinstance(first, BaseException) for first in begun) == CONCURRENCY
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]
    assert made.router.books.open == {}


pytestmark = pytest.mark.timeout(120)
