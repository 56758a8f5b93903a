"""No more connections to a provider than it was said; who finds none free waits in line."""

import asyncio
from collections.abc import Callable

import pytest

from apikeyrouter.infrastructure.adapters.http_transport import AiohttpTransport
from apikeyrouter.infrastructure.adapters.lean_transport import LeanTransport, _BoundedPool
from apikeyrouter.infrastructure.adapters.transport import ConnectFailed, NoPlace, Timeouts, UpstreamTimeout
from tests.adapters.raw_upstream import OK, ask, open_connections, post, says, until, upstream

Bounded = Callable[[int], LeanTransport | AiohttpTransport]
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"
SOON = Timeouts(connect=2.0, first_byte=0.1, idle=5.0, total=None)


def lean(most: int) -> LeanTransport:
    return LeanTransport(connections_max=most)


def aiohttp(most: int) -> AiohttpTransport:
    return AiohttpTransport(connections_per_host_max=most)


@pytest.fixture(params=[lean, aiohttp])
def bounded(request: pytest.FixtureRequest) -> Bounded:
    """Makes the transport under test."""
    made: Bounded = request.param
    return made


def in_line(transport: LeanTransport) -> int:
    """How many calls wait, and that nothing is kept of those that do not."""
    return sum(map(len, pool_of(transport)._lines.values()))


def used(transport: LeanTransport) -> int:
    return sum(pool_of(transport)._used.values())


def pool_of(transport: LeanTransport) -> _BoundedPool:
    assert isinstance(transport._pool, _BoundedPool)
    return transport._pool


async def test_many_calls_at_once_share_the_connections_there_may_be(bounded: Bounded) -> None:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.002)
        writer.write(OK)

    async with upstream(answer) as (url, seen), bounded(3) as transport:
        assert await asyncio.gather(*(ask(transport, url) for _ in range(40))) == [b"hello"] * 40
        assert seen.connections == 3


async def test_calls_are_served_in_the_order_they_came() -> None:
    gates: list[asyncio.Event] = []

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        gates.append(asyncio.Event())
        await gates[-1].wait()
        writer.write(OK)

    async with upstream(answer) as (url, seen), LeanTransport(connections_max=1) as transport:
        order: list[int] = []

        async def call(number: int) -> None:
            await ask(transport, f"{url}/{number}")
            order.append(number)

        calls = []
        for number in range(4):
            calls.append(asyncio.create_task(call(number)))
            await asyncio.sleep(0)
        for number in range(4):
            await seen.until_seen(number + 1)
            gates[number].set()
        await asyncio.gather(*calls)
        assert order == [0, 1, 2, 3]
        assert seen.connections == 1


async def test_who_gets_no_connection_in_time_has_certainly_sent_nothing(bounded: Bounded) -> None:
    async with upstream(says(BEGUN)) as (url, seen), bounded(1) as transport:
        held = await transport.send(post(url))
        with pytest.raises(NoPlace, match="connections_max") as caught:
            await transport.send(post(url), timeouts=SOON)
        assert not caught.value.sent
        assert len(seen) == 1
        await held.close()
        again = await transport.send(post(url))
        assert again.status == 200
        await again.close()


async def test_the_calls_own_deadline_ends_its_waiting() -> None:
    async with upstream(says(BEGUN)) as (url, seen), LeanTransport(connections_max=1) as transport:
        held = await transport.send(post(url))
        with pytest.raises(UpstreamTimeout) as caught:
            await transport.send(post(url), timeouts=Timeouts(total=0.05))
        assert (caught.value.phase, caught.value.sent, len(seen), in_line(transport)) == ("total", False, 1, 0)
        await held.close()


async def test_who_gives_up_waiting_leaves_the_line_to_the_others() -> None:
    async with upstream(says(BEGUN)) as (url, _), LeanTransport(connections_max=1) as transport:
        held = await transport.send(post(url))
        first, second = (asyncio.create_task(transport.send(post(url))) for _ in range(2))
        await until(lambda: in_line(transport) == 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await held.close()
        answer = await second
        assert (in_line(transport), used(transport)) == (0, 1)
        await answer.close()
        assert used(transport) == 0


@pytest.mark.parametrize("kept", [True, False])
async def test_what_was_given_to_somebody_who_had_just_left_goes_to_the_next(kept: bool) -> None:
    """He is cancelled in the very turn in which his connection (`kept`), or the place for one, came free."""
    async with upstream(says(OK if kept else BEGUN)) as (url, seen), LeanTransport(connections_max=1) as transport:
        held = await transport.send(post(url))
        pool = pool_of(transport)
        (connection,) = pool._all
        if kept:  # as if the exchange were under way
            origin = connection.origin
            taken = pool.take(origin)  # type: ignore[arg-type]
            assert taken is connection
        first, second = (asyncio.create_task(transport.send(post(url))) for _ in range(2))
        await until(lambda: in_line(transport) == 2)
        if kept:
            pool.take_back(connection)
        else:
            await held.close()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).status == 200
        assert in_line(transport) == 0
        assert seen.connections == (1 if kept else 2)


async def test_every_end_of_a_call_gives_its_place_back() -> None:
    """Whole, closed early, broken, timed out, cancelled, not connected: then there is room for as many as before."""

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        if b"/broken/" in request:
            writer.close()
        elif b"/silent/" not in request:
            writer.write(BEGUN if b"/begun/" in request else OK)

    async with upstream(answer) as (url, seen), LeanTransport(connections_max=2) as transport:
        assert await ask(transport, url) == b"hello"
        assert used(transport) == 0
        await (await transport.send(post(url + "/begun"))).close()
        for way in ("/broken", "/silent"):
            with pytest.raises(Exception, match=r"the connection broke|took too long"):
                await transport.send(post(url + way), timeouts=SOON)
        cancelled = asyncio.create_task(transport.send(post(url + "/silent")))
        await seen.until_seen(5)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(ConnectFailed):
            await transport.send(post("http://127.0.0.1:1"))
        assert (used(transport), in_line(transport), len(pool_of(transport)._busy)) == (0, 0, 0)
        held = [await transport.send(post(url + "/begun")) for _ in range(2)]
        assert open_connections(transport) == 2
        for one in held:
            await one.close()


async def test_another_provider_has_places_of_its_own() -> None:
    async with (
        upstream(says(BEGUN)) as (one, _),
        upstream(says(OK)) as (other, _),
        LeanTransport(connections_max=1) as transport,
    ):
        held = await transport.send(post(one))
        assert await ask(transport, other) == b"hello"
        await held.close()


async def test_those_who_wait_when_the_transport_is_closed_are_told() -> None:
    async with upstream(says(BEGUN)) as (url, _):
        transport = LeanTransport(connections_max=1)
        await transport.send(post(url))
        waiting = [asyncio.create_task(transport.send(post(url))) for _ in range(3)]
        await until(lambda: in_line(transport) == 3)
        await transport.close()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in ended] == [ConnectFailed] * 3
