"""Where requests go: names, addresses, certificates, and which client carries them."""

import asyncio
import select
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from apikeyrouter.infrastructure.adapters import dialing, transports
from apikeyrouter.infrastructure.adapters.http_transport import AiohttpTransport
from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport
from apikeyrouter.infrastructure.adapters.transport import (
    ConnectFailed,
    ResponseLost,
    Timeouts,
    TransportError,
    UpstreamTimeout,
)
from tests.adapters.raw_upstream import (
    OK,
    Make,
    ask,
    post,
    says,
    self_signed,
    silent_server,
    until,
    upstream,
)


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "pair.pem")


async def test_a_trusted_certificate_is_trusted_and_connections_are_kept(tmp_path: Path) -> None:
    server = self_signed(tmp_path)
    async with upstream(says(OK), server) as (url, seen), LeanTransport(ssl=trusting(tmp_path)) as transport:
        for _ in range(3):
            assert await ask(transport, url.replace("http:", "https:")) == b"hello"
        assert seen.connections == 1


async def test_a_certificate_for_another_name_is_certainly_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, look_up = self_signed(tmp_path), socket.getaddrinfo

    def answers(host: str, *rest: Any, **more: Any) -> Any:
        return look_up("127.0.0.1" if host == "provider.test" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    async with upstream(says(OK), server) as (url, seen), LeanTransport(ssl=trusting(tmp_path)) as transport:
        with pytest.raises(ConnectFailed) as caught:
            await ask(transport, url.replace("http://127.0.0.1", "https://provider.test"))
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
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
        writer.close()

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


async def test_a_peer_that_takes_no_connection_is_given_up_in_time_with_nothing_left_behind() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        where = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for filler in waiting:  # the queue is full: who comes now hears nothing
            filler.setblocking(False)
            filler.connect_ex(where)
        async with LeanTransport() as transport:
            for _ in range(2):
                with pytest.raises(UpstreamTimeout) as caught:
                    await transport.send(post(f"http://127.0.0.1:{where[1]}"), timeouts=Timeouts(connect=0.1))
                assert (caught.value.phase, caught.value.sent) == ("connect", False)
        for filler in waiting:
            filler.close()


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
