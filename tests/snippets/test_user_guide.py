"""The snippets of the user guide: the library's use cases and patterns, the service, and what to do in trouble."""

import base64
import contextlib
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet
from openai import OpenAI

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.cost_controller import BudgetExceededError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateQuery
from apikeyrouter.domain.models.budget import BudgetScope, EnforcementMode, TimeWindow
from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.policy import Policy, PolicyScope, PolicyType
from apikeyrouter.domain.models.request_intent import Message, RequestIntent
from apikeyrouter.domain.models.routing_decision import RoutingDecision, RoutingObjective
from apikeyrouter.domain.models.system_error import SystemError
from apikeyrouter.domain.models.system_response import ResponseMetadata, SystemResponse, TokenUsage
from apikeyrouter.infrastructure.adapters.anthropic_adapter import AnthropicAdapter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.config.settings import RouterSettings
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.cli.processes import clean_environ
from tests.snippets.conftest import Keep

MASTER_KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize("code", ["from apikeyrouter import ApiKeyRouter", "from apikeyrouter_proxy.main import app"])
def test_an_installation_is_verified_by_an_import(code: str, tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", f"{code}; print('installed')"],
        cwd=tmp_path, env=clean_environ(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout == "installed\n"


async def test_the_quick_start_prints_an_answer_and_its_key(keep: Keep) -> None:
    router = keep(ApiKeyRouter())
    await router.register_provider("openai", OpenAIAdapter())
    await router.register_key(key_material="sk-your-openai-key-1", provider_id="openai")
    await router.register_key(key_material="sk-your-openai-key-2", provider_id="openai")
    intent = RequestIntent(
        model="gpt-4", messages=[Message(role="user", content="Hello, world!")], provider_id="openai"
    )
    response = await router.route(intent)
    assert "Hello, world!" in response.content
    assert response.metadata.key_used == response.key_used


async def test_a_router_is_set_up_with_settings_or_a_redis_store(keep: Keep, redis_url: str) -> None:
    settings = RouterSettings(max_decisions=1000, max_transitions=500, log_level="INFO")
    assert keep(ApiKeyRouter(config=settings)).settings.max_transitions == 500
    redis_store = RedisStateStore(redis_url=redis_url)
    shared = keep(ApiKeyRouter(state_store=redis_store, config={"encryption_key": MASTER_KEY}))
    await shared.register_provider("openai", OpenAIAdapter())
    await shared.register_key("sk-in-redis", "openai")
    other = keep(ApiKeyRouter(state_store=RedisStateStore(redis_url=redis_url), config={"encryption_key": MASTER_KEY}))
    await other.register_provider("openai", OpenAIAdapter())
    assert (await other.get_state_summary()).keys.total == 1
    async with ApiKeyRouter() as router:
        assert (await router.get_state_summary()).keys.total == 0


async def test_several_providers_are_registered(keep: Keep) -> None:
    router = keep(ApiKeyRouter())
    openai_adapter = OpenAIAdapter()
    await router.register_provider("openai", openai_adapter)
    await router.register_provider("anthropic", AnthropicAdapter())
    assert (await router.get_state_summary()).providers == 2


async def test_keys_are_registered_with_metadata_and_in_a_loop(router: ApiKeyRouter) -> None:
    key = await router.register_key(key_material="sk-your-api-key", provider_id="openai")
    metadata = {"account_tier": "pro", "region": "us-east", "cost_per_1k": "0.01", "team": "engineering"}
    again = await router.register_key(key_material="sk-your-api-key", provider_id="openai", metadata=metadata)
    assert (again.id, again.metadata) == (key.id, metadata)
    keys = [
        await router.register_key(key_material=f"sk-key-{i}", provider_id="openai", metadata={"index": i})
        for i in range(5)
    ]
    assert [key.metadata["index"] for key in keys] == [0, 1, 2, 3, 4]
    assert len({key.id for key in keys}) == 5


async def test_a_basic_request_tells_its_key_and_cost(router: ApiKeyRouter) -> None:
    intent = RequestIntent(
        model="gpt-4", messages=[Message(role="user", content="Hello, how are you?")], provider_id="openai"
    )
    response = await router.route(intent)
    assert response.content
    assert response.metadata.key_used
    assert response.metadata.cost_actual is not None
    assert f"${response.metadata.cost_actual}" != "$0"


async def test_a_stream_is_printed_as_it_comes(
    router: ApiKeyRouter, intent: RequestIntent, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 0
    async for chunk in router.route_stream(intent):
        print(chunk, end="", flush=True)
        count += 1
    assert "Hello!" in capsys.readouterr().out
    assert count > 2
    assert chunk.last
    assert chunk.usage is not None
    assert chunk.usage.total_tokens > 0
    assert chunk.cost is not None
    assert chunk.key_used


@pytest.mark.parametrize("primary", ["cost", "reliability", "fairness"])
async def test_objectives_are_named(primary: str, router: ApiKeyRouter, intent: RequestIntent) -> None:
    response = await router.route(intent, objective=RoutingObjective(primary=primary))
    assert response.content
    assert router.decisions[-1].objective == primary


async def test_objectives_are_combined_with_weights(router: ApiKeyRouter, intent: RequestIntent) -> None:
    objective = RoutingObjective(
        primary="cost",
        secondary=["reliability", "fairness"],
        weights={"cost": 0.5, "reliability": 0.3, "fairness": 0.2},
        constraints={"min_reliability": 0.95},
    )
    assert (await router.route(intent, objective=objective)).content


async def test_every_error_of_a_request_is_one_of_three(
    router: ApiKeyRouter, intent: RequestIntent, simulator: SimulatorProcess
) -> None:
    async def outcome() -> str:
        try:
            await router.route(intent)
        except NoEligibleKeysError as e:
            return f"none: {e}"
        except BudgetExceededError as e:
            return f"budget: {e.details}"
        except SystemError as e:
            return f"system: {e.category} - {e.message}"
        return "answered"

    assert await outcome() == "answered"
    await simulator.fail("server_error", count=3)
    assert (await outcome()).startswith("system: provider_error - ")
    budget = await router.cost_controller.create_budget(BudgetScope.Global, Decimal("0.000001"))
    assert "'settled'" in await outcome()
    await router.cost_controller.delete_budget(budget.id)
    for key in await router.key_manager.list_keys():
        await router.key_manager.revoke_key(key.id)
    with pytest.raises(ValueError, match="gpt-4"):
        await outcome()


async def test_a_failed_key_is_followed_by_another_without_the_caller_doing_anything(
    router: ApiKeyRouter, intent: RequestIntent, simulator: SimulatorProcess
) -> None:
    await simulator.fail("rate_limit_requests", count=1)
    response = await router.route(intent)
    assert response.content
    assert len(router.decisions[-1].attempts) == 2


def test_the_service_speaks_openais_dialect_to_plain_clients_and_to_the_sdk(service_url: str) -> None:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "Hello!"}]}
    data = httpx.post(f"{service_url}/v1/chat/completions", json=body, timeout=60).json()
    assert "Hello!" in data["choices"][0]["message"]["content"]
    assert data["routing_metadata"]["key_used"]
    with OpenAI(api_key="dummy-key", base_url=f"{service_url}/v1") as client:
        response = client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hello!"}])
    assert "Hello!" in (response.choices[0].message.content or "")


async def test_settings_are_made_with_every_documented_field(keep: Keep) -> None:
    settings = RouterSettings(
        max_decisions=1000,
        max_transitions=500,
        default_cooldown_seconds=60,
        quota_default_cooldown_seconds=60,
        log_level="INFO",
        encryption_key=MASTER_KEY,
    )
    router = keep(ApiKeyRouter(config=settings))
    await router.register_provider("openai", OpenAIAdapter())
    assert (await router.register_key("sk-sealed", "openai")).encrypted_material


async def test_a_key_that_fernet_generates_is_a_master_key(keep: Keep, intent: RequestIntent) -> None:
    router = keep(ApiKeyRouter(config={"encryption_key": Fernet.generate_key().decode()}))
    await router.register_provider("openai", OpenAIAdapter())
    await router.register_key("sk-sealed-otherwise", "openai")
    assert (await router.route(intent)).content


async def test_many_keys_make_a_reliable_provider(
    keep: Keep, intent: RequestIntent, simulator: SimulatorProcess
) -> None:
    router = keep(ApiKeyRouter())
    await router.register_provider("openai", OpenAIAdapter())
    for i in range(10):
        await router.register_key(key_material=f"sk-key-{i}", provider_id="openai")
    await simulator.fail("rate_limit_requests", count=2)
    response = await router.route(intent, objective=RoutingObjective(primary="reliability"))
    assert response.content


async def test_the_cheapest_key_is_taken(keep: Keep, intent: RequestIntent) -> None:
    router = keep(ApiKeyRouter())
    await router.register_provider("openai", OpenAIAdapter())
    dear = await router.register_key(
        key_material="sk-expensive-key", provider_id="openai", metadata={"cost_per_1k": "0.05"}
    )
    cheap = await router.register_key(
        key_material="sk-cheap-key", provider_id="openai", metadata={"cost_per_1k": "0.01"}
    )
    response = await router.route(intent, objective=RoutingObjective(primary="cost"))
    assert response.key_used == cheap.id != dear.id
    assert response.metadata.cost_actual == response.metadata.tokens_used.total * Decimal("0.00001")


async def test_a_hard_budget_refuses_what_would_exceed_it(router: ApiKeyRouter, intent: RequestIntent) -> None:
    budget = await router.cost_controller.create_budget(
        scope=BudgetScope.Global,
        limit=Decimal("100.00"),
        period=TimeWindow.Daily,
        enforcement_mode=EnforcementMode.Hard,
    )
    await router.cost_controller.update_spending(budget.id, Decimal("25.50"))
    response = await router.route(intent, objective="cost")
    await router.cost_controller.update_spending(budget.id, Decimal("74.49"))
    with pytest.raises(BudgetExceededError) as caught:
        await router.route(intent, objective="cost")
    assert caught.value.details["limit"] == 100
    assert response.metadata.cost_actual is not None
    assert caught.value.details["settled"] == Decimal("99.99") + response.metadata.cost_actual


async def test_an_adapter_of_ones_own_serves_requests(keep: Keep) -> None:
    seen: list[str] = []

    class MyCustomAdapter(ProviderAdapter):
        async def execute_request(self, intent: RequestIntent, key: str) -> SystemResponse:
            seen.append(f"Bearer {key}")
            tokens = TokenUsage(input_tokens=3, output_tokens=4)
            return SystemResponse(
                content=f"echo: {intent.messages[0].content}",
                metadata=ResponseMetadata(model_used=intent.model, tokens_used=tokens),
            )

        async def estimate_cost(self, request_intent: RequestIntent) -> CostEstimate:
            return CostEstimate(amount=Decimal("0.002"), input_tokens=3, output_tokens=4)

        async def check_health(self, key: str) -> bool:
            return bool(key)

        def get_provider_id(self) -> str:
            return "my-provider"

    router = keep(ApiKeyRouter())
    await router.register_provider("my-provider", MyCustomAdapter())
    key = await router.register_key("mine-1", "my-provider")
    response = await router.route(
        {"model": "any", "messages": [{"role": "user", "content": "hi"}], "provider_id": "my-provider"}
    )
    assert (response.content, response.key_used, seen) == ("echo: hi", key.id, ["Bearer mine-1"])
    assert (await router.key_manager.probe_key(key.id)).works is True


async def test_fairness_rotates_over_keys(keep: Keep, intent: RequestIntent) -> None:
    router = keep(ApiKeyRouter())
    await router.register_provider("openai", OpenAIAdapter())
    keys = [
        await router.register_key(
            key_material=f"sk-key-{i}",
            provider_id="openai",
            metadata={"rotation_group": "primary", "index": i},
        )
        for i in range(5)
    ]
    objective = RoutingObjective(primary="fairness")
    used = Counter([(await router.route(intent, objective=objective)).key_used for _ in range(50)])
    assert used.keys() == {key.id for key in keys}
    assert max(used.values()) - min(used.values()) <= 3  # turns begin anew when the order of the keys is built anew


async def test_decisions_and_state_can_be_read(router: ApiKeyRouter, intent: RequestIntent) -> None:
    response = await router.route(intent, objective="cost")
    query = StateQuery(entity_type="RoutingDecision")
    decisions = await router.state_store.query_state(query)
    assert decisions
    for decision in decisions[-10:]:
        assert isinstance(decision, RoutingDecision)
        assert decision.selected_key_id == response.key_used
        assert decision.objective.primary == "cost"
        assert decision.selected_key_id in decision.explanation
        assert 0 <= decision.confidence <= 1
    state = await router.get_state_summary()
    assert (state.keys.total, state.keys.available, state.quotas.exhausted_keys) == (2, 2, 0)
    assert state.costs.total_spent == response.metadata.cost_actual


async def test_use_that_the_router_did_not_see_is_told_and_exhausts_a_key(
    router: ApiKeyRouter, intent: RequestIntent
) -> None:
    response = await router.route(intent)
    key_id = response.metadata.key_used
    assert key_id is not None
    await router.quota_awareness_engine.update_capacity(
        key_id=key_id,
        used_tokens=response.metadata.token_usage.total,
        time_window=TimeWindow.Daily,
    )
    quota_state = await router.quota_awareness_engine.get_quota_state(key_id=key_id, time_window=TimeWindow.Daily)
    assert quota_state.capacity_state == "Abundant"
    await router.configure_quota(key_id, TimeWindow.Daily, 10_000)
    await router.quota_awareness_engine.update_capacity(key_id, used_tokens=10_000, time_window=TimeWindow.Daily)
    quota_state = await router.quota_awareness_engine.get_quota_state(key_id=key_id, time_window=TimeWindow.Daily)
    assert quota_state.capacity_state == "Exhausted"
    assert quota_state.capacity_state != "Critical"
    assert {(await router.route(intent)).key_used for _ in range(4)}.isdisjoint({key_id})


async def test_a_policy_comes_along_with_a_request(router: ApiKeyRouter, intent: RequestIntent) -> None:
    policy = Policy(
        id="team-engineering",
        name="Engineering Team Policy",
        type=PolicyType.Routing,
        scope=PolicyScope.PerTeam,
        scope_id="engineering",
        rules={
            "allowed_providers": ["openai"],
            "preferred_models": ["gpt-4", "gpt-3.5-turbo"],
            "max_cost_per_request": 0.10,
        },
    )
    assert (await router.route(intent, policy=policy)).content
    strict = policy.model_copy(update={"rules": {"allowed_providers": ["elsewhere"]}})
    with pytest.raises(NoEligibleKeysError, match="team-engineering"):
        await router.route(intent, policy=strict)


async def test_without_eligible_keys_the_state_says_so_and_another_key_helps(
    router: ApiKeyRouter, intent: RequestIntent
) -> None:
    for key in await router.key_manager.list_keys():
        await router.key_manager.update_key_state(key.id, "throttled", "a test")
    with pytest.raises(NoEligibleKeysError):
        await router.route(intent)
    state = await router.get_state_summary()
    assert (state.keys.available, state.quotas.exhausted_keys) == (0, 0)
    await router.register_key("sk-new-key", "openai")
    assert (await router.route(intent)).content


async def test_a_budget_is_read_and_made_soft(router: ApiKeyRouter, intent: RequestIntent) -> None:
    made = await router.cost_controller.create_budget(BudgetScope.Global, Decimal("0.000001"), TimeWindow.Daily)
    budget = await router.cost_controller.get_budget(made.id)
    assert (budget.current_spending, budget.limit) == (Decimal(0), Decimal("0.000001"))
    with contextlib.suppress(BudgetExceededError):
        await router.route(intent)
        pytest.fail("a hard budget of a millionth admits nothing")
    budget.enforcement_mode = EnforcementMode.Soft
    assert (await router.route(intent)).content
    assert (await router.cost_controller.get_budget(made.id)).enforcement_mode == EnforcementMode.Soft


async def test_a_provider_that_is_missing_is_registered(keep: Keep, intent: RequestIntent) -> None:
    router = keep(ApiKeyRouter())
    with pytest.raises(ValueError, match="openai"):
        await router.route(intent)
    await router.register_provider("openai", OpenAIAdapter())
    await router.register_key("sk-late", "openai")
    assert (await router.route(intent)).content


async def test_stores_tell_their_health_and_memory_is_the_default(keep: Keep, redis_url: str) -> None:
    redis_store = RedisStateStore(redis_url=redis_url)
    assert await redis_store.health_check()
    await redis_store.aclose()
    router = keep(ApiKeyRouter())
    assert isinstance(router.state_store, InMemoryStateStore)
    assert await router.state_store.health_check()


async def test_debug_lines_are_asked_for_in_the_settings(
    keep: Keep, intent: RequestIntent, capsys: pytest.CaptureFixture[str]
) -> None:
    router = keep(ApiKeyRouter(config=RouterSettings(log_level="DEBUG")))
    await router.register_provider("openai", OpenAIAdapter())
    await router.register_key("sk-debugged", "openai")
    await router.route(intent)
    await router.close()
    assert "request.completed" in capsys.readouterr().err
