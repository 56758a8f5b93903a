"""Connections: kept, noticed when they are gone, closed when nobody wants the answer, and never leaked."""

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable

import pytest

from apikeyrouter.domain.interfaces.wire import UpstreamRequest
from apikeyrouter.infrastructure.adapters import lean_connection
from apikeyrouter.infrastructure.adapters.lean_connection import LeanConnection
from apikeyrouter.infrastructure.adapters.lean_response import LeanResponse
from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport
from apikeyrouter.infrastructure.adapters.transport import (
    ResponseLost,
    SendFailed,
    Timeouts,
    UpstreamTimeout,
)
from tests.adapters.raw_upstream import (
    OK,
    SHORT,
    Make,
    ask,
    open_connections,
    post,
    says,
    silent_server,
    until,
    upstream,
)

BEGUN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"


# --- kept connections ------------------------------------------------------------------------------------------------


async def test_calls_at_once_have_a_connection_each_and_the_last_one_used_is_used_first(make: Make) -> None:
    async with upstream(says(OK)) as (url, seen), make() as transport:
        await asyncio.gather(*(ask(transport, url) for _ in range(5)))
        assert seen.connections == 5
        await asyncio.gather(*(ask(transport, url) for _ in range(5)))
        assert seen.connections == 5


async def test_a_connection_that_the_provider_closed_while_idle_is_not_used() -> None:
    async with upstream(says(OK, close=True)) as (url, seen), LeanTransport() as transport:
        for count in range(1, 4):
            assert await ask(transport, url) == b"hello"
            await seen.until_ended(count)
        assert len(seen) == 3


async def test_bytes_on_an_idle_connection_end_it() -> None:
    async with upstream(says(OK)) as (url, seen), LeanTransport() as transport:
        assert await ask(transport, url) == b"hello"
        seen.writers[0].write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await seen.until_ended(1)
        assert await ask(transport, url) == b"hello"
        assert open_connections(transport) == 1


async def test_a_connection_that_nobody_uses_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_connection, "IDLE_SECONDS", 0.05)
    async with upstream(says(OK)) as (url, seen), LeanTransport() as transport:
        assert await ask(transport, url) == b"hello"
        await seen.until_ended(1)
        assert open_connections(transport) == 0
        assert await ask(transport, url) == b"hello"


class Peer:
    """A server in this very task: what it does is done before the event loop can notice."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    async def serve(self, asking: Awaitable[bytes]) -> socket.socket:
        """Answer one request on a new connection."""
        loop, asked = asyncio.get_running_loop(), asyncio.ensure_future(asking)
        peer, _ = await loop.sock_accept(self.listener)
        peer.setblocking(False)
        assert await loop.sock_recv(peer, 65536)
        await loop.sock_sendall(peer, OK)
        assert await asked == b"hello"
        return peer

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_closed_a_moment_ago_is_noticed_before_it_is_used(reset: bool) -> None:
    with Peer() as server:
        async with LeanTransport() as transport:
            peer = await server.serve(ask(transport, server.url))
            if reset:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            # ask() runs up to its first wait without a turn of the event loop in between
            second = await server.serve(ask(transport, server.url))
            second.close()


@pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop writes later, so that nobody can tell what was accepted
async def test_a_request_of_which_not_a_byte_was_accepted_goes_out_on_a_new_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LeanConnection, "is_usable", lambda self: True)
    with Peer() as server:
        async with LeanTransport() as transport:
            peer = await server.serve(ask(transport, server.url))
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            (await server.serve(ask(transport, server.url))).close()


async def test_a_kept_connection_lost_after_the_request_was_taken_is_ambiguous_and_not_tried_again(make: Make) -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        if len(seen) == 1:
            writer.write(OK)
        else:
            writer.transport.abort()

    async with upstream(answer) as (url, seen), make() as transport:
        assert await ask(transport, url) == b"hello"
        request = UpstreamRequest(method="POST", url=url + "/v1/x", headers=(), body=b"{}")
        with pytest.raises((ResponseLost, SendFailed)) as caught:
            await transport.send(request)
        assert caught.value.sent
        assert len(seen) == 2


async def test_an_answer_before_the_whole_request_was_taken_is_an_answer_whose_connection_is_dropped() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await over.wait()
        writer.transport.abort()

    over = asyncio.Event()
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with LeanTransport() as transport:
        response = await transport.send(post(url, bytes(50_000_000)))
        assert (response.status, await response.read()) == (413, b"no")
        assert open_connections(transport) == 0
    over.set()
    await asyncio.sleep(0.01)
    server.close()


# --- giving up -------------------------------------------------------------------------------------------------------


async def test_closing_an_answer_early_closes_its_connection_at_once(make: Make) -> None:
    async with upstream(says(BEGUN)) as (url, seen), make() as transport:
        response = await transport.send(post(url))
        chunks = response.chunks()
        assert await anext(chunks) == b"one"
        await response.close()
        await seen.until_ended(1)
        with pytest.raises(ResponseLost):
            await anext(chunks)


async def test_who_waits_for_an_answer_that_another_task_closes_hears_of_it(make: Make) -> None:
    async with upstream(says(BEGUN)) as (url, _), make() as transport:
        response = await transport.send(post(url))
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        await response.close()
        with pytest.raises(ResponseLost):
            await reading


async def read_all(transport: LeanTransport, url: str) -> None:
    await ask(transport, url)


async def read_chunks(transport: LeanTransport, url: str) -> None:
    async for _ in (await transport.send(post(url))).chunks():
        pass


@pytest.mark.parametrize(
    ("said", "reading"),
    [(b"", read_all), (b"HTTP/1.1 200 OK\r\nX-", read_all), (BEGUN, read_all), (BEGUN, read_chunks)],
    ids=["before the answer", "in its headers", "in its body", "between chunks"],
)
async def test_a_caller_who_is_cancelled_takes_the_connection_along(
    said: bytes, reading: Callable[[LeanTransport, str], Awaitable[None]]
) -> None:
    async with upstream(says(said)) as (url, seen), LeanTransport() as transport:
        task = asyncio.ensure_future(reading(transport, url))
        await seen.until_seen(1)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await seen.until_ended(1)
        assert open_connections(transport) == 0


async def test_a_caller_who_is_cancelled_while_connecting_leaves_nothing_behind() -> None:
    writers: list[asyncio.StreamWriter] = []
    server, port = await silent_server(writers)
    async with LeanTransport() as transport:
        task = asyncio.create_task(transport.send(post(f"https://127.0.0.1:{port}")))
        await until(lambda: len(writers) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not writers)
        assert open_connections(transport) == 0
    server.close()


async def test_a_timeout_closes_the_connection() -> None:
    async with upstream(says(b"")) as (url, seen), LeanTransport() as transport:
        with pytest.raises(UpstreamTimeout):
            await transport.send(post(url), timeouts=SHORT)
        await seen.until_ended(1)
        assert open_connections(transport) == 0


async def test_the_limit_of_one_call_is_not_the_limit_of_the_next_on_its_connection() -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        if len(seen) == 1:
            writer.write(OK)
        elif len(seen) == 2:
            await asyncio.sleep(0.3)
            writer.write(OK)

    async with upstream(answer) as (url, seen), LeanTransport() as transport:
        await (await transport.send(post(url), timeouts=SHORT)).read()
        assert await ask(transport, url) == b"hello"
        with pytest.raises(UpstreamTimeout) as caught:
            await transport.send(post(url), timeouts=SHORT)
        assert (caught.value.phase, seen.connections) == ("first_byte", 1)


async def test_closing_the_transport_ends_what_is_under_way() -> None:
    async with upstream(says(b"")) as (url, seen), LeanTransport() as transport:
        task = asyncio.create_task(transport.send(post(url)))
        await seen.until_seen(1)
        await transport.close()
        with pytest.raises(ResponseLost):
            await task
        await seen.until_ended(1)


# --- back-pressure ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
async def test_a_reader_who_waits_holds_the_provider_back(whole: bool) -> None:
    size = 32_000_000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    async with upstream(says(head + bytes(size))) as (url, seen), LeanTransport() as transport:
        hasty = Timeouts(first_byte=2.0, idle=0.1)
        response = await transport.send(post(url), timeouts=hasty)
        assert isinstance(response, LeanResponse)
        await until(response.is_full)
        await asyncio.sleep(0.2)  # the provider is not silent, it is held back: no idle timeout
        assert seen.writers[0].transport.get_write_buffer_size() > 0
        assert response._buffered < 1_000_000
        if whole:
            assert len(await response.read()) == size
        else:
            assert sum([len(chunk) async for chunk in response.chunks()]) == size
        assert open_connections(transport) == 1


# --- loops -----------------------------------------------------------------------------------------------------------


def test_one_transport_serves_several_event_loops_one_after_the_other() -> None:
    transport = LeanTransport()

    async def run() -> None:
        async with upstream(says(OK)) as (url, seen):
            for _ in range(2):
                assert await ask(transport, url) == b"hello"
            assert seen.connections == 1
            await transport.close()

    for _ in range(2):
        asyncio.run(run())


async def test_a_loop_in_another_thread_has_connections_of_its_own() -> None:
    async with upstream(says(OK)) as (url, seen), LeanTransport() as transport:
        assert await ask(transport, url) == b"hello"
        said: list[bytes] = []

        async def elsewhere() -> None:
            said.append(await ask(transport, url))
            await transport.close()

        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert said == [b"hello"]
        assert await ask(transport, url) == b"hello"
        assert seen.connections == 3
