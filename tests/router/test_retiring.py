"""Adapters that a reload replaced: they end what they have begun, and then they are closed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.catalogue import Provider
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.serving import retiring
from apikeyrouter.serving.retiring import Retired
from tests.router.house import MASTER_KEY, until

ASKED: dict[str, Any] = {"model": "weather", "operation": "http", "payload": {"q": "Rome"}}


class Upstream:
    """An HTTP API that answers when it is told to."""

    def __init__(self) -> None:
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.open = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.open += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked.set()
                await self.may_answer.wait()
                writer.write(
                    b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{"text":"dry"}'
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()


def config(**providers: str) -> CompiledConfig:
    """Providers of the generic adapter by id, at these addresses, a key for each."""
    return compile_config(
        read_config(
            {
                "providers": {
                    id_: {"adapter": "generic", "base_url": url, "options": {"method": "GET", "content": "text"}}
                    for id_, url in providers.items()
                },
                "keys": [{"id": f"key-{id_}", "provider": id_, "key": f"secret-of-{id_}-1"} for id_ in providers],
            }
        ),
        environ={},
    )


@contextlib.asynccontextmanager
async def routing() -> AsyncIterator[ApiKeyRouter]:
    async with ApiKeyRouter(InMemoryStateStore(), config={"encryption_key": MASTER_KEY}) as router:
        yield router


@pytest.mark.parametrize("stays", [True, False], ids=["replaced", "dropped"])
async def test_a_call_ends_with_the_adapter_that_it_began_with_which_is_closed_then(stays: bool) -> None:
    async with upstream() as one, upstream() as other, routing() as router:
        await router.apply(config(api=one.url))
        calling = asyncio.create_task(router.route(ASKED))
        await one.asked.wait()
        await router.apply(config(**{"api" if stays else "else": other.url}))
        other.may_answer.set()
        assert (await router.route(ASKED)).content == "dry"
        assert (one.open, other.open, len(router._retired) > 0) == (1, 1, True)
        one.may_answer.set()
        assert (await calling).content == "dry"
        await until(lambda: one.open == 0)
        assert (other.open, len(router._retired)) == (1, 0)
        assert (await router.route(ASKED)).content == "dry"


async def test_a_router_closes_what_it_replaced_a_moment_ago() -> None:
    async with upstream() as one:
        one.may_answer.set()
        async with routing() as router:
            await router.apply(config(api=one.url))
            await router.route(ASKED)
            assert one.open == 1
            await router.apply(config())
        await until(lambda: one.open == 0)


async def test_under_load_those_calls_are_waited_for_that_may_have_chosen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    retired, gone = Retired(), Provider(id="api", adapter=object(), made_here=True)
    retired.put(gone)
    retired.put(Provider(id="mine", adapter=object()))  # somebody else's to close
    assert retired.unused(1, [b"a"]) == []
    monkeypatch.setattr(retiring, "CHOSEN_SECONDS_MAX", 0.0)
    assert retired.unused(2, [b"a", b"b"]) == []
    assert retired.unused(2, [b"b", b"later"]) == []
    assert retired.unused(1, [b"later"]) == [gone]
    assert len(retired) == 0
