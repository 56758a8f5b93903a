"""Ways to a provider: names that move, HTTPS through a proxy, and how many connections are kept."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from apikeyrouter.infrastructure.adapters import lean_connection, lean_transport
from apikeyrouter.infrastructure.adapters.http_transport import AiohttpTransport
from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport
from apikeyrouter.infrastructure.adapters.transport import ConnectFailed, Timeouts
from tests.adapters.raw_upstream import OK, ask, open_connections, post, says, self_signed, until, upstream
from tests.adapters.test_transport_origins import trusting

NAME = "provider.test"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"


@contextlib.asynccontextmanager
async def listening(host: str, port: int, said: bytes) -> AsyncIterator[int]:
    """A server at one of this machine's loopback addresses that answers each request with `said`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n{}")
                writer.write(HEAD + said)
        writer.close()

    server = await asyncio.start_server(serve, host, port)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


@contextlib.asynccontextmanager
async def moving(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, list[str]]]:
    """A name that stands for the address in the list, with a server at 127.0.0.1 that says old, at 127.0.0.2 new."""
    look_up, stands_for = socket.getaddrinfo, ["127.0.0.1"]

    def resolved(host: Any, *more: Any, **named: Any) -> Any:
        if host == NAME and not named.get("flags"):
            host = stands_for[0]
        return look_up(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    async with listening("127.0.0.1", 0, b"old") as port, listening("127.0.0.2", port, b"new"):
        yield f"http://{NAME}:{port}", stands_for


async def test_a_new_connection_goes_where_the_name_leads_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_connection, "IDLE_SECONDS", 0.05)
    async with moving(monkeypatch) as (url, stands_for), LeanTransport() as transport:
        assert await ask(transport, url) == b"old"
        stands_for[0] = "127.0.0.2"
        await until(lambda: open_connections(transport) == 0)
        assert await ask(transport, url) == b"new"


async def test_a_connection_that_is_always_in_use_follows_the_name_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_connection, "AGE_SECONDS", 0.0)
    monkeypatch.setattr(lean_connection, "IDLE_SECONDS", 0.3)
    async with moving(monkeypatch) as (url, stands_for), LeanTransport() as transport:
        assert await ask(transport, url) == b"old"
        stands_for[0] = "127.0.0.2"
        async with asyncio.timeout(20):
            while await ask(transport, url) == b"old":
                pass
        assert open_connections(transport) == 1


async def test_an_old_connection_finishes_its_answer_before_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slowly(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        for byte in b"hello":
            await asyncio.sleep(0.1)
            writer.write(bytes([byte]))

    monkeypatch.setattr(lean_connection, "AGE_SECONDS", 0.0)
    brief = Timeouts(connect=5.0, first_byte=0.15, idle=20.0, total=20.0)
    async with upstream(slowly) as (url, seen), LeanTransport() as transport:
        response = await transport.send(post(url), timeouts=brief)
        assert await response.read() == b"hello"
        await seen.until_ended(1)
        assert open_connections(transport) == 0


async def test_of_many_connections_at_once_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_transport, "IDLE_CONNECTIONS_MAX", 2)
    together = asyncio.Barrier(5)

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        await together.wait()
        writer.write(OK)

    async with upstream(answer) as (url, seen), LeanTransport() as transport:
        assert await asyncio.gather(*(ask(transport, url) for _ in range(5))) == [b"hello"] * 5
        await seen.until_ended(3)
        assert (seen.connections, open_connections(transport)) == (5, 2)


@contextlib.asynccontextmanager
async def tunnels() -> AsyncIterator[tuple[str, list[bytes]]]:
    """An HTTP proxy that opens tunnels and tells what it was asked."""
    asked: list[bytes] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        host, _, port = asked[-1].split(b" ")[1].decode().rpartition(":")
        there = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()


@pytest.mark.parametrize("kind", [LeanTransport, AiohttpTransport])
async def test_https_through_a_proxy_is_a_tunnel_whose_other_end_is_verified(
    kind: type[LeanTransport | AiohttpTransport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with upstream(says(OK), self_signed(tmp_path)) as (url, seen), tunnels() as (proxy, asked):
        monkeypatch.setenv("https_proxy", proxy)
        monkeypatch.setenv("no_proxy", "")
        url = url.replace("http://127.0.0.1", "https://localhost")
        async with kind(ssl=trusting(tmp_path)) as trusts, kind() as trusts_not:
            response = await trusts.send(post(url, authorization="Bearer sk-secret"))
            assert await response.read() == b"hello"
            assert asked[0].startswith(b"CONNECT localhost:")
            assert b"sk-secret" not in asked[0]
            with pytest.raises(ConnectFailed):
                await trusts_not.send(post(url))
        assert len(seen) == 1
