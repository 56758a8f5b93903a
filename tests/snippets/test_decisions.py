"""What the documents leave open or contradict each other in, as it was decided; each seen from outside."""

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

import apikeyrouter
from apikeyrouter import (
    ApiKeyRouter,
    ApiKeyRouterError,
    BudgetExceededError,
    ErrorCategory,
    NoEligibleKeysError,
    ProviderError,
    RequestIntent,
    SystemError,
)
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.snippets.conftest import Keep

NINE = {
    "AuthenticationError", "RateLimitError", "QuotaExceededError", "ProviderError", "TimeoutError", "NetworkError",
    "ValidationError", "BudgetExceededError", "UnknownError",
}  # fmt: skip


@dataclass
class Provider:
    """A provider as an application may model it."""

    id: str


async def test_a_provider_may_be_a_model_with_an_id_and_adapters_serve_several(
    keep: Keep, intent: RequestIntent
) -> None:
    router, adapter = keep(ApiKeyRouter()), OpenAIAdapter()
    await router.register_provider(Provider(id="openai"), adapter)
    await router.register_provider("openai-eu", adapter)
    keys = [await router.register_key("sk-one", "openai"), await router.register_key("sk-two", "openai-eu")]
    answers = [await router.route(intent.model_copy(update={"provider_id": name})) for name in ("openai", "openai-eu")]
    assert [answer.key_used for answer in answers] == [key.id for key in keys]
    assert [answer.metadata.provider_id for answer in answers] == ["openai", "openai-eu"]


async def test_a_provider_that_was_not_pinned_is_any_that_serves_the_model(keep: Keep) -> None:
    router = keep(ApiKeyRouter())
    for name in ("one", "two"):
        await router.register_provider(name, OpenAIAdapter())
        await router.register_key(f"sk-of-{name}", name, {"models": ["shared-model", f"model-of-{name}"]})
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}]}
    served = {(await router.route({**asked, "model": "shared-model"})).metadata.provider_id for _ in range(6)}
    assert served == {"one", "two"}
    assert (await router.route({**asked, "model": "model-of-two"})).metadata.provider_id == "two"
    with pytest.raises(InvalidRequestError, match="model-of-two"):
        await router.route({**asked, "model": "model-of-two", "provider_id": "one"})


class OwnStore(InMemoryStateStore):
    """A user's own store, of which the router knows nothing but its methods."""


async def test_a_store_of_ones_own_keeps_entities(keep: Keep, intent: RequestIntent) -> None:
    store = OwnStore()
    router = keep(ApiKeyRouter(state_store=store))
    await router.register_provider("openai", OpenAIAdapter())
    key = await router.register_key("sk-in-my-store", "openai", {"limits": {"rpm": 3, "kind": "fixed"}})
    kept = await store.get_key(key.id)
    assert kept is not None
    assert "sk-in-my-store" not in kept.encrypted_material
    with pytest.raises(NoEligibleKeysError, match="rpm"):
        for _ in range(4):
            await router.route(intent)


async def test_a_base_url_in_code_wins_over_the_sdks_variable(
    keep: Keep, intent: RequestIntent, simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    router = keep(ApiKeyRouter())
    await router.register_provider("openai", OpenAIAdapter(base_url=simulator.openai_url))
    await router.register_key("sk-somewhere", "openai")
    assert (await router.route(intent)).content


async def test_at_most_three_attempts_are_made(keep: Keep, intent: RequestIntent, simulator: SimulatorProcess) -> None:
    router = keep(ApiKeyRouter())
    await router.register_provider("openai", OpenAIAdapter())
    for number in range(5):
        await router.register_key(f"sk-{number}", "openai", {"quota_group": f"of its own {number}"})
    await simulator.fail("cut_mid_body")
    with pytest.raises(SystemError) as caught:
        await router.route(intent)
    assert len(router.decisions[-1].attempts) == 3
    assert caught.value.category in (ErrorCategory.NetworkError, ErrorCategory.ProviderError)


async def test_a_broken_stream_leaves_what_was_received_in_the_error(
    router: ApiKeyRouter, intent: RequestIntent, simulator: SimulatorProcess
) -> None:
    await simulator.fail("cut_mid_stream", after_chunks=3)
    received = ""
    with pytest.raises(ProviderError) as caught:
        async for chunk in router.route_stream(intent):
            received += str(chunk)
    assert caught.value.details["partial"] == received != ""


async def test_an_answer_has_the_providers_body_and_its_tool_calls(router: ApiKeyRouter, intent: RequestIntent) -> None:
    answer = await router.route(intent)
    assert answer.raw["choices"][0]["message"]["content"] == answer.content
    assert (answer.tool_calls, answer.refusal) == (None, None)
    assert answer.metadata.token_usage is answer.metadata.tokens_used
    assert answer.metadata.cost == answer.metadata.cost_actual == Decimal(answer.cost.amount if answer.cost else 0)


async def test_an_unknown_price_is_none_and_never_nought(router: ApiKeyRouter) -> None:
    answer = await router.route({"model": "of-unknown-price", "messages": [{"role": "user", "content": "Hello!"}]})
    assert (answer.cost, answer.metadata.cost, answer.metadata.cost_actual) == (None, None, None)


async def test_calls_that_were_not_awaited_raise_their_error_at_the_first_request(
    keep: Keep, intent: RequestIntent
) -> None:
    router = keep(ApiKeyRouter())
    router.register_provider("openai", OpenAIAdapter())
    router.register_key("", "openai")
    router.register_key("sk-after-the-wrong-one", "openai")
    with pytest.raises(apikeyrouter.KeyRegistrationError):
        await router.route(intent)
    assert (await router.route(intent)).content


async def test_a_trace_and_an_explanation_tell_the_same_request(router: ApiKeyRouter, intent: RequestIntent) -> None:
    answer = await router.route(intent)
    trace = await router.get_trace(answer.request_id)
    assert trace is not None
    assert "request.completed" in [step.name for step in trace.events]
    explained = str(await router.explain(answer.request_id))
    assert answer.key_used in explained


def test_errors_have_one_root_and_nine_categories() -> None:
    assert {category.name for category in ErrorCategory} == NINE
    errors = [
        found for name in apikeyrouter.__all__
        if isinstance(found := getattr(apikeyrouter, name), type) and issubclass(found, Exception)
    ]  # fmt: skip
    assert len(errors) >= 8
    assert all(issubclass(error, ApiKeyRouterError) for error in errors)
    assert issubclass(BudgetExceededError, SystemError)
    assert issubclass(ProviderError, SystemError)
    assert issubclass(InvalidRequestError, ValueError)


async def test_states_compare_in_any_case_and_are_lower_case_in_json(router: ApiKeyRouter) -> None:
    (key, _) = await router.key_manager.list_keys()
    moved = await router.key_manager.update_key_state(key.id, "throttled", "any case will do")
    assert moved.to_state == "Throttled" == apikeyrouter.KeyState.Throttled
    found = await router.key_manager.get_key(key.id)
    assert found is not None
    assert json.loads(json.dumps(found.public()))["state"] == "throttled"
