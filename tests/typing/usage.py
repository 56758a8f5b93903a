"""A user's code, read by mypy and never run: what the public types promise."""

from collections.abc import Iterator
from decimal import Decimal
from typing import assert_type

from apikeyrouter import (
    APIKey,
    ApiKeyRouter,
    BudgetExceededError,
    ErrorCategory,
    KeyState,
    Lease,
    Message,
    NoEligibleKeysError,
    ObjectiveType,
    ProviderError,
    RequestIntent,
    RouterSettings,
    RoutingObjective,
    SystemResponse,
    Trace,
)
from apikeyrouter.domain.models.system_response import StreamChunk
from apikeyrouter.infrastructure.adapters.anthropic_adapter import AnthropicAdapter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore


async def a_request() -> None:
    """Construction, registration, one answer."""
    async with ApiKeyRouter(state_store=InMemoryStateStore(), config=RouterSettings(max_decisions=10)) as router:
        assert_type(router, ApiKeyRouter)
        await router.register_provider("openai", OpenAIAdapter())
        key = await router.register_key("sk-…", "openai", metadata={"team": "a"})
        assert_type(key, APIKey)
        assert_type(key.state, KeyState)
        intent = RequestIntent(model="gpt-4o-mini", messages=[Message(role="user", content="Hello")])
        objective = RoutingObjective(primary=ObjectiveType.Cost)
        response = await router.route(intent, objective=objective)
        assert_type(response, SystemResponse)
        assert_type(response.content, str)
        assert_type(response.metadata.cost, Decimal | None)


async def a_stream(store: RedisStateStore) -> str:
    """A dict as the request, pieces as they come."""
    router = ApiKeyRouter(store, config={"max_decisions": 10})
    router.register_provider("anthropic", AnthropicAdapter(), overwrite=True)  # awaiting is optional
    text = ""
    async for chunk in router.route_stream({"model": "claude-haiku-5", "messages": []}, objective="cost"):
        assert_type(chunk, StreamChunk)
        text += chunk.text
    await router.close()
    return text


async def what_may_go_wrong(router: ApiKeyRouter, intent: RequestIntent) -> ErrorCategory | str | None:
    """Errors and what they carry."""
    try:
        await router.route(intent)
    except BudgetExceededError as exc:
        return str(exc.details)
    except ProviderError as exc:
        return exc.category
    except NoEligibleKeysError as exc:
        return str(exc)
    return None


async def other_ways(router: ApiKeyRouter, intent: RequestIntent) -> None:
    """Batches, leases, threads, events."""
    assert_type(await router.route_batch([intent]), list[SystemResponse])
    answers = await router.route_batch([intent], return_exceptions=True, on_progress=lambda done, total: None)
    assert_type(answers, list[SystemResponse | Exception])
    async with router.lease("gpt-4o-mini", estimated_tokens=10) as lease:
        assert_type(lease, Lease)
        assert_type(lease.model, str)
        assert_type(await lease.settle(input_tokens=1, output_tokens=1), bool)
    assert_type(await router.get_trace("req_1"), Trace | None)
    router.subscribe_to_events("key.state_changed", lambda event: print(event["key_id"]))
    assert_type(router.sync.route(intent), SystemResponse)
    assert_type(router.sync.route_stream(intent), Iterator[StreamChunk])
    assert_type(await router.configuration_manager.reload_configuration(), RouterSettings)
