"""HTTP as the worker speaks it: every case over uvicorn's own protocol and over ours, which answers in one write."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from apikeyrouter.infrastructure.surface.answers import head_lines
from apikeyrouter_proxy.http_protocol import Exchanging, ServiceProtocol, exchanging

SECONDS_MAX = 10.0
LARGE = b"x" * 3_000_000
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Echo:
    """Answers with path, query and body, the short way where there is one. `short`: how many were sent so."""

    def __init__(self) -> None:
        self.short = 0
        self.served = 0
        self.held_up = self.ended = 0
        self.broken = ""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.served += 1
        exchange = exchanging(scope)
        body = None if exchange is None else exchange.body_now()
        if body is None:
            body = await _body(receive)
        told = b"%b %b?%b %b" % (scope["method"].encode(), scope["path"].encode(), scope["query_string"], body)
        if scope["path"] == "/large":
            told = LARGE
        if scope["path"] == "/slow":
            await asyncio.sleep(0.05)
        head = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(told))]
        if scope["path"].startswith("/pieces"):
            await self._send_pieces(scope["path"], told, send, exchange)
            return
        if scope["path"] == "/broken":
            head.append((b"x-told", b"a\r\nx-smuggled: b"))
        try:
            if exchange is not None and exchange.send_now(200, head_lines(head), told):
                self.short += 1
                return
        except RuntimeError as exc:
            self.broken = str(exc)
            raise
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else told})

    async def _send_pieces(self, path: str, told: bytes, send: Send, exchange: Exchanging | None) -> None:
        """The answer in many pieces; of `/pieces-large` more than any buffer takes, of `/pieces-none` none."""
        pieces = [LARGE] * 3 if path == "/pieces-large" else [] if path == "/pieces-none" else [told, b"-", told]
        if exchange is not None and exchange.begin_now(200, [(b"content-type", b"text/plain")]):
            self.short += 1
            for piece in pieces:
                if not exchange.write_now(piece):
                    self.held_up += 1
                    await exchange.drained()
        else:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        self.ended += 1
        await send({"type": "http.response.body", "body": b""})


class Connection:
    """A raw client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, *parts: bytes) -> tuple[bytes, bytes]:
        """Send pieces one after the other; the answer's head and body."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)
        return await self.answer()

    async def answer(self) -> tuple[bytes, bytes]:
        """The next answer."""
        async with asyncio.timeout(SECONDS_MAX):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return head, await self.reader.readexactly(length)

    async def pieces(self) -> tuple[bytes, bytes]:
        """The next answer, which comes in chunks."""
        async with asyncio.timeout(SECONDS_MAX):
            head, parts = await self.reader.readuntil(b"\r\n\r\n"), []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                parts.append(await self.reader.readexactly(size))
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
            return head, b"".join(parts)

    async def rest(self) -> bytes:
        """What still comes until the server closes."""
        async with asyncio.timeout(SECONDS_MAX):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def serving(echo: Echo, protocol: type[asyncio.Protocol]) -> AsyncIterator[Callable[[], Awaitable[Connection]]]:
    """A server of an echo; what connects to it."""
    config = uvicorn.Config(
        echo, port=0, http=protocol, lifespan="off", ws="none", log_level="critical", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(SECONDS_MAX):
        while not server.started:
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    opened: list[asyncio.StreamWriter] = []

    async def connect() -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        opened.append(writer)
        return Connection(reader, writer)

    yield connect
    for writer in opened:
        writer.close()
    server.should_exit = True
    await task


@pytest.fixture(params=[HttpToolsProtocol, ServiceProtocol], ids=["uvicorn", "ours"])
async def speaking(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Echo, Callable[[], Awaitable[Connection]]]]:
    """An echo, and how to connect to it."""
    echo = Echo()
    async with serving(echo, request.param) as connect:
        yield echo, connect


Speaking = tuple[Echo, Callable[[], Awaitable[Connection]]]


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request."""
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_requests_of_one_connection_are_answered_in_turn(speaking: Speaking) -> None:
    echo, connect = speaking
    connection = await connect()
    for number in range(3):
        head, body = await connection.ask(post(f"/a%20b?n={number}", b"hello"))
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\ndate: " in head.lower()
        assert body == b"POST /a b?n=%d hello" % number
    assert echo.served == 3


async def test_a_body_that_comes_in_pieces_is_whole(speaking: Speaking) -> None:
    _, connect = speaking
    request = post("/", b"0123456789")
    for cut in (20, len(request) - 10, len(request) - 3):
        _, body = await (await connect()).ask(request[:cut], request[cut:])
        assert body == b"POST /? 0123456789"


async def test_pipelined_requests_are_answered_in_order(speaking: Speaking) -> None:
    _, connect = speaking
    connection = await connect()
    await connection.ask(post("/slow", b"1") + post("/", b"2") + post("/slow", b"3"))
    assert (await connection.answer())[1] == b"POST /? 2"
    assert (await connection.answer())[1] == b"POST /slow? 3"


async def test_a_large_answer_arrives_whole_behind_a_slow_reader(speaking: Speaking) -> None:
    _, connect = speaking
    connection = await connect()
    connection.writer.write(post("/large", b"") + post("/large", b""))
    await asyncio.sleep(0.05)
    assert (await connection.answer())[1] == LARGE
    assert (await connection.answer())[1] == LARGE


@pytest.mark.parametrize(
    ("path", "told"),
    [("/pieces", b"POST /pieces? x-POST /pieces? x"), ("/pieces-none", b""), ("/pieces-large", LARGE * 3)],
)
async def test_an_answer_in_pieces_is_whole_and_the_connection_goes_on(
    speaking: Speaking, path: str, told: bytes
) -> None:
    _, connect = speaking
    connection = await connect()
    for _ in range(2):
        connection.writer.write(post(path, b"x"))
        head, body = await connection.pieces()
        assert head.lower().count(b"\r\ntransfer-encoding: chunked\r\n") == 1
        assert body == told
    assert (await connection.ask(post("/", b"on")))[1] == b"POST /? on"


async def test_who_takes_pieces_slowly_holds_up_who_sends_them() -> None:
    echo = Echo()
    async with serving(echo, ServiceProtocol) as connect:
        connection = await connect()
        connection.writer.write(post("/pieces-large", b""))
        async with asyncio.timeout(SECONDS_MAX):
            while not echo.held_up:
                await asyncio.sleep(0.005)
        assert not echo.ended
        assert (await connection.pieces())[1] == LARGE * 3


async def test_pieces_for_a_client_that_has_gone_hold_up_nobody() -> None:
    echo = Echo()
    async with serving(echo, ServiceProtocol) as connect:
        gone = await connect()
        gone.writer.write(post("/pieces-large", b""))
        await gone.reader.readuntil(b"\r\n\r\n")
        gone.writer.transport.abort()
        async with asyncio.timeout(SECONDS_MAX):
            while not echo.ended:
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("asked", ["connection: close", "Connection: keep-alive, Close"])
async def test_who_asks_for_the_end_gets_it_after_the_answer(speaking: Speaking, asked: str) -> None:
    _, connect = speaking
    connection = await connect()
    _, body = await connection.ask(post("/", b"bye", asked))
    assert body == b"POST /? bye"
    assert await connection.rest() == b""


async def test_http_1_0_is_answered_and_ends(speaking: Speaking) -> None:
    _, connect = speaking
    connection = await connect()
    _, body = await connection.ask(b"GET /old HTTP/1.0\r\n\r\n")
    assert body == b"GET /old? "
    assert await connection.rest() == b""


async def test_an_idle_connection_is_closed_and_a_used_one_is_not(speaking: Speaking) -> None:
    _, connect = speaking
    used, idle = await connect(), await connect()
    await idle.ask(post("/", b""))
    for _ in range(5):
        await used.ask(post("/", b"still here"))
        await asyncio.sleep(0.3)
    assert await idle.rest() == b""
    assert (await used.ask(post("/", b"here")))[1] == b"POST /? here"
    assert await used.rest() == b""


async def test_what_is_no_http_is_a_400(speaking: Speaking) -> None:
    echo, connect = speaking
    head, _ = await (await connect()).ask(b"nonsense\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert not echo.served


async def test_a_line_break_in_a_header_is_never_sent(speaking: Speaking) -> None:
    echo, connect = speaking
    connection = await connect()
    connection.writer.write(post("/broken", b""))
    with contextlib.suppress(ConnectionError):
        assert b"x-smuggled" not in await connection.rest()
    assert echo.served == 1


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(speaking: Speaking) -> None:
    echo, connect = speaking
    gone = await connect()
    gone.writer.write(post("/slow", b"x")[:-1])
    await gone.writer.drain()
    gone.writer.close()
    _, body = await (await connect()).ask(post("/", b"others"))
    assert body == b"POST /? others"
    assert echo.served == 2


@pytest.mark.parametrize(("protocol", "short"), [(HttpToolsProtocol, 0), (ServiceProtocol, 2)])
async def test_only_ours_answers_the_short_way(protocol: type[asyncio.Protocol], short: int) -> None:
    """Else all of the above would prove nothing."""
    echo = Echo()
    async with serving(echo, protocol) as connect:
        connection = await connect()
        await connection.ask(post("/", b"one"))
        await connection.ask(post("/", b"two"))
    assert echo.short == short


async def test_a_request_leaves_no_circle_behind() -> None:
    """What refers to itself waits for the garbage collector, which then costs more than all the rest."""
    echo = Echo()
    async with serving(echo, ServiceProtocol) as connect:
        connection = await connect()
        await connection.ask(post("/", b"warm up"))
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await connection.ask(post("/", b"again"))
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = {type(found).__name__ for found in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert "_Cycle" not in left


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
