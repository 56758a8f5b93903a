"""A running simulator for each test, its children shared by a module where the configuration is the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from apikeyrouter.simulator import SimulatorProcess

CONFIG: dict[str, Any] = {
    "organisations": [
        {"id": "org-a", "keys": ["sk-sim-key-number-1", {"key": "sk-sim-key-number-2", "id": "second"}], "cache": True},
        {"id": "org-b", "dialect": "anthropic", "keys": ["sk-ant-sim-key"], "cache": True, "workspace": "wrkspc_1"},
        {"id": "proj-g", "dialect": "gemini", "keys": ["AIza-sim-gemini-key"], "cache": True, "thinking_tokens": 5},
        {"id": "res-z", "dialect": "azure", "keys": ["azure-sim-key"]},
        {"id": "org-q", "dialect": "groq", "keys": ["gsk_sim_key"], "cache": True},
        {"id": "org-m", "dialect": "mistral", "keys": ["mistral-sim-key"]},
        {"id": "acc-d", "dialect": "deepseek", "keys": ["sk-deepseek-sim"], "cache": True},
        {"id": "acc-r", "dialect": "openrouter", "keys": ["sk-or-v1-sim"]},
    ],
}


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def shared_simulator() -> AsyncIterator[SimulatorProcess]:
    """One child for the whole folder."""
    async with SimulatorProcess(CONFIG) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="package")
async def simulator(shared_simulator: SimulatorProcess) -> SimulatorProcess:
    """The shared child, untouched."""
    await shared_simulator.reset()
    return shared_simulator


@pytest_asyncio.fixture(loop_scope="package")
async def openai(simulator: SimulatorProcess) -> AsyncIterator[AsyncOpenAI]:
    """The official SDK, without retries."""
    async with AsyncOpenAI(api_key="sk-sim-key-number-1", base_url=simulator.openai_url, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="package")
async def anthropic(simulator: SimulatorProcess) -> AsyncIterator[AsyncAnthropic]:
    """The official SDK, without retries."""
    async with AsyncAnthropic(api_key="sk-ant-sim-key", base_url=simulator.anthropic_url, max_retries=0) as client:
        yield client
