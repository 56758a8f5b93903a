"""Whatever way an answer is framed, its body comes out whole, and what follows it is no answer."""

import asyncio
import gzip
import zlib

import pytest

from apikeyrouter.domain.interfaces.wire import UpstreamRequest
from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport
from apikeyrouter.infrastructure.adapters.transport import ConnectFailed, ResponseLost, ResponseTooLong, TransportError
from tests.adapters.raw_upstream import OK, Make, post, says, upstream

RAW_DEFLATE = zlib.compress(b"hello")[2:-4]
FRAMED = {
    "content-length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-After: 1\r\n\r\n",
    "after 100": b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    "after 103": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
    "no reason": b"HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello",
    "HTTP/1.0 kept": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
}
CLOSED = {
    "until closed": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "HTTP/1.0 with a length": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "connection: close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
}
BODILESS = {
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "length 0": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}
PACKED = {
    "gzip": gzip.compress(b"hello"),
    "GZIP": gzip.compress(b"hello"),
    "deflate": zlib.compress(b"hello"),
}
MALFORMED = {
    "not HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "another version": b"HTTP/x 200 OK\r\n\r\n",
    "no number": b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n",
    "two framings": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "no chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "headers without end": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 200_000,
}


def with_header(url: str, name: str, value: str) -> UpstreamRequest:
    return UpstreamRequest(method="POST", url=url, headers=((name, value),), body=b"{}")


@pytest.mark.parametrize("how", FRAMED)
async def test_a_body_comes_whole_and_its_connection_carries_the_next(how: str, make: Make) -> None:
    async with upstream(says(FRAMED[how])) as (url, seen), make() as transport:
        for _ in range(2):
            response = await transport.send(post(url))
            assert (response.status, await response.read()) == (200, b"hello")
        assert (len(seen), seen.connections) == (2, 1)


@pytest.mark.parametrize("how", CLOSED)
async def test_a_body_whose_connection_ends_with_it_comes_whole(how: str, make: Make) -> None:
    async with upstream(says(CLOSED[how], close=True)) as (url, seen), make() as transport:
        for _ in range(2):
            response = await transport.send(post(url))
            assert (response.status, await response.read()) == (200, b"hello")
        assert (len(seen), seen.connections) == (2, 2)


async def test_a_connection_that_the_provider_wants_closed_is_not_used_again(make: Make) -> None:
    async with upstream(says(CLOSED["connection: close"])) as (url, seen), make() as transport:
        for _ in range(2):
            assert await (await transport.send(post(url))).read() == b"hello"
        assert seen.connections == 2


@pytest.mark.parametrize("how", BODILESS)
async def test_an_answer_without_a_body_is_complete_at_once(how: str, make: Make) -> None:
    async with upstream(says(BODILESS[how])) as (url, seen), make() as transport:
        for _ in range(2):
            assert await (await transport.send(post(url))).read() == b""
        assert seen.connections == 1


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_an_answer_may_come_in_pieces_of_any_size(size: int, make: Make) -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        said = FRAMED["after 103"] if len(seen) == 1 else FRAMED["trailers"]
        for at in range(0, len(said), size):
            writer.write(said[at : at + size])
            await asyncio.sleep(0)

    async with upstream(answer) as (url, seen), make() as transport:
        for _ in range(2):
            response = await transport.send(post(url))
            assert (response.status, await response.read()) == (200, b"hello")


@pytest.mark.parametrize("coding", PACKED)
async def test_every_coding_that_we_know_is_unpacked_whole_and_in_chunks(coding: str, make: Make) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(PACKED[coding])}\r\n\r\n"
    async with upstream(says(head.encode() + PACKED[coding])) as (url, _), make() as transport:
        assert await (await transport.send(post(url))).read() == b"hello"
        response = await transport.send(post(url))
        assert b"".join([chunk async for chunk in response.chunks()]) == b"hello"


@pytest.mark.parametrize("packed", [RAW_DEFLATE, zlib.compress(b"hello")])
async def test_both_things_that_servers_call_deflate_are_unpacked(packed: bytes, make: Make) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: {len(packed)}\r\n\r\n"
    async with upstream(says(head.encode() + packed)) as (url, _), make() as transport:
        assert await (await transport.send(post(url))).read() == b"hello"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "weird", "zstd"])
async def test_bytes_that_cannot_be_unpacked_are_an_answer_lost(coding: str) -> None:
    answer = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: 9\r\n\r\nnot so :)".encode()
    async with upstream(says(answer)) as (url, _), LeanTransport() as transport:
        with pytest.raises(ResponseLost) as caught:
            await (await transport.send(post(url))).read()
        assert caught.value.sent


async def test_a_compressed_answer_that_is_cut_is_lost() -> None:
    packed = gzip.compress(bytes(range(256)) * 8)[:-9]
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    async with upstream(says(head + packed)) as (url, _), LeanTransport() as transport:
        with pytest.raises(ResponseLost):
            await (await transport.send(post(url))).read()


@pytest.mark.parametrize("encoded", [False, True])
async def test_an_answer_without_a_length_is_refused_beyond_the_limit_before_its_end(encoded: bool, make: Make) -> None:
    coding = b"Content-Encoding: gzip\r\n" if encoded else b""
    body = gzip.compress(bytes(3_000_000)) if encoded else bytes(3_000_000)

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % coding)
        writer.write(b"%x\r\n%b\r\n" % (len(body), body))

    async with upstream(answer) as (url, _), make() as transport:
        response = await transport.send(post(url))
        with pytest.raises(ResponseTooLong):
            await response.read(max_bytes=1_000_000)


@pytest.mark.parametrize("how", MALFORMED)
async def test_what_is_no_answer_is_an_answer_lost(how: str, make: Make) -> None:
    async with upstream(says(MALFORMED[how])) as (url, _), make() as transport:
        with pytest.raises(TransportError) as caught:
            await (await transport.send(post(url))).read()
        assert caught.value.sent


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 4000,
        b"HTTP/1.1 200 OK\r\n" + b"X-Many: 0123456789\r\n" * 8000 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-Many: 0123456789\r\n" * 8000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
    ],
    ids=["interim answers", "headers", "trailers", "transfer coding"],
)
async def test_headers_without_end_are_an_answer_lost(said: bytes) -> None:
    async with upstream(says(said)) as (url, _), LeanTransport() as transport:
        with pytest.raises(ResponseLost):
            await (await transport.send(post(url))).read()


async def test_a_switch_of_protocols_is_an_answer_lost() -> None:
    said = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"
    async with upstream(says(said)) as (url, _), LeanTransport() as transport:
        with pytest.raises(ResponseLost):
            await transport.send(post(url))


@pytest.mark.parametrize("more", [OK, b"HTTP/1.1 4", b"junk"])
async def test_what_follows_an_answer_is_not_the_next_answer(more: bytes) -> None:
    async with upstream(says(FRAMED["content-length"] + more)) as (url, seen), LeanTransport() as transport:
        for _ in range(2):
            response = await transport.send(post(url))
            assert await response.read() == b"hello"
            assert "x-request-id" not in response.headers
        assert seen.connections == 2


async def test_headers_are_found_in_any_case_and_the_first_of_several_counts(make: Make) -> None:
    said = b"HTTP/1.1 200 OK\r\nX-A:  one \r\nx-a: two\r\nX-B: \xc3\xa9\r\nContent-Length: 0\r\n\r\n"
    async with upstream(says(said)) as (url, _), make() as transport:
        headers = (await transport.send(post(url))).headers
        assert (headers["X-a"], headers.get("x-A"), headers.get("X-C", "none")) == ("one", "one", "none")
        assert headers["x-b"] == "é"
        assert "X-B" in headers
        assert "x-c" not in headers
        assert {name.lower() for name in headers} == {"x-a", "x-b", "content-length"}
        with pytest.raises(KeyError):
            headers["x-c"]


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "a\rb", "a\0b"])
async def test_a_header_value_that_would_break_out_of_its_line_is_never_sent(value: str, make: Make) -> None:
    async with upstream(says(OK)) as (url, seen), make() as transport:
        with pytest.raises(ConnectFailed) as caught:
            await transport.send(with_header(url, "x-given", value))
        assert not caught.value.sent
        assert seen == []


@pytest.mark.parametrize("name", ["x evil", "x:evil", "x\r\nevil", ""])
async def test_a_header_name_that_is_none_is_never_sent(name: str) -> None:
    async with upstream(says(OK)) as (url, seen), LeanTransport() as transport:
        with pytest.raises(ConnectFailed):
            await transport.send(with_header(url, name, "a"))
        assert seen == []


@pytest.mark.parametrize("path", ["/a\r\nx-evil: 1", "/a\nb", "/a b\r\n", "/a\0"])
async def test_a_url_that_would_break_out_of_its_line_goes_nowhere(path: str) -> None:
    async with upstream(says(OK)) as (url, seen), LeanTransport() as transport:
        with pytest.raises(ConnectFailed):
            await transport.send(post(url + path))
        assert seen == []


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
async def test_a_body_of_any_size_arrives_whole(size: int, make: Make) -> None:
    body = bytes(size)
    async with upstream(says(OK)) as (url, seen), make() as transport:
        for _ in range(2):
            assert await (await transport.send(post(url, body))).read() == b"hello"
        head, _, sent = seen[1].partition(b"\r\n\r\n")
        assert sent == body
        assert b"content-length: %d" % size in head.lower()
        assert head.lower().count(b"host: ") == 1
