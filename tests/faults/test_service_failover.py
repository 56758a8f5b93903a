"""The HTTP service behind Sentinels and over a Cluster: its primary is killed under load, clients are served again, and
what they were told is what the budget says and the providers bill."""

import asyncio
import os
from typing import Any

import httpx
import pytest

from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import SIMULATED
from tests.servers import Server, binaries
from tests.service.running import MANAGEMENT_KEY, Running, providers_of, running_service
from tests.topologies.deployments import cluster, sentinels
from tests.topologies.deployments import until as by_and_by

LONG = bool(os.environ.get("AKR_LONG"))
CLIENTS, AT_LEAST = 6, 40
WAIT_SECONDS_MAX = 90.0
NANO = 10**9
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not LONG, reason="the long variant: AKR_LONG=1, make faults"),
]
REQUEST = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}


def config_of(simulator: SimulatorProcess) -> dict[str, Any]:
    """Two keys, a hard budget."""
    return {
        "providers": providers_of(simulator),
        "keys": [
            {"id": "a1", "provider": "openai", "key": "sk-sim-house-a-number-1", "quota_group": "org-a"},
            {"id": "b1", "provider": "openai", "key": "sk-sim-house-b-number-1", "quota_group": "org-b"},
        ],
        "budgets": [{"name": "all", "scope": "global", "limit_usd": 1000, "period": "total", "enforcement": "hard"}],
        "routing": {"lease_ms": 4000},
    }


class Load:
    """Clients that ask on and on."""

    def __init__(self, service: Running) -> None:
        self.service, self.answered, self.refused, self.cost = service, 0, 0, 0
        self.others: set[int] = set()
        self.stopping = False

    async def ask(self, client: httpx.AsyncClient) -> None:
        """One after the other; what is worth a retry is asked again."""
        while not self.stopping:
            answer = await client.post("/v1/chat/completions", json=REQUEST)
            if answer.status_code == 200:
                self.answered += 1
                self.cost += round(float(answer.headers["x-akr-cost-usd"]) * NANO)
                continue
            self.refused += 1
            if answer.status_code not in (429, 503):
                self.others.add(answer.status_code)
            await asyncio.sleep(0.05)

    async def goes_on(self) -> None:
        """So many more are answered."""
        wanted = self.answered + AT_LEAST
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while self.answered < wanted:
                await asyncio.sleep(0.02)


async def survives(url: str, primary: Server) -> None:
    """Load, kill -9, load; then three books agree."""
    async with SimulatorProcess(SIMULATED) as simulator, running_service(url, config_of(simulator)) as service:
        load = Load(service)
        async with httpx.AsyncClient(base_url=service.url, timeout=30.0) as client:
            asking = [asyncio.create_task(load.ask(client)) for _ in range(CLIENTS)]
            await load.goes_on()
            primary.stop()
            await load.goes_on()
            load.stopping = True
            await asyncio.gather(*asking)
            assert load.others == set(), "an outage is 503, nothing else"
            headers = {"X-API-Key": MANAGEMENT_KEY}
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                while True:
                    budgets = (await client.get("/api/v1/budgets", headers=headers)).json()
                    if _spent(budgets) == (load.cost, 0):
                        break
                    await asyncio.sleep(0.1)
            ready = await client.get("/health/ready")
            assert ready.status_code == 200
        report = await simulator.report()
        assert report["total"]["cost_nanousd"] == load.cost


def _spent(budgets: Any) -> tuple[int, int]:
    """Settled, and what is held or suspended, in nano-dollars."""
    (row,) = budgets["budgets"]
    return round(float(row["settled_usd"]) * NANO), round((float(row["held_usd"]) + float(row["suspense_usd"])) * NANO)


@pytest.mark.parametrize("flavour", list(binaries()))
async def test_a_service_behind_sentinels_survives_the_death_of_its_primary(flavour: str) -> None:
    with sentinels(flavour) as watched:
        await asyncio.to_thread(by_and_by, watched.settled)
        primary = watched.primary()
        assert primary is not None
        await survives(watched.url, primary)


@pytest.mark.parametrize("flavour", list(binaries()))
async def test_a_service_over_a_cluster_survives_the_death_of_its_ledgers_primary(flavour: str) -> None:
    with cluster(flavour) as sharded:
        await survives(sharded.url, sharded.owner("apikeyrouter:{c:main}:L"))
