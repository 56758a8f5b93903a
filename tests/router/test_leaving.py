"""Who leaves early: cancelled callers, gone clients, deadlines, shutdowns. Nothing stays held, all is told once."""

import asyncio
import contextlib
import time

import pytest

from apikeyrouter import ProviderError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.call import Call
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import ConfigurationError, ErrorCategory
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import House, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")


def call(*, stream: bool = True, deadline: float | None = None, text: str = "hello") -> Call:
    """A call as the service makes one."""
    return Call(
        request_id="req_test", operation="chat", model="gpt-4o-mini", stream=stream, started=time.perf_counter(),
        intent=RequestIntent.parse(intent(text)), deadline=deadline,
    )  # fmt: skip


async def upstream_in_flight(made: House) -> int:
    """Requests that the providers are working on."""
    return int((await made.simulator.report())["total"]["in_flight"])


async def test_a_cancelled_request_is_charged_as_expected(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["s1"]) as made:
        task = asyncio.create_task(made.route())
        await until(lambda: upstream_in_flight(made))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await made.at_rest() > 0
        await made.billed()
        assert [(facts.outcome, facts.attempts[-1].failure) for facts in made.finished] == [("cancelled", "cancelled")]


async def test_cancelling_at_any_moment_leaves_nothing_held(simulator: SimulatorProcess, store: StateStore) -> None:
    """Before, during and after the reserve, the send, the answer: after each number of turns of the loop."""
    async with house(simulator, store, ["a1"]) as made:
        for turns in range(60):
            task = asyncio.create_task(made.route())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert len(made.finished) >= 59  # one that never began is no request
        assert await made.at_rest() >= await made.billed()
        assert (await made.route()).content


async def test_leaving_a_stream_early_cuts_the_provider_off(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["s1"]) as made:
        stream = made.router.route_stream(intent())
        async for chunk in stream:
            if chunk.text:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        assert await made.at_rest() > 0
        assert await made.billed() > 0
        assert [(facts.outcome, facts.usage and facts.usage.estimated) for facts in made.finished] == [
            ("disconnected", True)
        ]
        assert (await made.seen("org-s"))["disconnected"] == 1


async def test_a_stream_that_is_dropped_without_closing_ends_too(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["s1"]) as made:
        async for _ in made.router.route_stream(intent()):
            break
        await until(lambda: made.finished)
        await made.at_rest()
        await made.billed()


async def test_a_reader_cancelled_in_mid_stream_ends_it(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["s1"]) as made:
        exchange = await made.router.serve(call())
        assert exchange.chunks is not None
        chunks = exchange.chunks
        await anext(chunks)

        async def read() -> None:
            async for _ in chunks:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await chunks.aclose()
        await chunks.aclose()
        assert await made.at_rest() > 0
        assert await made.billed() > 0
        assert [facts.outcome for facts in made.finished] == ["disconnected"]


async def test_closing_a_stream_while_another_task_reads_it_settles_once(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["s1"]) as made:
        exchange = await made.router.serve(call())
        assert exchange.chunks is not None
        chunks = exchange.chunks

        async def read() -> None:
            async for _ in chunks:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        await chunks.aclose()
        with contextlib.suppress(ProviderError):
            await task
        await made.at_rest()
        assert [facts.outcome for facts in made.finished] == ["disconnected"]


async def test_a_client_that_leaves_after_the_last_event_has_cost_what_was_told(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        exchange = await made.router.serve(call())
        assert exchange.chunks is not None
        received = b""
        while b"[DONE]" not in received:
            received += await anext(exchange.chunks)
        await exchange.chunks.aclose()
        assert await made.at_rest() == await made.billed()
        (facts,) = made.finished
        assert facts.outcome == "ok"
        assert facts.usage is not None
        assert not facts.usage.estimated


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_of_the_caller_speaks_against_nobody(
    simulator: SimulatorProcess, store: StateStore, stream: bool
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    async with house(simulator, store, ["a1", "b1"]) as made:
        for _ in range(3):
            with pytest.raises(ProviderError) as caught:
                await made.router.serve(call(stream=stream, deadline=time.perf_counter() + 0.2))
            assert caught.value.category is ErrorCategory.TimeoutError
        await made.at_rest()
        lanes = await made.router.ledger.lanes(made.router.catalogue.lane_ids())
        assert [lane.id for lane in lanes if lane.failures_total] == []
        assert [len(facts.attempts) for facts in made.finished] == [1, 1, 1]


async def test_after_the_deadline_nothing_is_sent(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        with pytest.raises(ProviderError):
            await made.router.serve(call(deadline=time.perf_counter() - 1))
        assert await made.at_rest() == 0
        assert (await made.seen("org-a"))["arrived"] == 0


async def test_closing_the_router_ends_open_streams_and_requests(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    made: House
    async with house(simulator, store, ["s1"]) as made:
        exchange = await made.router.serve(call())
        waiting = asyncio.create_task(made.route())
        await until(lambda: len(made.router.books.open) == 2)
        await until(lambda: upstream_in_flight(made))
    assert (made.router.in_flight, made.router.books.open, made.router.books.waiting) == (0, {}, 0)
    with pytest.raises(ProviderError, match="closed"):
        await waiting
    assert exchange.chunks is not None
    with pytest.raises(ProviderError, match="closed"):
        async for _ in exchange.chunks:
            pass
    assert len(made.finished) == 2
    assert made.router.books.settled == 2


async def test_draining_waits_for_what_is_open(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "s1"]) as made:
        exchange = await made.router.serve(call())
        assert not await made.router.drain(0.05)
        assert exchange.chunks is not None
        await exchange.chunks.aclose()
        assert await made.router.drain(5.0)


async def test_another_event_loop_is_refused(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:

        def elsewhere() -> None:
            asyncio.run(made.router.serve(call()))

        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(elsewhere)
