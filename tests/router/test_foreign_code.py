"""Adapters that do not end when they are told to: the caller has its time-out, the books an entry, the log a line."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
import structlog

from apikeyrouter import ApiKeyRouter, BudgetExceededError, ProviderError
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import ErrorCategory
from apikeyrouter.domain.models.system_response import ResponseMetadata, StreamChunk, SystemResponse, TokenUsage
from apikeyrouter.infrastructure.adapters.transport import Timeouts
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.serving import foreign_code
from apikeyrouter.serving.foreign_code import finish_within
from tests.router.house import MASTER_KEY, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")


class Stubborn(ProviderAdapter):
    """Goes on, whatever it is told, until it is let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.cancelled = 0
        self.ended = 0

    async def never_mind(self) -> None:
        """Wait, cancelled or not."""
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        self.ended += 1

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        await self.never_mind()
        return "too late"


class StubbornStream(Stubborn):
    """The same after its first piece."""

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[Any]:
        yield "first"
        await self.never_mind()
        yield "too late"


class StubbornEstimate(Stubborn):
    """The same while it is asked for an estimate; it answers at once."""

    async def estimate_cost(self, intent: RequestIntent) -> CostEstimate | None:
        await self.never_mind()
        return None

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        return "answer"


class Telling(ProviderAdapter):
    """Answers with what it was made with."""

    def __init__(self, told: Any) -> None:
        self.told = told

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        return self.told

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[Any]:
        yield self.told


@asynccontextmanager
async def routed(adapter: ProviderAdapter, **metadata: Any) -> AsyncIterator[ApiKeyRouter]:
    """A router over one adapter with one key. What the adapter does ends with it; stubborn ones have little time."""
    try:
        async with ApiKeyRouter(state_store=InMemoryStateStore(), config={"encryption_key": MASTER_KEY}) as router:
            router.timeouts = Timeouts(total=0.2 if isinstance(adapter, Stubborn) else 20.0)
            await router.register_provider("custom", adapter)
            await router.register_key("custom-key-material-0123456789", "custom", metadata)
            yield router
    finally:
        if isinstance(adapter, Stubborn):
            adapter.let_go.set()


async def is_booked(router: ApiKeyRouter, budget_id: str) -> None:
    """The estimate is spent, and nothing is held or in flight."""
    assert await router.books.flush(seconds=5)
    status = await router.cost_controller.get_budget_status(budget_id)
    assert status.settled > 0
    assert status.held == status.suspense == 0
    assert not [lane.id for lane in await router.ledger.lanes(router.catalogue.lane_ids()) if lane.in_flight]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_adapter_that_swallows_its_cancellation_is_left_behind(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = StubbornStream() if stream else Stubborn()
    async with routed(adapter, cost_per_1k="0.01") as router:
        budget = await router.cost_controller.create_budget("global", 10)
        with structlog.testing.capture_logs() as lines, pytest.raises(ProviderError) as caught:
            if stream:
                [str(piece) async for piece in router.route_stream(intent())]
            else:
                await router.route(intent())
        assert caught.value.category is ErrorCategory.TimeoutError
        assert (adapter.cancelled, adapter.ended) == (1, 0), "it goes on, and nobody waits for it"
        await is_booked(router, budget.id)
        told = [line for line in lines if line["event"] == "adapter.left_behind"]
        assert [(line["provider_id"], line["log_level"]) for line in told] == [("custom", "warning")]
        settled = (await router.cost_controller.get_budget_status(budget.id)).settled
        adapter.let_go.set()
        await until(lambda: adapter.ended == 1)
        assert await router.books.flush(seconds=5)
        assert (await router.cost_controller.get_budget_status(budget.id)).settled == settled
    await until(lambda: not foreign_code._left)
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_caller_that_cancels_is_not_kept_by_an_adapter_that_goes_on() -> None:
    adapter = Stubborn()
    async with routed(adapter, cost_per_1k="0.01") as router:
        router.timeouts = Timeouts()
        budget = await router.cost_controller.create_budget("global", 10)
        asking = asyncio.create_task(router.route(intent()))
        await until(lambda: router.in_flight == 1 and len(router.books.open) == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert adapter.ended == 0
        await is_booked(router, budget.id)


async def test_an_estimate_that_never_comes_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apikeyrouter.serving.requests.ESTIMATE_SECONDS_MAX", 0.1)
    adapter = StubbornEstimate()
    async with routed(adapter) as router:
        router.timeouts = Timeouts()
        assert (await router.route(intent())).content == "answer"
        assert adapter.ended == 0


async def test_what_ends_in_time_is_waited_for() -> None:
    async def clean_up() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            done.append(True)

    done: list[bool] = []
    with pytest.raises(TimeoutError):
        await finish_within(clean_up(), 0.01, provider_id="p")
    assert done == [True]


async def test_an_adapter_that_cancels_itself_has_failed() -> None:
    class Gone(ProviderAdapter):
        async def execute_request(self, intent: RequestIntent, key: str) -> Any:
            raise asyncio.CancelledError

    async with routed(Gone()) as router:
        with pytest.raises(ProviderError, match="cancelled itself"):
            await router.route(intent())


ABSURD_COUNTS = [10**30, 2**40, -1, float("nan"), float("inf"), 1.5, "many"]


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("count", ABSURD_COUNTS, ids=str)
async def test_counts_that_nobody_tells_are_no_usage(count: object, hard: bool) -> None:
    told = {"content": "x", "usage": {"prompt_tokens": count, "completion_tokens": 1}}
    async with routed(Telling(told), cost_per_1k="0.01") as router:
        budget = await router.cost_controller.create_budget("global", 10, enforcement_mode="hard" if hard else "soft")
        answer = await router.route(intent(parameters={"max_tokens": 50}))
        assert answer.metadata.tokens_used.estimated
        assert 0 < answer.metadata.tokens_used.total < 1000
        assert answer.metadata.cost_actual is not None
        assert 0 < answer.metadata.cost_actual < 1
        await is_booked(router, budget.id)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("amount", ["1e30", "NaN", "Infinity", "-1", "9007199.254740992"])
async def test_a_cost_that_nobody_asks_is_no_cost(amount: str, stream: bool) -> None:
    cost = CostEstimate.made(amount=Decimal(amount))
    usage = TokenUsage(input_tokens=100, output_tokens=100)
    whole = SystemResponse.made(
        content="x", metadata=ResponseMetadata(model_used="m", tokens_used=usage), cost=cost
    )  # fmt: skip
    adapter = Telling(StreamChunk(text="x", usage=usage, cost=cost) if stream else whole)
    async with routed(adapter, cost_per_1k="0.01") as router:
        budget = await router.cost_controller.create_budget("global", 10)
        if stream:
            assert [piece async for piece in router.route_stream(intent())][-1].cost is not None
        else:
            assert (await router.route(intent())).metadata.cost_actual == Decimal("0.002")
        await is_booked(router, budget.id)
        assert (await router.cost_controller.get_budget_status(budget.id)).settled == Decimal("0.002")


async def test_a_price_that_makes_more_than_can_be_booked_books_the_estimate() -> None:
    told = {"content": "x", "usage": {"prompt_tokens": 2**31, "completion_tokens": 2**31}}
    async with routed(Telling(told), cost_per_1k="10") as router:
        budget = await router.cost_controller.create_budget("global", 1000)
        answer = await router.route(intent(parameters={"max_tokens": 50}))
        assert answer.metadata.tokens_used.estimated
        await is_booked(router, budget.id)
        assert answer.metadata.cost_actual is not None
        assert answer.metadata.cost_actual < 100


@pytest.mark.parametrize("junk", [5, b"x", None, {"zz": 1}], ids=str)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_no_answer_is_booked_as_held(junk: object, stream: bool) -> None:
    async with routed(Telling(junk), cost_per_1k="0.01") as router:
        budget = await router.cost_controller.create_budget("global", 10, enforcement_mode="hard")
        with pytest.raises(ProviderError):
            if stream:
                [str(piece) async for piece in router.route_stream(intent())]
            else:
                await router.route(intent())
        await is_booked(router, budget.id)


async def test_who_is_cancelled_as_a_stream_ends_leaves_no_error_that_nobody_hears() -> None:
    async def nothing() -> AsyncIterator[str]:
        for _ in range(3):
            await asyncio.sleep(0)
        for piece in list[str]():
            yield piece

    loop, unheard = asyncio.get_running_loop(), list[Any]()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: unheard.append(context))
    try:
        for steps in range(12):
            waiting = asyncio.ensure_future(foreign_code.Pieces(nothing(), provider_id="own").next(None))
            for _ in range(steps):
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises((asyncio.CancelledError, StopAsyncIteration, RuntimeError)):
                await waiting
            del waiting
            gc.collect()
    finally:
        loop.set_exception_handler(before)
    assert unheard == []


@pytest.mark.parametrize("stream", [True, False])
async def test_text_that_is_no_unicode_is_no_answer(stream: bool) -> None:
    async with routed(Telling("\ud800 hello"), cost_per_1k="0.01") as router:
        budget = await router.cost_controller.create_budget("global", 10, enforcement_mode="hard")
        with pytest.raises(ProviderError, match="text that is no Unicode"):
            if stream:
                [str(piece) async for piece in router.route_stream(intent())]
            else:
                await router.route(intent())
        await is_booked(router, budget.id)


async def test_an_adapter_that_raises_generator_exit_has_failed() -> None:
    class Gone(ProviderAdapter):
        async def execute_request(self, intent: RequestIntent, key: str) -> Any:
            raise GeneratorExit

        async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[Any]:
            if key:
                raise GeneratorExit
            yield "never"

    class GoneAtOnce(ProviderAdapter):
        def execute_request(self, intent: RequestIntent, key: str) -> Any:
            raise GeneratorExit

    for adapter in (Gone(), GoneAtOnce()):
        async with routed(adapter) as router:
            with pytest.raises(ProviderError, match="raised GeneratorExit"):
                await router.route(intent())
            assert router.in_flight == 0
    async with routed(Gone()) as router:
        with pytest.raises(ProviderError, match="raised GeneratorExit"):
            [str(piece) async for piece in router.route_stream(intent())]
        assert router.in_flight == 0


async def test_what_is_told_above_the_bound_is_booked_and_said_once() -> None:
    told = {"content": "x", "usage": {"prompt_tokens": 5000, "completion_tokens": 5000}}
    async with routed(Telling(told), cost_per_1k="1") as router:
        budget = await router.cost_controller.create_budget("global", 15, enforcement_mode="hard")
        with structlog.testing.capture_logs() as lines:
            for _ in range(2):
                await router.route(intent(parameters={"max_tokens": 10}))
            assert await router.books.flush(seconds=20)
            with pytest.raises(BudgetExceededError):
                await router.route(intent(parameters={"max_tokens": 10}))
        (said,) = [line for line in lines if line["event"] == "budget.bound_exceeded"]
        assert (said["provider_id"], said["cost_nanousd"], said["log_level"]) == ("custom", 10 * 10**9, "warning")
        assert 0 < said["held_nanousd"] < 10**9
        await is_booked(router, budget.id)
        assert (await router.cost_controller.get_budget_status(budget.id)).settled == 20
