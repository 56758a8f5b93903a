"""A body that is handed on while it arrives: every byte once and in order, held up by who takes it, ended as ever."""

import asyncio

import pytest

from apikeyrouter.infrastructure.adapters import lean_connection, lean_response
from apikeyrouter.infrastructure.adapters.lean_response import LeanResponse
from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport
from apikeyrouter.infrastructure.adapters.transport import Pouring, ResponseLost, UpstreamTimeout
from tests.adapters.raw_upstream import SHORT, Seen, open_connections, post, says, until, upstream

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BEGUN = HEAD + b"3\r\none\r\n"
END = b"0\r\n\r\n"
LARGE = b"x" * 8_000_000


class Taker:
    """Takes what is poured; says no at the pieces whose numbers are in `refused`."""

    def __init__(self, *refused: int) -> None:
        self.pieces: list[bytes] = []
        self._refused = refused

    def __call__(self, data: bytes) -> bool:
        self.pieces.append(data)
        return len(self.pieces) not in self._refused


async def begun(transport: LeanTransport, url: str) -> LeanResponse:
    """An answer that has begun with `one`."""
    response = await transport.send(post(url), timeouts=SHORT)
    assert isinstance(response, LeanResponse)
    assert isinstance(response.chunks(), Pouring)
    assert await anext(response.chunks()) == b"one"
    return response


async def say(seen: Seen, text: bytes) -> None:
    """Let the provider say something more."""
    seen.writers[-1].write(text)
    await seen.writers[-1].drain()


async def test_pieces_are_taken_as_they_come_until_the_body_has_ended() -> None:
    async with upstream(says(BEGUN)) as (url, seen), LeanTransport() as transport:
        response, taker = await begun(transport, url), Taker()
        pouring = asyncio.create_task(response.pour(taker))
        for number, text in enumerate((b"two", b"six"), 1):
            await say(seen, b"3\r\n%b\r\n" % text)
            await until(lambda wanted=number: len(taker.pieces) == wanted)  # type: ignore[misc]
        await say(seen, b"3\r\nten\r\n" + END)
        assert await pouring is True
        assert taker.pieces == [b"two", b"six", b"ten"]
        assert open_connections(transport) == 1
        await transport.send(post(url))
        assert seen.connections == 1


async def test_who_declines_gets_the_rest_when_he_asks_again() -> None:
    async with upstream(says(BEGUN)) as (url, seen), LeanTransport() as transport:
        response, taker = await begun(transport, url), Taker(1)
        pouring = asyncio.create_task(response.pour(taker))
        await say(seen, b"3\r\ntwo\r\n")
        assert await pouring is False
        await say(seen, b"3\r\nsix\r\n" + END)
        await asyncio.sleep(0.02)
        assert taker.pieces == [b"two"]
        assert await response.pour(taker) is True
        assert taker.pieces == [b"two", b"six"]
        assert await response.pour(taker) is True


async def test_a_provider_is_held_up_while_nobody_takes_and_nothing_is_lost() -> None:
    async with upstream(says(BEGUN)) as (url, seen), LeanTransport() as transport:
        response, taker = await begun(transport, url), Taker(1, 2)
        pouring = asyncio.create_task(response.pour(taker))
        sending = asyncio.create_task(say(seen, b"%x\r\n%b\r\n" % (len(LARGE), LARGE) + END))
        assert await pouring is False
        await until(lambda: response.is_full())
        assert response._buffered < 2 * lean_response.BUFFER_BYTES_MAX
        assert not sending.done()
        assert await response.pour(taker) is False
        assert await response.pour(taker) is True
        assert b"".join(taker.pieces) == LARGE
        await sending


async def test_a_body_that_breaks_off_is_lost_after_what_had_come() -> None:
    async with upstream(says(BEGUN)) as (url, seen), LeanTransport() as transport:
        response, taker = await begun(transport, url), Taker()
        pouring = asyncio.create_task(response.pour(taker))
        await say(seen, b"3\r\ntwo\r\n")
        await until(lambda: len(taker.pieces) == 1)
        seen.writers[0].close()
        with pytest.raises(ResponseLost):
            await pouring
        assert open_connections(transport) == 0


async def test_a_silent_provider_is_given_up_while_it_pours() -> None:
    async with upstream(says(BEGUN)) as (url, _), LeanTransport() as transport:
        with pytest.raises(UpstreamTimeout, match="idle"):
            await (await begun(transport, url)).pour(Taker())
        assert open_connections(transport) == 0


async def test_what_the_taker_raises_is_raised_and_ends_the_connection() -> None:
    def crashing(data: bytes) -> bool:
        raise LookupError(data.decode())

    async with upstream(says(BEGUN)) as (url, seen), LeanTransport() as transport:
        pouring = asyncio.create_task((await begun(transport, url)).pour(crashing))
        await say(seen, b"3\r\ntwo\r\n")
        with pytest.raises(LookupError, match="two"):
            await pouring
        await seen.until_ended(1)


async def test_who_is_cancelled_while_it_pours_takes_the_connection_along() -> None:
    async with upstream(says(BEGUN)) as (url, seen), LeanTransport() as transport:
        pouring = asyncio.create_task((await begun(transport, url)).pour(Taker()))
        await asyncio.sleep(0.02)
        pouring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pouring
        await seen.until_ended(1)


async def test_a_connection_whose_answer_was_left_is_used_again_once_the_end_has_come() -> None:
    async with upstream(says(BEGUN)) as (url, seen), LeanTransport() as transport:
        (await begun(transport, url)).leave()
        await say(seen, END)
        await until(lambda: transport._pool is not None and bool(transport._pool._idle))
        await begun(transport, url)
        assert seen.connections == 1


async def test_a_connection_whose_answer_was_left_is_closed_when_the_end_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lean_connection, "LINGER_SECONDS", 0.05)
    async with upstream(says(BEGUN)) as (url, seen), LeanTransport() as transport:
        (await begun(transport, url)).leave()
        await seen.until_ended(1)


async def test_a_connection_whose_answer_was_left_is_closed_when_much_more_comes() -> None:
    async with upstream(says(BEGUN)) as (url, seen), LeanTransport() as transport:
        (await begun(transport, url)).leave()
        size = lean_response.LEFT_BYTES_MAX + 1
        await say(seen, b"%x\r\n%b\r\n" % (size, b"x" * size))
        await seen.until_ended(1)
        assert open_connections(transport) == 0
