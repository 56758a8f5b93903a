"""Batches: bounded, in order, told, and gone without a trace when they are given up."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from apikeyrouter import ProviderError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.system_response import SystemResponse
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_answers_come_in_the_order_of_the_requests_and_progress_is_told(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    told: list[tuple[int, int | None]] = []
    async with house(simulator, store, ["a1"]) as made:
        asked = [intent(f"number {n}") for n in range(30)]
        answers = await made.router.route_batch(
            asked, concurrency=7, on_progress=lambda done, total: told.append((done, total))
        )
        assert [answer.content[:18] for answer in answers] == [f"You said: number {n}"[:18] for n in range(30)]
        assert told == [(done, 30) for done in range(1, 31)]
        assert await made.at_rest() == await made.billed() > 0


async def test_no_more_are_under_way_than_asked_for_and_an_endless_source_is_read_as_needed(
    simulator: SimulatorProcess,
) -> None:
    taken: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for number in range(10**9):
            taken.append(number)
            yield intent(f"number {number}")

    most = 0
    async with house(simulator, InMemoryStateStore(), ["s1"]) as made:
        batch = asyncio.create_task(made.router.route_batch(source(), concurrency=5))
        await until(lambda: made.router.in_flight == 5)
        for _ in range(20):
            await asyncio.sleep(0.01)
            most = max(most, made.router.in_flight)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert (most, taken) == (5, [0, 1, 2, 3, 4])
        await made.at_rest()
        assert {facts.outcome for facts in made.finished} == {"cancelled"}


async def test_requests_may_come_from_an_async_source(simulator: SimulatorProcess) -> None:
    async def source() -> AsyncIterator[dict[str, Any]]:
        for number in range(6):
            await asyncio.sleep(0)
            yield intent(f"number {number}")

    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        answers = await made.router.route_batch(source(), concurrency=3)
        assert len(answers) == len(made.finished) == 6


async def test_errors_stand_among_the_answers_when_asked_for(simulator: SimulatorProcess, store: StateStore) -> None:
    asked = [intent("one"), {"model": "gpt-4o-mini"}, intent("three"), {"nonsense": True}]
    async with house(simulator, store, ["a1"]) as made:
        first, second, third, fourth = await made.router.route_batch(asked, return_exceptions=True)
        assert isinstance(first, SystemResponse)
        assert isinstance(third, SystemResponse)
        assert isinstance(second, InvalidRequestError)
        assert isinstance(fourth, InvalidRequestError)
        await made.at_rest()


async def test_the_first_error_ends_the_others_and_is_raised(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["s1"]) as made:
        await simulator.fail("context_length_exceeded", organisation="org-s", count=1, skip=2)
        with pytest.raises(ProviderError):
            await made.router.route_batch([intent(f"number {n}") for n in range(20)], concurrency=4)
        await made.at_rest()
        assert len(made.finished) == 4, "nothing was begun after the error"
        assert sorted(facts.outcome for facts in made.finished)[0] == "cancelled"


async def test_a_wrong_request_in_a_list_is_found_before_the_first_is_sent(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        with pytest.raises(InvalidRequestError, match=r"intents\[2\]\.messages"):
            await made.router.route_batch([intent("one"), intent("two"), {"model": "gpt-4o-mini", "messages": []}])
        assert made.finished == []


async def test_a_progress_callback_may_be_async_and_may_fail(simulator: SimulatorProcess) -> None:
    told: list[int] = []

    async def on_progress(done: int, total: int | None) -> None:
        told.append(done)
        raise RuntimeError("its own mistake")

    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        answers = await made.router.route_batch((intent(f"number {n}") for n in range(4)), on_progress=on_progress)
        assert len(answers) == len(told) == 4


async def test_an_empty_batch_is_no_work() -> None:
    async with ApiKeyRouter(InMemoryStateStore()) as router:
        assert await router.route_batch([]) == []


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"concurrency": True}, {"concurrency": 10**6},
                                     {"concurrency": 1.5}, {"on_progress": 3}])  # fmt: skip
async def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    async with ApiKeyRouter(InMemoryStateStore()) as router:
        with pytest.raises(InvalidRequestError, match=r"concurrency|on_progress"):
            await router.route_batch([], **options)
        with pytest.raises(InvalidRequestError, match="intents"):
            await router.route_batch("no list")  # type: ignore[arg-type]
