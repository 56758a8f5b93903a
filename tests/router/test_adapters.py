"""Adapters that are no wire: what they raise, yield and return, and what it does to the books."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter, ProviderError
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import ErrorCategory, SystemError
from apikeyrouter.domain.models.system_response import StreamChunk, TokenUsage
from apikeyrouter.infrastructure.adapters.transport import Timeouts
from tests.router.house import MASTER_KEY, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
SECRET = "custom-key-material-0123456789"
INVALID = SystemError(f"no: {SECRET}", category=ErrorCategory.ValidationError)


class Scripted(ProviderAdapter):
    """Does what it is told."""

    def __init__(self, act: Callable[[str], Any]) -> None:
        self._act = act

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        done = self._act(key)
        return await done if asyncio.iscoroutine(done) else done


class Streaming(Scripted):
    """Yields what it is told."""

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[StreamChunk]:
        for piece in self._act(key):
            if isinstance(piece, BaseException):
                raise piece
            yield piece


class Broken(Scripted):
    """Cannot even read its own errors."""

    def map_error(self, provider_error: Exception) -> SystemError:
        raise RuntimeError("a second mistake")


def raising(error: BaseException) -> Callable[[str], Any]:
    """An act that fails."""

    def act(_: str) -> Any:
        raise error

    return act


async def routed(store: StateStore, adapter: ProviderAdapter, **metadata: Any) -> ApiKeyRouter:
    """A router over one custom adapter with one key."""
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY})
    router.timeouts = Timeouts(connect=0.3, first_byte=0.3, idle=0.3, total=0.3)
    await router.register_provider("custom", adapter)
    await router.register_key(SECRET, "custom", metadata)
    return router


async def at_rest(router: ApiKeyRouter) -> None:
    """Nothing is held, in flight, or in drift."""
    assert router.in_flight == 0
    assert await router.books.flush(seconds=5)
    assert router.books.open == {}
    assert [lane.id for lane in await router.ledger.lanes(router.catalogue.lane_ids()) if lane.in_flight] == []


@pytest.mark.parametrize(
    ("adapter", "category"),
    [
        (Scripted(raising(ValueError(f"bad key {SECRET}"))), ErrorCategory.UnknownError),
        (Scripted(raising(TimeoutError())), ErrorCategory.TimeoutError),
        (Scripted(raising(INVALID)), ErrorCategory.ValidationError),
        (Scripted(lambda _: object()), ErrorCategory.ProviderError),
        (Scripted(lambda _: None), ErrorCategory.ProviderError),
        (Scripted(lambda _: asyncio.sleep(3600)), ErrorCategory.TimeoutError),
        (Broken(raising(ValueError("first"))), ErrorCategory.UnknownError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_whatever_an_adapter_does_the_caller_gets_one_kind_of_error(
    store: StateStore, adapter: ProviderAdapter, category: ErrorCategory, stream: bool
) -> None:
    async with await routed(store, adapter) as router:
        with pytest.raises(ProviderError) as caught:
            if stream:
                [chunk async for chunk in router.route_stream(intent())]
            else:
                await router.route(intent())
        assert caught.value.category is category
        assert SECRET not in f"{caught.value!r} {caught.value.details}"
        await at_rest(router)


async def test_an_adapters_answer_is_priced_by_its_keys_own_price(store: StateStore) -> None:
    answer = {"content": "hi", "usage": {"input_tokens": 1500, "output_tokens": 500}}
    async with await routed(store, Scripted(lambda _: answer), cost_per_1k="0.002") as router:
        told = await router.route(intent())
        assert told.cost is not None
        assert str(told.cost.amount.normalize()) == "0.004"
        assert told.metadata.cost_actual == told.cost.amount
        await at_rest(router)


async def test_an_adapter_that_tells_no_usage_is_estimated(store: StateStore) -> None:
    async with await routed(store, Scripted(lambda _: "a short text"), cost_per_1k="0.002") as router:
        told = await router.route(intent())
        assert told.metadata.tokens_used.estimated
        assert told.metadata.tokens_used.input_tokens > 0
        assert told.cost is not None
        assert told.cost.amount > 0
        await at_rest(router)


async def test_a_streaming_adapter_ends_with_one_last_chunk(store: StateStore) -> None:
    usage = TokenUsage(input_tokens=3, output_tokens=2)
    pieces: list[Any] = [
        StreamChunk(text="a"),
        "b",
        StreamChunk(text="c", last=True, usage=usage, finish_reason="stop"),
    ]
    async with await routed(store, Streaming(lambda _: pieces), cost_per_1k="1") as router:
        *rest, last = [chunk async for chunk in router.route_stream(intent())]
        assert ("".join(map(str, rest)), [chunk.last for chunk in rest]) == ("abc", [False] * 3)
        assert (last.last, last.usage, last.finish_reason) == (True, usage, "stop")
        await at_rest(router)


@pytest.mark.parametrize(
    "wrong", [ConnectionResetError("gone"), object(), SystemError("no", category=ErrorCategory.ProviderError)]
)
async def test_a_streaming_adapter_that_breaks_tells_what_was_received(store: StateStore, wrong: object) -> None:
    async with await routed(store, Streaming(lambda _: [StreamChunk(text="so far"), wrong])) as router:
        with pytest.raises(ProviderError) as caught:
            [chunk async for chunk in router.route_stream(intent())]
        assert caught.value.details["partial"] == "so far"
        await at_rest(router)


async def test_an_adapters_authentication_error_makes_the_key_invalid(store: StateStore) -> None:
    class Refused(Exception):
        status_code = 401

    async with await routed(store, Scripted(raising(Refused()))) as router:
        with pytest.raises(ProviderError):
            await router.route(intent())
        (key,) = router.catalogue.keys.values()
        assert key.state is KeyState.Invalid

        async def stored() -> bool:
            (found,) = await router.key_manager.list_keys()
            return found.state is KeyState.Invalid

        await until(stored)
        await at_rest(router)
