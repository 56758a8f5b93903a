"""The snippets of the API reference: imports, construction, registration, routing, answers and errors."""

import asyncio
from datetime import datetime

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.key_manager import KeyRegistrationError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.models.api_key import APIKey, KeyState
from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.request_intent import Message, RequestIntent
from apikeyrouter.domain.models.routing_decision import ObjectiveType, RoutingObjective
from apikeyrouter.domain.models.system_error import ConfigurationError, ErrorCategory, SystemError
from apikeyrouter.domain.models.system_response import ResponseMetadata, SystemResponse, TokenUsage
from apikeyrouter.infrastructure.adapters.anthropic_adapter import AnthropicAdapter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.config.settings import RouterSettings
from apikeyrouter.simulator import SimulatorProcess
from tests.snippets.conftest import Keep


async def test_a_router_is_made_without_arguments_with_settings_or_from_the_environment(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keep(ApiKeyRouter()).settings.max_decisions == 1000
    settings = RouterSettings(max_decisions=5000, default_cooldown_seconds=120, log_level="INFO")
    assert keep(ApiKeyRouter(config=settings)).settings == settings
    monkeypatch.setenv("APIKEYROUTER_MAX_DECISIONS", "5000")
    assert keep(ApiKeyRouter()).settings.max_decisions == 5000


async def test_a_router_is_a_context_manager(intent: RequestIntent) -> None:
    async with ApiKeyRouter() as router:
        await router.register_provider("openai", OpenAIAdapter())
        await router.register_key("sk-in-a-context", "openai")
        assert (await router.route(intent)).content


async def test_providers_are_registered_once_and_replaced_on_request(keep: Keep) -> None:
    router, other = keep(ApiKeyRouter()), keep(ApiKeyRouter())
    adapter = OpenAIAdapter()
    await router.register_provider("openai", adapter)
    await other.register_provider("openai", OpenAIAdapter())
    await other.register_provider("anthropic", AnthropicAdapter())
    with pytest.raises(ConfigurationError, match="overwrite"):
        await router.register_provider("openai", OpenAIAdapter())

    class NewOpenAIAdapter(OpenAIAdapter):
        def get_provider_id(self) -> str:
            return "new"

    await router.register_provider("openai", NewOpenAIAdapter(), overwrite=True)
    assert (await router.get_state_summary()).providers == 1
    assert (await other.get_state_summary()).providers == 2


async def test_keys_are_registered_by_name_by_place_and_with_metadata(keep: Keep) -> None:
    router = keep(ApiKeyRouter())
    await router.register_provider("openai", OpenAIAdapter())
    key = await router.register_key(key_material="sk-your-openai-key-here", provider_id="openai")
    assert isinstance(key, APIKey)
    assert "your-openai-key" not in key.id
    for material in ("sk-key-1", "sk-key-2", "sk-key-3"):
        await router.register_key(material, "openai")
    metadata = {"account_tier": "pro", "region": "us-east"}
    rich = await router.register_key(key_material="sk-key-4", provider_id="openai", metadata=metadata)
    assert rich.metadata == metadata
    assert (await router.get_state_summary()).keys.available == 5


async def test_requests_are_objects_or_dicts_and_objectives_names_or_objects(router: ApiKeyRouter) -> None:
    intent = RequestIntent(
        model="gpt-4",
        messages=[Message(role="user", content="Hello!")],
        parameters={"provider_id": "openai", "temperature": 0.7},
    )
    answers = [await router.route(intent)]
    as_dict = {
        "model": "gpt-4",
        "messages": [{"role": "user", "content": "Hello!"}],
        "provider_id": "openai",
        "parameters": {"temperature": 0.7},
    }
    answers.append(await router.route(as_dict))
    answers.append(await router.route(intent, objective="cost"))
    answers.append(await router.route(intent, objective="reliability"))
    objective = RoutingObjective(primary="cost", secondary=["reliability"], constraints={"min_reliability": 0.95})
    answers.append(await router.route(intent, objective=objective))
    assert all(isinstance(answer, SystemResponse) and "Hello!" in answer.content for answer in answers)
    assert [str(facts.objective) for facts in router.decisions] == [
        "fairness",
        "fairness",
        "cost",
        "reliability",
        "cost",
    ]


async def test_settings_come_from_the_environment_code_or_a_dict(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    in_code = keep(ApiKeyRouter(config=RouterSettings(max_decisions=5000, log_level="DEBUG")))
    in_a_dict = keep(ApiKeyRouter(config={"max_decisions": 5000, "log_level": "DEBUG"}))
    monkeypatch.setenv("APIKEYROUTER_MAX_DECISIONS", "5000")
    monkeypatch.setenv("APIKEYROUTER_LOG_LEVEL", "DEBUG")
    assert in_code.settings == in_a_dict.settings == keep(ApiKeyRouter()).settings


async def test_an_objective_has_a_primary_secondaries_constraints_and_weights(
    router: ApiKeyRouter, intent: RequestIntent
) -> None:
    assert (await router.route(intent, objective="cost")).content
    objective = RoutingObjective(
        primary="cost",
        secondary=["reliability"],
        constraints={"min_reliability": 0.95, "max_cost_per_request": 0.01},
        weights={"cost": 0.7, "reliability": 0.3},
    )
    assert (await router.route(intent, objective=objective)).content
    assert objective.primary == ObjectiveType.Cost
    dear = objective.model_copy(update={"constraints": {"max_cost_per_request": 0.0000001}})
    with pytest.raises(NoEligibleKeysError, match="max_cost_per_request"):
        await router.route(intent, objective=dear)


async def test_an_answer_has_text_tokens_cost_key_and_request(router: ApiKeyRouter, intent: RequestIntent) -> None:
    response = await router.route(intent)
    assert isinstance(response.content, str)
    assert response.metadata.tokens_used.total_tokens > 0
    assert response.cost
    assert response.cost.amount > 0
    assert response.key_used in {key.id for key in await router.key_manager.list_keys()}
    trace = await router.get_trace(response.request_id)
    assert trace is not None
    assert trace.request_id == response.request_id


async def test_the_metadata_of_an_answer_has_model_time_and_tokens(router: ApiKeyRouter, intent: RequestIntent) -> None:
    metadata = (await router.route(intent)).metadata
    assert isinstance(metadata, ResponseMetadata)
    assert metadata.model_used == "gpt-4"
    assert isinstance(metadata.response_time_ms, int)
    tokens = metadata.tokens_used
    assert isinstance(tokens, TokenUsage)
    assert tokens.total_tokens == tokens.input_tokens + tokens.output_tokens
    assert (metadata.provider_id, metadata.finish_reason) == ("openai", "stop")
    assert isinstance(metadata.timestamp, datetime)


async def test_the_typical_flow_from_a_router_to_an_answer(keep: Keep) -> None:
    router = keep(ApiKeyRouter())
    await router.register_provider("openai", OpenAIAdapter())
    for number in (1, 2, 3):
        await router.register_key(f"sk-your-key-{number}", "openai")
    intent = RequestIntent(
        model="gpt-4",
        messages=[Message(role="user", content="Hello!")],
        parameters={"provider_id": "openai", "temperature": 0.7},
    )
    assert "Hello!" in (await router.route(intent)).content


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (None, "an answer"),
        ("rate_limit_requests", "RateLimitError"),
        ("server_error", "ProviderError"),
        ("auth", "AuthenticationError"),
    ],
)
async def test_what_a_caller_handles_is_an_answer_or_one_of_two_errors(
    failure: str | None, told: str, router: ApiKeyRouter, intent: RequestIntent, simulator: SimulatorProcess
) -> None:
    if failure:
        await simulator.fail(failure)
    heard = ""
    try:
        response = await router.route(intent)
        assert response.content
        heard = "an answer"
    except NoEligibleKeysError:
        heard = "no keys"
    except SystemError as e:
        if e.category == ErrorCategory.RateLimitError:
            assert e.retry_after is not None
            heard = "RateLimitError"
        elif e.category == ErrorCategory.AuthenticationError:
            assert e.message
            heard = "AuthenticationError"
        else:
            heard = ErrorCategory(e.category).name
    assert heard == told


async def test_an_error_says_whether_and_when_to_try_again(
    router: ApiKeyRouter, intent: RequestIntent, simulator: SimulatorProcess
) -> None:
    await simulator.fail("rate_limit_requests", seconds=1, count=2)
    try:
        await router.route(intent)
        pytest.fail("both keys are limited")
    except SystemError as e:
        assert e.retryable
        assert e.retry_after is not None
        await asyncio.sleep(e.retry_after + 0.5)  # the ledger began to count when it was told
        assert e.message
        assert e.category.value == "rate_limit_error"
    assert (await router.route(intent)).content


async def test_no_eligible_keys_is_raised_when_every_key_is_out(router: ApiKeyRouter, intent: RequestIntent) -> None:
    keys = await router.key_manager.list_keys()
    for key in keys:
        await router.key_manager.update_key_state(key.id, KeyState.Disabled, "maintenance")
    with pytest.raises(NoEligibleKeysError) as caught:
        await router.route(intent)
    assert caught.value.reasons.keys() == {key.id for key in keys}


async def test_a_key_that_cannot_be_registered_says_why(keep: Keep) -> None:
    router = keep(ApiKeyRouter())
    with pytest.raises(KeyRegistrationError, match="openai"):
        await router.register_key("invalid-key", "openai")
    await router.register_provider("openai", OpenAIAdapter())
    with pytest.raises(KeyRegistrationError):
        await router.register_key("", "openai")


async def test_a_request_without_messages_is_a_value_error(router: ApiKeyRouter) -> None:
    with pytest.raises(ValueError, match="messages"):
        await router.route({"model": "gpt-4"})
    assert list(router.decisions) == []


async def test_the_models_are_made_as_the_reference_makes_them(router: ApiKeyRouter) -> None:
    intent = RequestIntent(
        model="gpt-4",
        messages=[
            Message(role="system", content="You are a helpful assistant"),
            Message(role="user", content="What is 2+2?"),
        ],
        parameters={"provider_id": "openai", "temperature": 0.7, "max_tokens": 100},
    )
    response = await router.route(intent)
    assert response.metadata.tokens_used.output_tokens <= 100
    assert isinstance(response.cost, CostEstimate)
