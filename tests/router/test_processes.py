"""Several processes on one store: one limit, one budget, exactly."""

import asyncio
import json
import sys

import pytest
import redis

from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import SCOPE, house

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(120)]
PROCESSES = 2
REQUESTS = 60


async def run_elsewhere(redis_url: str, simulator: SimulatorProcess, plan: str) -> dict[str, int]:
    """What a process of its own says about its share."""
    arguments = (redis_url, simulator.openai_url, simulator.anthropic_url, plan, str(REQUESTS))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.router.sharing", *arguments, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    facts: dict[str, int] = json.loads(told.splitlines()[-1])
    return facts


async def test_processes_share_one_limit_exactly(simulator: SimulatorProcess, redis_url: str) -> None:
    shares = await asyncio.gather(*(run_elsewhere(redis_url, simulator, "limit") for _ in range(PROCESSES)))
    assert sum(share["served"] for share in shares) == 50
    assert sum(share["denied"] for share in shares) == PROCESSES * REQUESTS - 50
    seen = (await simulator.report())["organisations"]["org-a"]
    assert (seen["arrived"], seen["admitted"]) == (50, 50)


async def test_processes_share_one_budget_exactly(simulator: SimulatorProcess, redis_url: str) -> None:
    shares = await asyncio.gather(*(run_elsewhere(redis_url, simulator, "budget") for _ in range(PROCESSES)))
    served, cost = sum(share["served"] for share in shares), sum(share["cost"] for share in shares)
    seen = (await simulator.report())["total"]
    assert 0 < served < PROCESSES * REQUESTS
    assert seen["completed"] == served
    assert seen["cost_nanousd"] == cost <= 100_000
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() > 0


async def test_a_budget_survives_a_restart(simulator: SimulatorProcess, redis_url: str) -> None:
    from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore

    spent = 0
    for _ in range(2):
        async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
            for _ in range(3):
                await made.route()
            settled = await made.at_rest()
            assert settled > spent
            spent = settled
            assert [state.id for state in await made.router.ledger.scopes([SCOPE])] == [SCOPE]
    assert spent == await made.billed()
