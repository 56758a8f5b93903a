"""Connections: kept, noticed when they are gone, closed when nobody wants the answer, and never leaked."""

import asyncio
import select
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from apikeyrouter.domain.interfaces.wire import UpstreamRequest
from apikeyrouter.infrastructure.adapters import dialing, lean_connection, transports
from apikeyrouter.infrastructure.adapters.http_transport import AiohttpTransport
from apikeyrouter.infrastructure.adapters.lean_connection import LeanConnection
from apikeyrouter.infrastructure.adapters.lean_response import LeanResponse
from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport
from apikeyrouter.infrastructure.adapters.transport import (
    ConnectFailed,
    ResponseLost,
    SendFailed,
    Timeouts,
    TransportError,
    UpstreamTimeout,
)
from tests.adapters.raw_upstream import OK, SHORT, Make, post, says, self_signed, upstream

BEGUN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"


async def ask(transport: LeanTransport | AiohttpTransport, url: str) -> bytes:
    return await (await transport.send(post(url))).read()


def open_connections(transport: LeanTransport | AiohttpTransport) -> int:
    """How many connections a lean transport has."""
    assert isinstance(transport, LeanTransport)
    return 0 if transport._pool is None else len(transport._pool._all)


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
        await asyncio.Event().wait()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with LeanTransport() as transport:
        response = await transport.send(post(url, bytes(50_000_000)))
        assert (response.status, await response.read()) == (413, b"no")
        assert open_connections(transport) == 0
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


async def silent_server(said: list[asyncio.StreamWriter]) -> tuple[asyncio.Server, int]:
    """Accepts, and says nothing: TLS never comes about."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.append(writer)
        await reader.read()
        writer.close()
        said.remove(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


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


@pytest.mark.parametrize(
    ("timeouts", "phase"), [(Timeouts(connect=0.1), "connect"), (Timeouts(connect=5.0, total=0.1), "total")]
)
async def test_a_connection_that_does_not_come_about_in_time_is_certainly_not_sent(
    timeouts: Timeouts, phase: str
) -> None:
    writers: list[asyncio.StreamWriter] = []
    server, port = await silent_server(writers)
    async with LeanTransport() as transport:
        with pytest.raises(UpstreamTimeout) as caught:
            await transport.send(post(f"https://127.0.0.1:{port}"), timeouts=timeouts)
        assert (caught.value.phase, caught.value.sent) == (phase, False)
        await until(lambda: not writers)
    server.close()


async def test_an_aiohttp_connection_that_does_not_come_about_in_time_is_certainly_not_sent() -> None:
    writers: list[asyncio.StreamWriter] = []
    server, port = await silent_server(writers)
    async with AiohttpTransport() as transport:
        with pytest.raises(UpstreamTimeout) as caught:
            await transport.send(post(f"https://127.0.0.1:{port}"), timeouts=Timeouts(connect=0.1))
        assert (caught.value.phase, caught.value.sent) == ("connect", False)
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


# --- where to --------------------------------------------------------------------------------------------------------


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "pair.pem")


async def test_a_trusted_certificate_is_trusted_and_connections_are_kept(tmp_path: Path) -> None:
    server = self_signed(tmp_path)
    async with upstream(says(OK), server) as (url, seen), LeanTransport(ssl=trusting(tmp_path)) as transport:
        for _ in range(3):
            assert await ask(transport, url.replace("http:", "https:")) == b"hello"
        assert seen.connections == 1


async def test_a_certificate_for_another_name_is_certainly_not_sent(tmp_path: Path) -> None:
    server = self_signed(tmp_path)
    async with upstream(says(OK), server) as (url, seen), LeanTransport(ssl=trusting(tmp_path)) as transport:
        with pytest.raises(ConnectFailed):
            await ask(transport, url.replace("http://127.0.0.1", "https://127.0.0.2"))
        assert seen == []


async def test_the_server_is_told_the_name_and_the_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str | None] = []
    server = self_signed(tmp_path)
    server.set_alpn_protocols(["h2", "http/1.1"])
    server.sni_callback = lambda _, name, __: named.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "pair.pem"))
    async with upstream(says(OK), server) as (url, seen), LeanTransport() as transport:
        assert await ask(transport, url.replace("http://127.0.0.1", "https://localhost")) == b"hello"
        assert seen.writers[0].get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    assert named == ["localhost"]


async def test_a_body_over_tls_that_is_cut_is_lost(tmp_path: Path) -> None:
    server = self_signed(tmp_path)
    cut = says(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", close=True)
    async with upstream(cut, server) as (url, _), LeanTransport(ssl=trusting(tmp_path)) as transport:
        with pytest.raises(ResponseLost):
            await ask(transport, url.replace("http:", "https:"))


async def test_a_large_body_goes_over_tls(tmp_path: Path) -> None:
    server = self_signed(tmp_path)
    async with upstream(says(OK), server) as (url, seen), LeanTransport(ssl=trusting(tmp_path)) as transport:
        response = await transport.send(post(url.replace("http:", "https:"), bytes(2_000_000)))
        assert await response.read() == b"hello"
        assert len(seen[0]) > 2_000_000


async def test_an_address_in_brackets_is_reached_over_ipv6(make: Make) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hosts.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)

    hosts: list[bytes] = []
    try:
        server = await asyncio.start_server(serve, "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = server.sockets[0].getsockname()[1]
    async with make() as transport:
        assert await ask(transport, f"http://[::1]:{port}") == b"hello"
    assert f"host: [::1]:{port}".encode() in hosts[0].lower()
    server.close()


async def test_a_silent_address_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    given_up = asyncio.Event()
    never: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

    async def connect(address: dialing._Address) -> socket.socket:
        tried.append(address[4][0])
        if len(tried) > 1:
            return socket.socket()
        try:
            return await never
        except asyncio.CancelledError:
            given_up.set()
            raise

    kind = socket.SOCK_STREAM
    addresses = [(family, kind, 6, "", (where, 1)) for family, where in FOUND]
    monkeypatch.setattr(dialing, "_connected", connect)
    opened = await dialing._first_of(dialing._in_turn(addresses))
    opened.close()
    assert tried == ["::1", "127.0.0.1"]
    await given_up.wait()


FOUND = [(socket.AF_INET6, "::1"), (socket.AF_INET6, "::2"), (socket.AF_INET, "127.0.0.1")]


async def test_when_no_address_answers_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(address: dialing._Address) -> socket.socket:
        raise ConnectionRefusedError

    monkeypatch.setattr(dialing, "_connected", connect)
    with pytest.raises(ConnectionRefusedError):
        await dialing._first_of([(family, socket.SOCK_STREAM, 6, "", (where, 1)) for family, where in FOUND])


async def test_a_name_that_does_not_exist_is_certainly_not_sent(make: Make) -> None:
    async with make() as transport:
        with pytest.raises(ConnectFailed):
            await transport.send(post("http://provider.invalid"))


async def test_an_address_with_credentials_goes_through_the_other_client() -> None:
    async with upstream(says(OK)) as (url, seen), LeanTransport() as transport:
        assert await ask(transport, url.replace("http://", "http://me:secret@")) == b"hello"
        assert b"authorization: basic" in seen[0].lower()


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


# --- which client ----------------------------------------------------------------------------------------------------


def test_the_lean_client_is_taken_where_its_parser_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(transports.make_transport(), LeanTransport)
    monkeypatch.setattr(transports, "find_spec", lambda name: None)
    assert isinstance(transports.make_transport(), AiohttpTransport)


async def test_it_works_where_the_kernel_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "poll")
    async with upstream(says(OK)) as (url, seen), LeanTransport() as transport:
        for _ in range(2):
            assert await ask(transport, url) == b"hello"
        assert seen.connections == 1


async def test_no_failure_names_an_address(make: Make) -> None:
    async with upstream(says(b"junk\r\n\r\n", close=True)) as (url, _), make() as transport:
        with pytest.raises(TransportError) as caught:
            await transport.send(post(url))
    assert "127.0.0.1" not in str(caught.value)
