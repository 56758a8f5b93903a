"""Time limits by phase and in all, and what a call that ran out of time has cost and said."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter, ErrorCategory, NoEligibleKeysError, ProviderError, SystemError
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_response import StreamChunk
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.adapters.transport import Timeouts
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.adapters.raw_upstream import silent_server, upstream
from tests.router.house import MASTER_KEY, House, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
SECRET = "custom-key-material-0123456789"


async def evidence(made: House) -> int:
    """Failures that the breaker of the provider counts."""
    (lane,) = await made.router.ledger.lanes(["p:openai"])
    return lane.failures_total


def failure_of(error: SystemError) -> Failure:
    told = error.details["failure"]
    assert isinstance(told, Failure)
    return told


# --- phases ----------------------------------------------------------------------------------------------------------


async def test_a_connection_that_is_not_made_in_time_costs_nothing(store: StateStore) -> None:
    accepted: list[asyncio.StreamWriter] = []
    server, port = await silent_server(accepted)
    async with server, ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY}) as router:
        router.timeouts = Timeouts(connect=0.2, first_byte=10, idle=10)
        await router.register_provider("silent", OpenAIAdapter(f"https://127.0.0.1:{port}/v1"))
        await router.register_key(SECRET, "silent")
        with pytest.raises(ProviderError) as caught:
            await router.route(intent())
        failure = failure_of(caught.value)
        assert (failure.meaning, failure.billed, caught.value.category) == (
            "connect_timeout", False, ErrorCategory.TimeoutError,
        )  # fmt: skip
        (facts,) = router.decisions
        assert (facts.cost_nanousd, facts.cost_estimated) == (None, False)
        for writer in accepted:
            writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_does_not_begin_in_time_is_booked_as_an_estimate_and_says_so(
    simulator: SimulatorProcess, store: StateStore, stream: bool
) -> None:
    await simulator.fail("stall_before_first_byte", organisation="org-a", seconds=3600, count=1)
    async with house(simulator, store, ["a1", "b1"]) as made:
        made.router.timeouts = Timeouts(connect=2, first_byte=0.2, idle=0.2)
        for _ in range(4):
            await (made.stream() if stream else made.route())
        (over,) = [facts for facts in made.finished if len(facts.attempts) == 2]
        late, served = over.attempts
        assert (late.meaning, late.cost_estimated, served.cost_estimated) == ("provider_late", True, False)
        assert late.cost_nanousd is not None
        assert served.cost_nanousd is not None
        assert late.cost_nanousd > 0
        assert (over.cost_nanousd, over.cost_estimated) == (late.cost_nanousd + served.cost_nanousd, True)
        assert await made.at_rest() == sum(facts.cost_nanousd or 0 for facts in made.finished) >= await made.billed()
        assert await evidence(made) == 1


async def test_connections_of_ours_that_are_all_in_use_speak_against_nobody(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600, count=1)
    limited = {"openai": {"adapter": "openai", "base_url": simulator.openai_url, "connections_max": 1}}
    async with house(simulator, store, ["a1", "a2"], providers=limited) as made:
        slow = asyncio.create_task(made.route())

        async def holds_it() -> bool:
            return bool((await simulator.report())["total"]["in_flight"])

        await until(holds_it)
        made.router.timeouts = Timeouts(connect=2, first_byte=0.1)
        with pytest.raises(ProviderError) as caught:
            await made.route()
        failure = failure_of(caught.value)
        assert (failure.meaning, failure.billed, caught.value.category) == (
            "no_connection_free", False, ErrorCategory.RateLimitError,
        )  # fmt: skip
        assert await evidence(made) == 0
        slow.cancel()
        await asyncio.wait([slow])
        made.router.timeouts = Timeouts()
        await made.route()


# --- the time of a whole call ----------------------------------------------------------------------------------------


async def test_no_attempt_begins_after_the_time_of_the_call_and_nobody_is_blamed(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    async with house(simulator, store, ["a1", "a2"]) as made:
        made.router.timeouts = Timeouts(connect=2, first_byte=20, idle=20, total=0.5)
        with pytest.raises(ProviderError) as caught:
            await made.route()
        assert (caught.value.category, caught.value.retryable) == (ErrorCategory.TimeoutError, False)
        (facts,) = made.finished
        assert [attempt.meaning for attempt in facts.attempts] == ["deadline_passed"]
        assert facts.cost_estimated
        assert await made.at_rest() >= await made.billed()
        assert await evidence(made) == 0


async def test_what_is_left_of_the_time_is_what_the_next_attempt_gets(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    async with house(simulator, store, ["a1", "b1"]) as made:
        made.router.timeouts = Timeouts(connect=2, first_byte=0.3, idle=20, total=0.5)
        with pytest.raises(ProviderError):
            await made.route()
        (facts,) = made.finished
        assert [attempt.meaning for attempt in facts.attempts] == ["provider_late", "deadline_passed"]
        await made.at_rest()


async def test_a_stream_ends_with_the_time_of_its_call(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["s1"]) as made:  # it would take ten seconds
        made.router.timeouts = Timeouts(connect=2, first_byte=20, idle=20, total=0.6)
        with pytest.raises(ProviderError) as caught:
            await made.stream()
        assert caught.value.category is ErrorCategory.TimeoutError
        assert caught.value.details["partial"]
        assert failure_of(caught.value).meaning == "deadline_passed"
        settled, billed = await made.at_rest(), await made.billed()
        assert abs(settled - billed) <= billed // 5, "an estimate, by a model that has told nothing yet"
        assert await evidence(made) == 0


# --- adapters of one's own -------------------------------------------------------------------------------------------


class Own(ProviderAdapter):
    """Does what it is told."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        done = self._act()
        return await done if asyncio.iscoroutine(done) else done


class Endless(Own):
    """Never comes to an end."""

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[StreamChunk]:
        while True:
            await asyncio.sleep(0.01)
            yield StreamChunk(text="and ")


async def routed(store: StateStore, adapter: ProviderAdapter, timeouts: Timeouts) -> ApiKeyRouter:
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY})
    router.timeouts = timeouts
    await router.register_provider("own", adapter)
    await router.register_key(SECRET, "own", {"cost_per_1k": "0.01"})
    return router


async def test_an_adapter_that_hangs_is_given_up_without_a_limit_in_all(store: StateStore) -> None:
    hanging = Own(lambda: asyncio.sleep(3600))
    async with await routed(store, hanging, Timeouts(connect=1, first_byte=0.2, idle=0.2)) as router:
        with pytest.raises(ProviderError) as caught:
            await router.route(intent())
        assert failure_of(caught.value).meaning == "provider_late"


async def test_an_adapter_that_never_ends_ends_with_the_call(store: StateStore) -> None:
    endless = Endless(lambda: None)
    async with await routed(store, endless, Timeouts(connect=1, first_byte=5, idle=5, total=0.4)) as router:
        started, received = time.monotonic(), ""
        with pytest.raises(ProviderError) as caught:
            async for chunk in router.route_stream(intent()):
                received += str(chunk)
        assert time.monotonic() - started < 60
        assert caught.value.details["partial"] == received != ""
        assert caught.value.details["usage"].estimated
        assert router.in_flight == 0


@pytest.mark.parametrize("nonsense", [object(), 7, {"contents": "x"}, ["a"], {"content": None}])
async def test_nonsense_from_an_adapter_may_have_been_billed(store: StateStore, nonsense: object) -> None:
    async with await routed(store, Own(lambda: nonsense), Timeouts()) as router:
        with pytest.raises(ProviderError) as caught:
            await router.route(intent())
        failure = failure_of(caught.value)
        assert (failure.meaning, failure.billed) == ("garbled", None)
        (facts,) = router.decisions
        assert facts.cost_estimated
        assert facts.cost_nanousd


class Limited(Own):
    """Speaks a little, then is rate limited."""

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[StreamChunk]:
        yield StreamChunk(text="so far")
        raise SystemError("slow down", category=ErrorCategory.RateLimitError, retry_after=40)


async def test_a_failure_in_the_middle_of_an_answer_is_acted_on_too(store: StateStore) -> None:
    async with await routed(store, Limited(lambda: None), Timeouts()) as router:
        with pytest.raises(ProviderError) as caught:
            [chunk async for chunk in router.route_stream(intent())]
        assert caught.value.details["partial"] == "so far"
        (facts,) = router.decisions
        assert facts.attempts[0].meaning == "rate_limited"
        await asyncio.sleep(0.05)
        with pytest.raises(NoEligibleKeysError) as next_one:
            await router.route(intent())
        assert next_one.value.retry_after is not None
        assert next_one.value.retry_after > 20


async def test_a_category_that_an_adapter_spells_out_means_what_the_member_does(store: StateStore) -> None:
    def limited() -> None:
        raise SystemError("slow down", category="rate_limit_error", retry_after=40)

    async with await routed(store, Own(limited), Timeouts()) as router:
        with pytest.raises(ProviderError) as caught:
            await router.route(intent())
        assert caught.value.category is ErrorCategory.RateLimitError
        failure = failure_of(caught.value)
        assert (failure.meaning, failure.retry_after_us) == ("rate_limited", 40_000_000)


async def test_a_memory_of_complete_streams_makes_the_books_of_broken_ones_right(
    simulator: SimulatorProcess,
) -> None:
    async with house(simulator, InMemoryStateStore(), ["s1"]) as made:
        made.router.timeouts = Timeouts(connect=2, first_byte=20, idle=20, total=20)
        await made.stream(parameters={"max_tokens": 30})
        before, billed = await made.at_rest(), await made.billed()
        assert before == billed
        chunks = made.router.route_stream(intent())
        async for _ in chunks:
            break
        await chunks.aclose()  # type: ignore[attr-defined]
        after, billed = await made.at_rest(), await made.billed()
        assert after >= billed


# --- readers that are slow -------------------------------------------------------------------------------------------


class Ready(Own):
    """Has its next piece ready, always; never waits for anything."""

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[StreamChunk]:
        while True:
            yield StreamChunk(text="and ")


async def test_a_stream_that_never_pauses_ends_with_its_time(store: StateStore) -> None:
    async with await routed(store, Ready(lambda: None), Timeouts()) as router:
        with pytest.raises(ProviderError) as caught:
            async for _ in router.route_stream(intent(), timeout=0.3):
                pass
        assert failure_of(caught.value).meaning == "deadline_passed"
        assert router.in_flight == 0


async def many_events_and_no_end(_request: bytes, writer: asyncio.StreamWriter) -> None:
    event = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"and "}}]}\n\n'
    body = event * 50
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 999999\r\n\r\n" + body)


@pytest.mark.parametrize("over_http", [True, False])
@pytest.mark.parametrize("comes_back", ["while it waits", "after a stop"])
async def test_a_stream_whose_reader_is_slow_ends_with_its_time(
    store: StateStore, over_http: bool, comes_back: str
) -> None:
    async with upstream(many_events_and_no_end) as (url, seen):
        adapter = OpenAIAdapter(url) if over_http else Ready(lambda: None)
        async with await routed(store, adapter, Timeouts()) as router:
            found: list[Facts] = []
            router.on_finished.append(found.append)
            stream = router.route_stream(intent(), timeout=0.3)
            assert str(await anext(stream)) == "and "
            assert router.in_flight == 1
            if comes_back == "while it waits":
                await until(lambda: router.in_flight == 0)  # what it held is free before anybody pulls again
                (facts,) = found
                assert (facts.outcome, facts.attempts[-1].meaning) == ("timeout_error", "deadline_passed")
                if over_http:
                    await seen.until_ended(1)
            else:
                time.sleep(0.35)  # noqa: ASYNC251 (no timer runs while the reader stops the loop)
            with pytest.raises(ProviderError) as caught:
                await anext(stream)
            assert failure_of(caught.value).meaning == "deadline_passed"
            assert caught.value.details["partial"] == "and "
            assert (router.in_flight, len(found)) == (0, 1)
            assert await router.books.flush(seconds=20)
            assert router.books.open == {}


class Brief(Own):
    """Says three words, without a pause."""

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[StreamChunk]:
        for word in ("one ", "two ", "three"):
            yield StreamChunk(text=word)


async def test_a_stream_that_ended_in_time_is_ended_by_no_timer(store: StateStore) -> None:
    async with await routed(store, Brief(lambda: None), Timeouts()) as router:
        found: list[Facts] = []
        router.on_finished.append(found.append)
        stream = router.route_stream(intent(), timeout=1.0)
        assert [str(chunk) for chunk in [await anext(stream) for _ in range(4)]] == ["one ", "two ", "three", ""]
        await asyncio.sleep(1.1)  # past its time
        assert [chunk async for chunk in stream] == []
        assert [facts.outcome for facts in found] == ["ok"]
