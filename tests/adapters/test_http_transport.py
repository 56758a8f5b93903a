"""The transport: what goes out, what comes back, and which side of the wire a failure was on."""

import asyncio
import gzip
from pathlib import Path

import pytest

from apikeyrouter.infrastructure.adapters.transport import (
    ConnectFailed,
    ResponseLost,
    ResponseTooLong,
    SendFailed,
    Timeouts,
    TransportError,
    UpstreamTimeout,
)
from tests.adapters.raw_upstream import OK, SHORT, Make, post, says, self_signed, upstream


async def test_a_request_goes_out_as_it_is_and_the_answer_comes_back(make: Make) -> None:
    async with upstream(says(OK)) as (url, seen), make() as transport:
        response = await transport.send(post(url, b'{"a":1}', authorization="Bearer k"))
        assert (response.status, response.headers["x-request-id"]) == (200, "abc")
        assert await response.read() == b"hello"
        head = seen[0].split(b"\r\n\r\n")[0].lower()
        assert seen[0].endswith(b'{"a":1}')
        assert b"authorization: bearer k" in head
        assert head.count(b"accept-encoding") == 1
        assert b"cookie" not in head


async def test_connections_are_kept_and_cookies_are_not(make: Make) -> None:
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\nok"
    async with upstream(says(answer)) as (url, seen), make() as transport:
        for _ in range(3):
            await (await transport.send(post(url))).read()
        assert len(seen) == 3
        assert b"a=b" not in b"".join(seen)


async def test_a_redirect_is_an_answer_and_is_not_followed(make: Make) -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    async with upstream(says(answer)) as (url, seen), make() as transport:
        response = await transport.send(post(url))
        assert (response.status, await response.read(), len(seen)) == (302, b"", 1)


async def test_a_compressed_answer_is_decompressed(make: Make) -> None:
    packed = gzip.compress(b"hello")
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed)
    async with upstream(says(answer)) as (url, _), make() as transport:
        assert await (await transport.send(post(url))).read() == b"hello"


@pytest.mark.parametrize("encoding", ["", "Content-Encoding: gzip\r\n"])
async def test_an_answer_beyond_the_limit_is_refused(encoding: str, make: Make) -> None:
    body = gzip.compress(b"x" * 100_000) if encoding else b"x" * 2000
    answer = f"HTTP/1.1 200 OK\r\n{encoding}Content-Length: {len(body)}\r\n\r\n".encode() + body
    async with upstream(says(answer)) as (url, _), make() as transport:
        response = await transport.send(post(url))
        with pytest.raises(ResponseTooLong):
            await response.read(max_bytes=1000)


async def test_chunks_come_as_they_arrive(make: Make) -> None:
    release = asyncio.Event()

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await writer.drain()
        await release.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with upstream(answer) as (url, _), make() as transport:
        response = await transport.send(post(url))
        chunks = response.chunks()
        assert await anext(chunks) == b"one"
        release.set()
        assert [chunk async for chunk in chunks] == [b"two"]


async def test_nobody_listening_is_certainly_not_sent(make: Make) -> None:
    async with make() as transport:
        with pytest.raises(ConnectFailed) as caught:
            await transport.send(post("http://127.0.0.1:1"))
    assert not caught.value.sent


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://"])
async def test_a_url_that_is_none_is_certainly_not_sent(url: str, make: Make) -> None:
    async with make() as transport:
        with pytest.raises(ConnectFailed):
            await transport.send(post(url))


async def test_an_untrusted_certificate_is_certainly_not_sent(tmp_path: Path, make: Make) -> None:
    async with upstream(says(OK), self_signed(tmp_path)) as (url, seen), make() as transport:
        with pytest.raises(ConnectFailed):
            await transport.send(post(url.replace("http:", "https:")))
        assert seen == []


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nX-", b"junk\r\n\r\n"])
async def test_an_answer_lost_before_its_headers_is_ambiguous(said: bytes, make: Make) -> None:
    async with upstream(says(said, close=True)) as (url, _), make() as transport:
        with pytest.raises((ResponseLost, SendFailed)) as caught:
            await transport.send(post(url))
        assert caught.value.sent


async def test_an_answer_cut_in_its_body_is_lost(make: Make) -> None:
    async with (
        upstream(says(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", close=True)) as (url, _),
        make() as transport,
    ):
        response = await transport.send(post(url))
        with pytest.raises(ResponseLost):
            await response.read()


async def test_no_answer_in_time_is_a_first_byte_timeout(make: Make) -> None:
    async with upstream(says(b"")) as (url, seen), make() as transport:
        with pytest.raises(UpstreamTimeout) as caught:
            await transport.send(post(url), timeouts=SHORT)
        assert (caught.value.phase, caught.value.sent, len(seen)) == ("first_byte", True, 1)


async def test_silence_between_chunks_is_an_idle_timeout(make: Make) -> None:
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"
    patient = Timeouts(connect=2.0, first_byte=30.0, idle=0.2, total=60.0)
    async with upstream(says(start)) as (url, _), make() as transport:
        response = await transport.send(post(url), timeouts=patient)
        with pytest.raises(UpstreamTimeout) as caught:
            async for _ in response.chunks():
                pass
        assert caught.value.phase == "idle"


async def test_the_deadline_ends_a_stream_that_never_falls_silent(make: Make) -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    hasty = Timeouts(connect=2.0, first_byte=2.0, idle=2.0, total=0.3)
    async with upstream(answer) as (url, _), make() as transport:
        response = await transport.send(post(url), timeouts=hasty)
        with pytest.raises(UpstreamTimeout) as caught:
            async for _ in response.chunks():
                pass
        assert caught.value.phase == "total"


async def test_a_request_whose_connection_broke_is_not_sent_again(make: Make) -> None:
    async with upstream(says(b"", close=True)) as (url, seen), make() as transport:
        with pytest.raises(TransportError):
            await transport.send(post(url))
        assert len(seen) == 1


async def test_proxies_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    async with upstream(says(OK)) as (url, seen), make() as transport:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "direct.invalid")
        response = await transport.send(post("http://provider.invalid"))
        assert await response.read() == b"hello"
        assert seen[0].startswith(b"POST http://provider.invalid/v1/x")
        with pytest.raises(ConnectFailed):
            await transport.send(post("http://direct.invalid"))


async def test_errors_name_no_address_and_no_key(make: Make) -> None:
    async with make() as transport:
        with pytest.raises(TransportError) as caught:
            await transport.send(post("http://127.0.0.1:1", authorization="Bearer sk-secret"))
    assert "127.0.0.1" not in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_closing_twice_is_harmless(make: Make) -> None:
    transport = make()
    await transport.close()
    async with upstream(says(OK)) as (url, _):
        response = await transport.send(post(url))
        await response.close()
        await response.close()
    await transport.close()
    await transport.close()
