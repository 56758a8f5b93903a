"""One simulator, one Valkey, one service, one page and one browser for the folder."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from apikeyrouter.simulator import SimulatorProcess
from tests.dashboard.between import Between
from tests.dashboard.driving import CHROMIUM, Seat, open_browser, page_for, seat_at
from tests.servers import Server, default_flavour, running
from tests.service.running import MANAGEMENT_KEY, Running, providers_of, running_service

SIMULATED: dict[str, Any] = {
    "organisations": [
        {"id": "north", "keys": ["sk-sim-north-1", "sk-sim-north-2"], "output_tokens": 12},
        {"id": "west", "dialect": "anthropic", "keys": ["sk-ant-sim-west-1"], "output_tokens": 12},
        {"id": "spare", "keys": ["sk-sim-spare-1", "sk-sim-spare-2"], "output_tokens": 12},
    ]
}
CONFIG: dict[str, Any] = {
    "keys": [
        {
            "id": "north-1",
            "provider": "openai",
            "key": "sk-sim-north-1",
            "quota_group": "north",
            "models": ["gpt-4o-mini"],
        },
        {
            "id": "north-2",
            "provider": "openai",
            "key": "sk-sim-north-2",
            "quota_group": "north",
            "models": ["gpt-4o-mini"],
        },
        {"id": "west-1", "provider": "anthropic", "key": "sk-ant-sim-west-1", "models": ["claude-haiku-4-5"]},
    ],
    "limits": [
        {"quota_group": "north", "rpm": 600, "tpm": 200_000, "kind": "bucket"},
        {"key": "north-1", "concurrency": 8},
    ],
    "budgets": [{"name": "daily", "scope": "global", "limit_usd": 10, "period": "daily", "enforcement": "hard"}],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a browser those that need one are left out, and say so."""
    if CHROMIUM is None:
        for item in items:
            if "tests/dashboard" in str(item.path) and "browser" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="no Chromium here: apt-get install chromium"))


@pytest.fixture(scope="package")
def dashboard_valkey() -> Iterator[Server]:
    with running(default_flavour()) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def simulator() -> AsyncIterator[SimulatorProcess]:
    async with SimulatorProcess(SIMULATED) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def service(dashboard_valkey: Server, simulator: SimulatorProcess) -> AsyncIterator[Running]:
    config = {**CONFIG, "providers": providers_of(simulator)}
    async with running_service(dashboard_valkey.url, config) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def browser() -> AsyncIterator[Any]:
    async with open_browser() as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def between(service: Running) -> AsyncIterator[Between]:
    """What stands between the page and the service; tests that point it elsewhere, or let it fail, put it back."""
    async with Between(service.url).open() as opened:
        yield opened


@pytest.fixture(scope="package")
def page_url(between: Between) -> Iterator[str]:
    """The page's process, one for all tests."""
    with page_for(between.url, MANAGEMENT_KEY) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="package")
async def seat(browser: Any, page_url: str) -> AsyncIterator[Seat]:
    """Somebody at the page's door, with a fresh browser profile."""
    async with seat_at(browser, page_url) as seated:
        yield seated


@pytest_asyncio.fixture(loop_scope="package", scope="package")
async def signed_in(browser: Any, page_url: str) -> AsyncIterator[Seat]:
    """Somebody who signed in as an admin once, for all tests."""
    async with seat_at(browser, page_url) as seated:
        await seated.sign_in(MANAGEMENT_KEY)
        yield seated


@pytest.fixture
def operator(signed_in: Seat) -> Iterator[Seat]:
    """The same somebody, on whichever page the last test left; at the end nothing may have gone wrong."""
    yield signed_in
    complaints = [*signed_in.complaints]
    signed_in.complaints.clear()
    assert complaints == []
