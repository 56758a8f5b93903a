"""One simulator for the folder, and both kinds of store."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.patience import patient
from tests.router.house import SIMULATED

__all__ = ["patient"]


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def shared_simulator() -> AsyncIterator[SimulatorProcess]:
    """One child for the whole folder."""
    async with SimulatorProcess(SIMULATED) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="package")
async def simulator(shared_simulator: SimulatorProcess) -> SimulatorProcess:
    """The shared child, untouched."""
    await shared_simulator.control(clear_failures=True)
    await shared_simulator.reset()
    return shared_simulator


@pytest.fixture(params=["memory", "valkey"])
def store(request: pytest.FixtureRequest) -> StateStore:
    """Each kind of store, empty; the ledger follows it."""
    if request.param == "memory":
        return InMemoryStateStore()
    return RedisStateStore(request.getfixturevalue("redis_url"))
