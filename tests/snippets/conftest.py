"""Simulated providers that take any key, reached the way the documents reach providers: by the SDKs' own variables."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from apikeyrouter import ApiKeyRouter, Message, RequestIntent
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.simulator import SimulatorProcess
from tests.cli.processes import clean_environ, hear, running

Keep = Callable[[ApiKeyRouter], ApiKeyRouter]


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def open_simulator() -> AsyncIterator[SimulatorProcess]:
    """One child for the folder, with unlimited accounts for whoever asks."""
    async with SimulatorProcess({"open": True}) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="package", autouse=True)
async def simulator(open_simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch) -> SimulatorProcess:
    """The child, untouched; adapters without a base URL find it."""
    await open_simulator.control(clear_failures=True)
    await open_simulator.reset()
    monkeypatch.setenv("OPENAI_BASE_URL", open_simulator.openai_url)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", open_simulator.anthropic_url)
    return open_simulator


@pytest_asyncio.fixture
async def keep() -> AsyncIterator[Keep]:
    """Take over a router that the snippet never closes, and close it when the test is over."""
    async with AsyncExitStack() as stack:

        def kept(router: ApiKeyRouter) -> ApiKeyRouter:
            stack.push_async_callback(router.close)
            return router

        yield kept


@pytest_asyncio.fixture
async def router(keep: Keep) -> ApiKeyRouter:
    """What most snippets take from the text around them: a router with OpenAI and two keys."""
    made = keep(ApiKeyRouter())
    await made.register_provider("openai", OpenAIAdapter())
    await made.register_key("sk-around-1", "openai")
    await made.register_key("sk-around-2", "openai")
    return made


@pytest.fixture
def intent() -> RequestIntent:
    """The other thing that they take from there."""
    return RequestIntent(model="gpt-4", messages=[Message(role="user", content="Hello!")], provider_id="openai")


@pytest.fixture(autouse=True)
def _own_level() -> Iterator[None]:
    """Routers set the log's level for the whole process."""
    before = EventLog.level
    yield
    EventLog.level = before


@pytest.fixture
def service_url(simulator: SimulatorProcess, tmp_path: Path) -> Iterator[str]:
    """A service from nothing over keys found in its environment."""
    environ = clean_environ(
        OPENAI_KEY_1="sk-of-the-service", OPENAI_BASE_URL=simulator.openai_url,
        ANTHROPIC_KEY_1="sk-ant-of-the-service", ANTHROPIC_BASE_URL=simulator.anthropic_url,
    )  # fmt: skip
    arguments = ["-m", "apikeyrouter.cli", "quickstart", "--port", "0", "--json"]
    with running(arguments, cwd=tmp_path, environ=environ) as process:
        yield json.loads(json.dumps(hear(process, "listening")["url"]))
