"""One simulator and one Valkey for the folder; a service for whoever asks."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from apikeyrouter.simulator import SimulatorProcess
from tests.patience import patient
from tests.servers import Server, default_flavour, running
from tests.service.running import Running, providers_of, running_service

__all__ = ["patient"]

SIMULATED: dict[str, Any] = {
    "organisations": [
        {"id": "org-alpha", "keys": ["sk-sim-service-1", "sk-sim-service-2"], "output_tokens": 12},
        {"id": "org-beta", "dialect": "anthropic", "keys": ["sk-ant-sim-service"], "output_tokens": 12},
        {"id": "proj-gamma", "dialect": "gemini", "keys": ["AIza-sim-service"], "output_tokens": 12},
        {"id": "org-slow", "keys": ["sk-sim-slow"], "tokens_per_second": 40, "output_tokens": 2000},
        {"id": "org-brief", "keys": ["sk-sim-brief"], "tokens_per_second": 100, "output_tokens": 60},
        {"id": "org-late", "keys": ["sk-sim-late"], "latency_ms": 30_000},
    ]
}
KEYS: list[dict[str, Any]] = [
    {"id": "k1", "provider": "openai", "key": "sk-sim-service-1", "models": ["gpt-4o-mini", "gpt-4o"]},
    {"id": "k2", "provider": "openai", "key": "sk-sim-service-2", "models": ["gpt-4o-mini", "gpt-4o"]},
    {"id": "a1", "provider": "anthropic", "key": "sk-ant-sim-service", "models": ["claude-haiku-4-5"]},
]


@pytest.fixture(scope="package")
def service_valkey() -> Iterator[Server]:
    """A server of this folder's own, so that nobody flushes it under a running service."""
    with running(default_flavour()) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def shared_simulator() -> AsyncIterator[SimulatorProcess]:
    """One child for the whole folder."""
    async with SimulatorProcess(SIMULATED) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="package")
async def simulator(shared_simulator: SimulatorProcess) -> SimulatorProcess:
    """The shared child, untouched."""
    await shared_simulator.reset()
    return shared_simulator


@pytest.fixture
def config(simulator: SimulatorProcess) -> dict[str, Any]:
    """Both providers, three keys; tests change it before they start a service."""
    return {"providers": providers_of(simulator), "keys": [dict(key) for key in KEYS]}


@pytest_asyncio.fixture(loop_scope="package")
async def service(service_valkey: Server, config: dict[str, Any]) -> AsyncIterator[Running]:
    """A fresh service on the plain configuration."""
    async with running_service(service_valkey.url, config) as started:
        yield started
