"""The same three books behind a running service: official SDKs over sockets, and a provider whose streams break.

Every byte of a stream with AKR_LONG=1; else every seventh, and those around its landmarks.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from tests.router.triples import (
    BROKEN,
    DIALECTS,
    REFUSED,
    ROWS,
    Books,
    Read,
    at_bytes,
    opened,
    reading,
    simulated,
    situation,
)
from tests.servers import Server
from tests.service.running import Running, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")


@asynccontextmanager
async def served(server: Server, name: str) -> AsyncIterator[tuple[Books, Running]]:
    """A service over a dialect's simulated providers, and its books."""
    async with simulated(name) as (simulator, config), running_service(server.url, config) as service:
        yield opened(service.runtime.router, simulator, name), service


@asynccontextmanager
async def door(made: Books, service: Running, name: str, lane: int) -> AsyncIterator[Read]:
    """The official SDK over one lane of the service."""
    async with httpx2.AsyncClient(timeout=20) as http:
        yield reading(made.dialect.model, name, http, service.url, {"x-akr-provider": f"p{lane}"})


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("failure", ROWS)
async def test_each_situation_has_its_triple_over_http(service_valkey: Server, name: str, failure: str) -> None:
    async with served(service_valkey, name) as (made, service), door(made, service, name, 0) as read:
        await situation(made, name, failure, read)


@pytest.mark.parametrize("how", ["end_at_byte", "cut_at_byte"])
@pytest.mark.parametrize("name", DIALECTS)
async def test_a_stream_that_ends_or_breaks_at_any_byte_has_its_triple_over_http(
    service_valkey: Server, name: str, how: str
) -> None:
    async with served(service_valkey, name) as (made, service):
        tried = await at_bytes(
            made, name, how, lambda lane: door(made, service, name, lane), broken=BROKEN[name], refused=REFUSED[name]
        )
        assert tried > 80
