"""The HTTP server by raw sockets: keep-alive, pipelining, chunked bodies, nonsense, and who may use the controls."""

from __future__ import annotations

import asyncio
import json

import pytest

from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter.simulator.app import SimulatedProviders
from apikeyrouter.simulator.config import parse_config
from apikeyrouter.simulator.control import ControlPlane
from apikeyrouter.simulator.http_server import BODY_BYTES_MAX, HEADER_BYTES_MAX, Connection, Request

pytestmark = pytest.mark.asyncio(loop_scope="package")

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-sim-key-number-1\r\n"


def request(text: str, *, extra: bytes = b"") -> bytes:
    """One chat request as bytes."""
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}).encode()
    return HEAD + extra + b"content-length: %d\r\n\r\n" % len(body) + body


async def talk(simulator: SimulatorProcess, *pieces: bytes) -> bytes:
    """Everything the server says to ``pieces``, sent one after the other, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(simulator.url.rsplit(":", 1)[1]))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_pipelined_requests_are_answered_in_order(simulator: SimulatorProcess) -> None:
    await simulator.control(settings={"latency_ms": 5})
    closing = request("three", extra=b"connection: close\r\n")
    answer = await talk(simulator, request("one") + request("two") + closing)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.index(b"You said: one") < answer.index(b"You said: two") < answer.index(b"You said: three")


async def test_a_request_that_arrives_byte_by_byte_is_understood(simulator: SimulatorProcess) -> None:
    whole = request("slowly", extra=b"connection: close\r\n")
    assert b"You said: slowly" in await talk(simulator, *(whole[at : at + 1] for at in range(len(whole))))


async def test_a_chunked_request_body_is_understood(simulator: SimulatorProcess) -> None:
    body = request("chunked").partition(b"\r\n\r\n")[2]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7))
    head = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    assert b"You said: chunked" in await talk(simulator, head, chunks + b"0\r\n\r\n")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        HEAD + b"x: " + b"a" * (HEADER_BYTES_MAX + 1) + b"\r\n\r\n",
    ],
    ids=["TLS", "no target", "huge header"],
)
async def test_nonsense_is_a_400_and_the_server_lives_on(simulator: SimulatorProcess, nonsense: bytes) -> None:
    assert (await talk(simulator, nonsense)).startswith(b"HTTP/1.1 400 ")
    assert (await simulator.report())["total"]["arrived"] == 0


async def test_a_body_above_the_maximum_is_refused(simulator: SimulatorProcess) -> None:
    head = HEAD + b"content-length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1)
    answer = await talk(simulator, head, *([b"x" * 1_048_576] * 32), b"x")
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("line", "status"), [(b"GET /v1/nothing", 404), (b"GET /v1/chat/completions", 404), (b"GET /_sim/x", 404)]
)
async def test_an_unknown_path_is_a_404(simulator: SimulatorProcess, line: bytes, status: int) -> None:
    answer = await talk(simulator, line + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)


class RecordingConnection(Connection):
    """A connection from anywhere, without a socket."""

    def __init__(self, peer_host: str) -> None:
        super().__init__(lambda request, connection: None, set())
        self.peer_host = peer_host
        self.status = 0

    def respond(self, status: int, headers: str, body: bytes) -> None:
        """Keep the status."""
        self.status = status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.8.8.8", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("10.0.0.1", 403),
        ("::ffff:10.0.0.1", 403),
        ("fe80::1%eth0", 403),
        ("", 403),
    ],
)
async def test_only_loopback_may_use_the_controls(host: str, status: int) -> None:
    plane = ControlPlane(SimulatedProviders(parse_config({})))
    asked, connection = Request(), RecordingConnection(host)
    asked.method, asked.path = "GET", "/_sim/report"
    plane.handle(asked, connection)
    assert connection.status == status
