"""Both transports, on both event loops."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from apikeyrouter.infrastructure.adapters.http_transport import AiohttpTransport
from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport
from tests.adapters.raw_upstream import Make

LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What touches sockets runs on both event loops; the service runs on uvloop, the library wherever it is called."""
    return LOOPS if "transport" in item.path.name else {"asyncio": LOOPS["asyncio"]}


@pytest.fixture(params=[AiohttpTransport, LeanTransport], ids=["aiohttp", "lean"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes the transport under test."""
    made: Make = request.param
    return made
