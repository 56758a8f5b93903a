"""Azure checks requests a minute in slices of ten seconds: what is admitted here is never refused there."""

import asyncio
import time
from random import Random
from typing import Any

import pytest

from apikeyrouter.domain.components.limits import LimitRow, compile_limits
from apikeyrouter.domain.models.accounting import Admission, LimitKind
from apikeyrouter.domain.models.system_error import NoEligibleKeysError
from apikeyrouter.infrastructure.adapters.azure_adapter import AzureOpenAIAdapter
from apikeyrouter.infrastructure.config.limit_profiles import profile_for
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter.simulator.limits import FixedWindow
from tests.ledger.support import SECOND, lane, local_cell, used, wish
from tests.router.house import MASTER_KEY, house

pytestmark = pytest.mark.asyncio(loop_scope="package")

OFFERED_SECONDS = 22
AZURE: dict[str, Any] = {
    "organisations": [{"id": "sub", "dialect": "azure", "keys": ["az-sim-1"], "limits": [{"rpm": 60}]}]
}


@pytest.mark.parametrize("rpm", [5, 60, 65, 600])
@pytest.mark.parametrize("seed", range(4))
async def test_no_slice_wherever_it_begins_gets_more_than_its_share(rpm: int, seed: int) -> None:
    random = Random(seed)
    cell = await local_cell(lane("lane", *compile_limits(LimitRow(rpm=rpm), profile_for("azure"))))
    begins_us, pause_us = random.randrange(10 * SECOND), 50_000
    slices = FixedWindow(limit=max(1, rpm // 6), period_ns=10_000_000_000)
    arrivals = []
    for _ in range(10 * 60 * SECOND // pause_us):
        cell.time.now_us += pause_us
        request = wish()
        if isinstance(await cell.reserve(request), Admission):
            arrivals.append(cell.time.now_us + begins_us + random.randrange(400_000))
            await cell.settle(used(request.rid))
    for arrived_us in sorted(arrivals):
        assert slices.wait_ns(1, arrived_us * 1000) == 0
        slices.take(1, arrived_us * 1000)
    assert len(arrivals) >= rpm * 10 * 3 // 5


async def test_a_simulated_deployment_refuses_nothing(simulator: SimulatorProcess) -> None:
    async with SimulatorProcess(AZURE) as azure:
        parts: dict[str, Any] = {
            "providers": {"az": {"adapter": "azure", "base_url": azure.base_url("azure")}},
            "limits": [{"quota_group": "sub", "rpm": 60}],
        }
        key = {"id": "z1", "provider": "az", "key": "az-sim-1", "quota_group": "sub"}
        async with house(simulator, InMemoryStateStore(), [key], **parts) as made:
            until, denied = time.monotonic() + OFFERED_SECONDS, 0
            while time.monotonic() < until:
                try:
                    await made.route(model="gpt-4o-mini")
                except NoEligibleKeysError:
                    denied += 1
                await asyncio.sleep(0.02)
        seen = (await azure.report())["organisations"]["sub"]
    assert denied > 0, "more was offered than there is room for"
    assert seen["completed"] >= 20
    assert seen["arrived"] == seen["completed"], seen


async def test_what_a_keys_metadata_declares_is_read_as_azure_means_it() -> None:
    async with ApiKeyRouter(config={"encryption_key": MASTER_KEY}) as router:
        await router.register_provider("az", AzureOpenAIAdapter("http://127.0.0.1:9"))
        await router.register_key("az-sim-1", "az", {"limits": {"rpm": 60}})
        lanes = [router._configuration.lane_config(lane_id) for lane_id in router.catalogue.lane_ids()]
    [found] = [limit for config in lanes for limit in config.limits]
    assert (found.name, found.kind, found.amount) == ("rpm", LimitKind.SLIDING, 10)
