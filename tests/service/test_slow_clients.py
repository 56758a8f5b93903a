"""Clients that take their streams slowly hold up their provider, not the worker's memory; those that leave, nobody."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from apikeyrouter_proxy.http_protocol import ServiceProtocol
from tests.servers import Server
from tests.service.running import WAIT_SECONDS_MAX, Running, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

PIECES, TEXT = 4000, "x" * 8000
"""An answer of 32 MB."""
IN_BETWEEN_MAX = 20 * 2**20
"""More than sockets of one machine hold on two connections, and much less than the answer."""
BUFFERED_MAX = 2 * 2**20
PROMPT, OUTPUT = 7, 4321
PATHS = {"poured": "/v1/chat/completions", "translated": "/v1/messages"}


def _event(told: Any) -> bytes:
    data = b"data: %b\n\n" % (told if isinstance(told, bytes) else json.dumps(told).encode())
    return b"%x\r\n%b\r\n" % (len(data), data)


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


class Provider:
    """Streams faster than anybody reads, as far as it is let."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.sent = 0
        self.writer: asyncio.StreamWriter | None = None
        self.cut = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        self.writer = writer
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(self.pieces):
                piece = _event(_chunk({"content": TEXT}))
                writer.write(piece)
                await writer.drain()
                self.sent += len(piece)
            usage = {"prompt_tokens": PROMPT, "completion_tokens": OUTPUT, "total_tokens": PROMPT + OUTPUT}
            writer.write(_event(_chunk({}, "stop")))
            writer.write(_event({"id": "c", "choices": [], "usage": usage}) + _event(b"[DONE]") + b"0\r\n\r\n")
            await writer.drain()
        except ConnectionError:
            self.cut.set()

    def held_up(self) -> bool:
        """Whether it waits for its bytes to be taken."""
        return self.writer is not None and self.writer.transport.get_write_buffer_size() > 0


@dataclass(slots=True)
class Rig:
    """A service, its provider, and one client that has asked and read the head of its answer."""

    service: Running
    provider: Provider
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def stuck(self) -> None:
        """Wait until nobody takes anything from anybody."""

        async def so() -> bool:
            connections = self.service.server.server_state.connections
            paused = [one.flow.write_paused for one in connections if isinstance(one, ServiceProtocol)]
            return paused == [True] and self.provider.held_up()

        await wait_until(so)

    def buffered(self) -> int:
        """Bytes that the worker keeps for the client."""
        return sum(one.transport.get_write_buffer_size() for one in self.service.server.server_state.connections)

    async def settled(self) -> Any:
        """The facts of the call, once it is over and booked."""
        router = self.service.runtime.router
        assert await router.drain(WAIT_SECONDS_MAX)
        assert router.books.open == {}
        assert all(lane.in_flight == 0 for lane in await router.ledger.lanes(router.catalogue.lane_ids()))
        return router.decisions[-1]


@contextlib.asynccontextmanager
async def rigged(server: Server, path: str, *, pieces: int = PIECES) -> AsyncIterator[Rig]:
    provider = Provider(pieces)
    upstream = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    config = {
        "providers": {"openai": {"adapter": "openai", "base_url": f"http://127.0.0.1:{_port(upstream)}/v1"}},
        "keys": [{"id": "k", "provider": "openai", "key": "sk-of-a-slow-client"}],
        "prices": [{"model": "gpt-4o-mini", "input": 1, "output": 1}],
        "routing": {"translate": True},
    }
    body = {"model": "gpt-4o-mini", "stream": True, "max_tokens": 9999, "messages": [{"role": "user", "content": "hi"}]}
    async with running_service(server.url, config) as service:
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**16)
        sent = json.dumps(body).encode()
        head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(sent))
        writer.write(head + sent)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        try:
            yield Rig(service, provider, reader, writer)
        finally:
            writer.close()
            upstream.close()


def _port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


@pytest.mark.parametrize("way", list(PATHS))
async def test_a_client_that_reads_slowly_holds_up_its_provider_and_gets_all_of_it(
    service_valkey: Server, way: str
) -> None:
    async with rigged(service_valkey, PATHS[way]) as rig:
        await rig.stuck()
        assert rig.provider.sent < IN_BETWEEN_MAX
        assert rig.buffered() < BUFFERED_MAX
        texts, tail = 0, b""
        async with asyncio.timeout(2 * WAIT_SECONDS_MAX):
            while not tail.endswith(b"\r\n0\r\n\r\n"):
                piece = await rig.reader.read(2**16)
                texts += piece.count(b"x")
                tail = (tail + piece)[-2000:]
        facts = await rig.settled()
    assert texts >= PIECES * len(TEXT)
    assert (b"[DONE]" if way == "poured" else b"message_stop") in tail
    assert (facts.outcome, facts.usage.input_tokens, facts.usage.output_tokens) == ("ok", PROMPT, OUTPUT)
    assert facts.cost_nanousd == (PROMPT + OUTPUT) * 1000


@pytest.mark.parametrize("way", list(PATHS))
async def test_a_client_that_leaves_while_it_holds_up_its_provider_cuts_it_off(
    service_valkey: Server, way: str
) -> None:
    async with rigged(service_valkey, PATHS[way], pieces=10**9) as rig:
        await rig.stuck()
        rig.writer.transport.abort()
        facts = await rig.settled()
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await rig.provider.cut.wait()
    assert facts.outcome in ("disconnected", "cancelled")
    assert facts.usage.estimated
    assert facts.cost_nanousd
