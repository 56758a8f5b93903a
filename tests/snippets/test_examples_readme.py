"""The snippets of the examples' README: objectives, policies, quotas and four usage patterns."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from apikeyrouter import ApiKeyRouter, ProviderError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.models.budget import BudgetScope
from apikeyrouter.domain.models.policy import Policy, PolicyScope, PolicyType
from apikeyrouter.domain.models.quota_state import TimeWindow
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import ObjectiveType, RoutingObjective
from apikeyrouter.infrastructure.adapters.anthropic_adapter import AnthropicAdapter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.simulator import SimulatorProcess
from tests.snippets.conftest import Keep

MESSAGES = [{"role": "user", "content": "Hello!"}]


async def test_objectives_take_the_values_of_their_types(router: ApiKeyRouter, intent: RequestIntent) -> None:
    objectives = [
        RoutingObjective(
            primary=ObjectiveType.Cost.value,
            secondary=ObjectiveType.Reliability.value,
            weights={"cost": 0.8, "reliability": 0.2},
        ),
        RoutingObjective(primary=ObjectiveType.Reliability.value, weights={"reliability": 0.9, "cost": 0.1}),
        RoutingObjective(primary=ObjectiveType.Fairness.value),
    ]
    for objective in objectives:
        assert (await router.route(intent, objective=objective)).content
    assert objectives[0].secondary == [ObjectiveType.Reliability]


async def test_a_cost_policy_of_a_team(router: ApiKeyRouter) -> None:
    policy = Policy(
        name="development_cost_optimization",
        type=PolicyType.Cost,
        scope=PolicyScope.Team,
        scope_value="development",
        rules=[{"action": "prefer_lowest_cost", "max_cost_per_request": 0.10, "fallback_to_reliable": True}],
    )
    await router.configure_policy(policy)
    await router.register_key("sk-cheap", "openai", {"cost_per_1k": "0.0001"})
    request = {"model": "gpt-4", "messages": MESSAGES}
    cheap = await router.route({**request, "team": "development"})
    costs = [(await router.route({**request, "team": "development"})).metadata.cost_actual for _ in range(3)]
    assert costs == [cheap.metadata.cost_actual] * 3
    assert len({(await router.route(request)).key_used for _ in range(6)}) == 3


async def test_a_monthly_quota_of_a_key(router: ApiKeyRouter, intent: RequestIntent) -> None:
    key_id = (await router.route(intent)).key_used
    today = datetime.now(UTC)
    next_month_start = (today.replace(day=1) + timedelta(days=32)).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    router.configure_quota(
        key_id=key_id, time_window=TimeWindow.Monthly, total_capacity=1_000_000, reset_at=next_month_start
    )
    assert (await router.route(intent)).content
    state = await router.quota_awareness_engine.get_quota_state(key_id, TimeWindow.Monthly)
    assert (state.total_capacity, state.reset_at) == (1_000_000, next_month_start)


async def test_pattern_1_the_router_chooses_a_key(keep: Keep) -> None:
    router = keep(ApiKeyRouter())
    router.register_provider("openai", OpenAIAdapter())
    router.register_key("sk-key1", "openai", {})
    router.register_key("sk-key2", "openai", {})
    response = await router.route(request_intent={"model": "gpt-4", "messages": MESSAGES})
    assert response.key_used in {key.id for key in await router.key_manager.list_keys()}


async def test_pattern_2_cost_first_under_a_budget(router: ApiKeyRouter) -> None:
    router.configure_policy(
        Policy(name="budget", type=PolicyType.Cost, rules=[{"budget_limit": 1000.00, "budget_window": "monthly"}])
    )
    response = await router.route(
        request_intent={"model": "gpt-4", "messages": MESSAGES},
        objective=RoutingObjective(primary=ObjectiveType.Cost.value),
    )
    await router.drain()
    (budget,) = await router.cost_controller.list_budgets()
    assert (budget.limit, budget.period, budget.scope) == (Decimal(1000), TimeWindow.Monthly, BudgetScope.Policy)
    assert budget.current_spending == response.metadata.cost_actual


async def test_pattern_3_reliability_first_for_production(router: ApiKeyRouter) -> None:
    router.configure_policy(
        Policy(
            name="production_reliability",
            type=PolicyType.Routing,
            scope=PolicyScope.Team,
            scope_value="production",
            rules=[{"min_success_rate": 0.95, "prefer_premium_tier": True}],
        )
    )
    premium = await router.register_key("sk-premium", "openai", {"tier": "enterprise"})
    response = await router.route(
        request_intent={"model": "gpt-4", "messages": MESSAGES, "team": "production"},
        objective=RoutingObjective(primary=ObjectiveType.Reliability.value),
    )
    assert response.key_used == premium.id


@pytest.mark.parametrize("failing", [False, True])
async def test_pattern_4_another_provider_when_the_first_fails(
    failing: bool, keep: Keep, simulator: SimulatorProcess
) -> None:
    router = keep(ApiKeyRouter())
    router.register_provider("openai", OpenAIAdapter())
    router.register_provider("anthropic", AnthropicAdapter())
    router.register_key("sk-first", "openai")
    router.register_key("sk-ant-second", "anthropic")
    if failing:
        await simulator.fail("server_error", model="gpt-4")
    try:
        response = await router.route(request_intent={"provider_id": "openai", "model": "gpt-4", "messages": MESSAGES})
    except ProviderError:
        response = await router.route(
            request_intent={
                "provider_id": "anthropic", "model": "claude-haiku-4-5", "messages": MESSAGES,
                "parameters": {"max_tokens": 64},
            }
        )  # fmt: skip
    assert response.metadata.provider_id == ("anthropic" if failing else "openai")


async def test_a_disabled_key_serves_nothing_until_it_is_enabled(router: ApiKeyRouter, intent: RequestIntent) -> None:
    for key in await router.key_manager.list_keys():
        await router.key_manager.update_key_state(key.id, "Disabled", "the states of keys have names")
    with pytest.raises(NoEligibleKeysError):
        await router.route(intent)
