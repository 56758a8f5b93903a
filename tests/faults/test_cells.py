"""Cells on the primaries of a Cluster, real processes, a hard budget: never over, whoever dies, and all is used."""

import asyncio
import contextlib
import os

import pytest

from apikeyrouter.domain.models.accounting import ScopeState
from apikeyrouter.domain.models.system_error import LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.spread_ledger import SpreadLedger
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.faults.plan_of_cells import KEYS, LIMIT_USD, PARTS, SETTINGS
from tests.faults.test_failover import Process, all_go_on, callers
from tests.faults.test_kill import kill_nine
from tests.router.house import SCOPE, SIMULATED, House, house, until
from tests.servers import binaries
from tests.topologies.deployments import Cluster, cluster
from tests.topologies.test_cluster import another_primary, moved

LIMIT = int(LIMIT_USD * 10**9)
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.environ.get("AKR_LONG"), reason="the long variant: AKR_LONG=1, make faults"),
]


def key_of(cell: str) -> str:
    """A key in the cell's slot."""
    return f"apikeyrouter:{{c:{cell}}}:L"


async def budget(made: House) -> ScopeState:
    """The budget, in all cells together, as soon as all of them answer."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(LedgerUnavailableError):
                (state,) = await made.router.ledger.scopes([SCOPE])
                return state
            await asyncio.sleep(0.1)


async def used_up(made: House, working: list[Process]) -> None:
    """Every caller is refused, again and again, and nothing more is spent."""
    async with asyncio.timeout(200):
        while (await budget(made)).settled < 0.97 * LIMIT:
            await asyncio.sleep(0.2)
        before = [process.facts.get("refused", 0) for process in working]
        while any(process.facts.get("refused", 0) < seen + 20 for process, seen in zip(working, before, strict=True)):
            await asyncio.sleep(0.05)


async def at_rest(made: House) -> ScopeState:
    """The budget once no lease is open any more."""

    async def ended() -> bool:
        return (await budget(made)).held == 0

    await until(ended)
    return await budget(made)


@pytest.mark.parametrize("flavour", list(binaries()))
@pytest.mark.parametrize("dies", ["main", "north"])
async def test_a_budget_over_cells_holds_while_primaries_and_workers_die_and_slots_are_moved(
    flavour: str, dies: str
) -> None:
    with cluster(flavour) as sharded:
        assert len({sharded.owner(key_of(name)).url for name in ("main", "north", "south")}) == 3
        async with (
            SimulatorProcess(SIMULATED) as simulator,
            house(simulator, RedisStateStore(sharded.url), KEYS, settings=SETTINGS, **PARTS) as made,
            callers(sharded.url, simulator, plan="tests.faults.plan_of_cells") as working,
        ):
            await all_go_on(working)
            killed, *living = working
            kill_nine(killed.process)
            await asyncio.to_thread(move_one, sharded, "south")
            await all_go_on(living, 5)
            sharded.owner(key_of(dies)).stop()
            await used_up(made, living)
            told = [await process.stop() for process in living]
            state = await at_rest(made)
            assert sum(facts["cost"] for facts in told) <= await made.billed() <= LIMIT
            assert 0.97 * LIMIT <= state.settled + state.suspense <= LIMIT
            assert isinstance(made.router.ledger, SpreadLedger)
            assert await made.router.ledger.audit(lanes=made.router.catalogue.lane_ids(), scopes=[SCOPE]) == []


def move_one(sharded: Cluster, cell: str) -> None:
    """Move a cell's slot to another primary."""
    moved(sharded, key_of(cell), another_primary(sharded, sharded.owner(key_of(cell))))
