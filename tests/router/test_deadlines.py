"""One call's own time: of requests, streams, batches and leases, in the library and as SDKs tell it."""

import asyncio
import gc
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter, ErrorCategory, ProviderError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.surface.requests import ANYBODY, make_call
from apikeyrouter.infrastructure.surface.routes import ROUTES
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, House, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
SHORT = 0.4


async def is_late(made: House, work: Any) -> None:
    with pytest.raises(ProviderError) as caught:
        await work
    assert (caught.value.category, caught.value.retryable) == (ErrorCategory.TimeoutError, False)
    assert made.finished[-1].attempts[-1].meaning == "deadline_passed"
    settled, billed = await made.at_rest(), await made.billed()
    assert settled >= billed - billed // 5, "at least an estimate, by a model that has told nothing yet"
    (lane,) = await made.router.ledger.lanes(["p:openai"])
    assert lane.failures_total == 0, "running out of time is evidence against nobody"


async def test_a_request_ends_with_its_own_time(simulator: SimulatorProcess, store: StateStore) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    async with house(simulator, store, ["a1", "a2"]) as made:
        await is_late(made, made.router.route(intent(), timeout=SHORT))
        assert len(made.finished[-1].attempts) == 1


async def test_a_stream_ends_with_its_own_time(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["s1"]) as made:  # it would take ten seconds

        async def read() -> None:
            async for _ in made.router.route_stream(intent(), timeout=SHORT):
                pass

        await is_late(made, read())


async def test_each_request_of_a_batch_has_the_time(simulator: SimulatorProcess, store: StateStore) -> None:
    await simulator.fail("stall_before_first_byte", count=1, seconds=3600)
    async with house(simulator, store, ["a1"]) as made:
        answers = await made.router.route_batch([intent()] * 3, concurrency=1, timeout=2.0, return_exceptions=True)
        assert [isinstance(answer, ProviderError) for answer in answers] == [True, False, False]
        await made.at_rest()


async def test_a_lease_ends_its_block_with_its_time_and_charges_the_estimate(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        with pytest.raises(ProviderError) as caught:
            async with made.router.lease("gpt-4o-mini", estimated_tokens=100, timeout=SHORT) as lease:
                assert 0 < (lease.timeout or 0) <= SHORT
                await asyncio.sleep(3600)
        assert caught.value.category is ErrorCategory.TimeoutError
        assert made.finished[-1].outcome == "timeout_error"
        assert await made.at_rest() > 0


async def test_a_lease_that_ended_in_time_ends_nothing_later(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        async with made.router.lease("gpt-4o-mini", estimated_tokens=100, timeout=1.0) as lease:
            lease.settle(input_tokens=1, output_tokens=1)
            await asyncio.sleep(1.2)
        await asyncio.sleep(0.1)
        assert made.finished[-1].outcome == "ok"


async def test_a_lease_without_a_task_is_lost_with_its_time(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"]) as made:
        leasing = made.router.lease("gpt-4o-mini", estimated_tokens=100, timeout=1.0)
        lease = await asyncio.create_task(leasing.__aenter__())
        await until(lambda: lease.ended)
        with pytest.raises(InvalidRequestError, match="its time is over"):
            lease.settle(input_tokens=1, output_tokens=1)
        await leasing.__aexit__(None, None, None)
        assert await made.at_rest() > 0


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "3", 10**9])
async def test_what_is_no_time_is_refused_before_anything_is_held(
    simulator: SimulatorProcess, store: StateStore, timeout: Any
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        with pytest.raises(InvalidRequestError, match="timeout"):
            await made.router.route(intent(), timeout=timeout)
        with pytest.raises(InvalidRequestError, match="timeout"):
            made.router.lease("gpt-4o-mini", timeout=timeout)
        assert await made.at_rest() == 0
        assert made.finished == []


@pytest.mark.parametrize(
    ("headers", "stream", "seconds"),
    [
        ({}, False, None),
        ({b"x-stainless-read-timeout": b"7"}, False, 7.0),
        ({b"x-stainless-timeout": b"6.5"}, False, 6.5),
        ({b"x-stainless-timeout": b"6.5", b"x-akr-timeout-ms": b"250"}, False, 0.25),
        ({b"x-stainless-read-timeout": b"NaN"}, False, None),
        ({b"x-stainless-read-timeout": b"3"}, True, None),
        ({b"x-stainless-read-timeout": b"3", b"x-akr-timeout-ms": b"9000"}, True, 9.0),
    ],
)
async def test_what_sdks_say_of_their_patience_is_a_deadline(
    headers: dict[bytes, bytes], stream: bool, seconds: float | None
) -> None:
    route = ROUTES["/v1/messages"]
    body = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}],"stream":%s}' % (
        b"true" if stream else b"false"
    )
    parsed = route.wire.parse(body, operation=route.operation)
    call = make_call(route, headers, ANYBODY, parsed, request_id="r", started=100.0)
    assert call.deadline == (None if seconds is None else 100.0 + seconds)


async def test_a_lease_that_was_dropped_does_not_cancel_who_closes_the_router(store: StateStore) -> None:
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY})
    await router.register_provider("openai", OpenAIAdapter("http://127.0.0.1:9/v1"))
    await router.register_key("sk-not-a-real-key-number-1", "openai")

    async def enter_and_close() -> str:
        await router.lease("gpt-4o-mini", estimated_tokens=100).__aenter__()
        gc.collect()
        await asyncio.wait_for(router.close(), 20)  # in a task of its own, up to Python 3.11
        return "closed"

    assert await asyncio.create_task(enter_and_close()) == "closed"
    assert router.books.open == {}
