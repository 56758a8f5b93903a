"""Policies end to end: every rule seen in where requests go, what they are refused, and what is counted."""

import sys
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import FrameType
from typing import Any

import pytest

from apikeyrouter.domain.components.cost_controller import BudgetExceededError
from apikeyrouter.domain.components.policy_engine import PolicyEngine
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.policy import Policy, PolicyCounts, PolicyEnforcement, PolicyScope, PolicyType
from apikeyrouter.domain.models.system_error import (
    InvalidRequestError,
    NoEligibleKeysError,
    PolicyDeniedError,
    ProviderError,
)
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.serving.policing import Policing
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import KEYS, House, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
ALIAS = {
    "fast": [
        {"provider": "openai", "model": "gpt-4o-mini"},
        {"provider": "anthropic", "model": "claude-haiku-5"},
        {"provider": "other", "model": "gpt-4o-mini"},
    ]
}
ON_THE_WAY = {
    name
    for kind in (Policing, PolicyEngine)
    for name in vars(kind)
    if name not in ("refresh", "restore", "take_file", "_adopt", "__init__")
}
"""What a request may ask of policies; the rest is done behind requests."""
FILE_KEYS = [
    {"id": "a1", **KEYS["a1"], "metadata": {"region": "eu", "tier": "free"}},
    {"id": "a2", **KEYS["a2"], "metadata": {"region": "us", "account_tier": "Enterprise"}},
    {"id": "b1", **KEYS["b1"], "metadata": {"tier": "pro"}},
]


def policy(rules: Any, **fields: Any) -> Policy:
    """A policy; global and hard unless said otherwise."""
    return Policy(**{"name": "p", "rules": rules, **fields})


async def used(made: House, count: int = 6, **asked: Any) -> Counter[str]:
    """Which keys serve so many requests."""
    return Counter([(await made.route(**asked)).key_used for _ in range(count)])


@pytest.mark.parametrize(
    ("rules", "keys"),
    [
        ({"allowed_providers": ["openai"]}, {"a1", "a2"}),
        ({"denied_providers": ["openai"]}, {"b1"}),
        ({"allowed_keys": ["a2", "b1"]}, {"a2", "b1"}),
        ({"denied_keys": ["a2"]}, {"a1", "b1"}),
        ({"allowed_regions": ["EU"]}, {"a1"}),
        ({"denied_regions": ["us"]}, {"a1", "b1"}),
        ({"allowed_tiers": ["enterprise", "pro"]}, {"a2", "b1"}),
        ({"denied_tiers": ["Free"]}, {"a2", "b1"}),
        ({"allowed_models": ["gpt-4o*"]}, {"a1", "a2", "b1"}),
        ([{"allowed_providers": ["openai"]}, {"denied_keys": ["a1"]}], {"a2"}),
        ({"allowed_providers": ["openai", "other"], "denied_providers": ["other"]}, {"a1", "a2"}),
    ],
)
async def test_what_is_allowed_and_denied_decides_which_keys_serve(
    simulator: SimulatorProcess, store: StateStore, rules: Any, keys: set[str]
) -> None:
    async with house(simulator, store, FILE_KEYS) as made:
        assert set(await used(made, 9)) == {"a1", "a2", "b1"}
        await made.router.configure_policy(policy(rules))
        assert set(await used(made, 9)) == keys
        await made.router.policy_engine.delete_policy("p")
        assert set(await used(made, 9)) == {"a1", "a2", "b1"}
        answers = [await made.router.route(intent(), policy=policy(rules)) for _ in range(9)]
        assert {answer.key_used for answer in answers} == keys
        assert await made.at_rest() == await made.billed()


@pytest.mark.parametrize(
    "rules", [{"denied_models": ["gpt-4o-mini"]}, {"denied_models": ["gpt-*"]}, {"allowed_models": ["claude-*"]}]
)
async def test_a_denial_by_policy_names_it_and_holds_nothing(
    simulator: SimulatorProcess, store: StateStore, rules: Any
) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        await made.router.configure_policy(policy(rules, id="no-gpt"))
        with pytest.raises(PolicyDeniedError) as caught:
            await made.route()
        assert isinstance(caught.value, NoEligibleKeysError)
        assert caught.value.policies == ("no-gpt",)
        assert set(caught.value.reasons) == {"a1", "b1"}
        assert "policy 'no-gpt' (global)" in caught.value.reasons["a1"]
        assert made.finished[-1].outcome == "policy_denied"
        assert (await made.router.policy_engine.get_counts("no-gpt")).denied == 1
        assert (await made.seen("org-a"))["arrived"] == 0
        await made.at_rest()


async def test_preferred_models_order_equivalents_and_never_rewrite_a_model(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "b1", "c1"], models=ALIAS) as made:
        assert set(await used(made, 3, model="fast")) == {"a1"}
        await made.router.configure_policy(policy({"preferred_models": ["claude-haiku-5", "gpt-4o-mini"]}))
        assert set(await used(made, 3, model="fast")) == {"c1"}
        await simulator.fail("overloaded", organisation="org-c")
        assert set(await used(made, 1, model="fast")) == {"a1"}
        await simulator.control(clear_failures=True)
        assert set(await used(made, 3, model="gpt-4o-mini", provider_id="openai")) == {"a1"}


async def test_a_premium_tier_is_preferred_by_ranks_that_can_be_set(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, FILE_KEYS) as made:
        await made.router.configure_policy(policy({"action": "prefer_premium_tier"}))
        assert set(await used(made, 4)) == {"a2"}
        await made.router.key_manager.update_key_state("a2", "disabled")
        assert set(await used(made, 4)) == {"b1"}
        await made.router.configure_policy(policy({"prefer_premium_tier": True, "tier_ranks": ["free", "pro"]}))
        assert set(await used(made, 4)) == {"a1"}


async def test_the_cheapest_comes_first_and_after_a_failure_the_most_reliable(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    prices = [
        {"provider": "openai", "model": "gpt-4o-mini", "input": 0.1, "output": 0.4},
        {"provider": "other", "model": "gpt-4o-mini", "input": 0.2, "output": 0.8},
    ]
    async with house(simulator, store, ["a1", "b1"], prices=prices) as made:
        assert len(await used(made, 4)) == 2
        await made.router.configure_policy(policy({"prefer_lowest_cost": True, "fallback_to_reliable": True}))
        assert set(await used(made, 4)) == {"a1"}
        assert made.finished[-1].objective == "cost"
        await simulator.fail("overloaded", organisation="org-a")
        assert (await made.route()).key_used == "b1"
        assert [attempt.key_id for attempt in made.finished[-1].attempts] == ["a1", "b1"]
        assert made.finished[-1].objective == "reliability"


async def test_an_objective_of_a_hard_policy_prevails_and_that_of_a_soft_one_is_a_default(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        for enforcement, stated, found in (
            ("hard", None, "cost"),
            ("hard", "latency", "cost"),
            ("soft", None, "cost"),
            ("soft", "latency", "latency"),
        ):
            await made.router.configure_policy(policy({"objective": "cost"}, enforcement=enforcement))
            await made.router.route(intent(), objective=stated)
            assert made.finished[-1].objective == found


async def test_a_request_may_cost_no_more_than_policies_say(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "c1"], models=ALIAS) as made:
        dear = intent(model="fast", parameters={"max_tokens": 1000})
        for provider_id in ("openai", "anthropic"):
            await made.router.route({**dear, "provider_id": provider_id})
        estimate = await made.router.cost_controller.estimate_request_cost(dear, "anthropic", "c1")
        cheap = await made.router.cost_controller.estimate_request_cost(dear, "openai", "a1")
        assert estimate is not None
        assert cheap is not None
        between = (estimate.amount + cheap.amount) / 2
        prefer_dear = policy({"preferred_models": ["claude-haiku-5"]}, id="taste")
        await made.router.configure_policy(prefer_dear)
        assert (await made.router.route(dear)).key_used == "c1"
        await made.router.configure_policy(policy({"max_cost_per_request": str(between)}, id="cap"))
        assert (await made.router.route(dear)).key_used == "a1"
        with pytest.raises(PolicyDeniedError) as caught:
            await made.router.route(dear, policy=policy({"max_cost_per_request": 0.00000001}, id="mine"))
        assert set(caught.value.policies) == {"mine", "cap"}
        assert "max_cost_per_request" in caught.value.reasons["a1"]
        await made.at_rest()


async def test_a_cost_cap_of_one_provider_binds_that_provider_alone(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        cap = policy({"max_cost_per_request": 0.00000001}, scope="provider", scope_id="openai")
        await made.router.configure_policy(cap)
        assert set(await used(made, 6)) == {"b1"}
        with pytest.raises(PolicyDeniedError):
            await made.route(provider_id="openai")


async def test_keys_below_a_success_rate_are_left_out(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        await made.router.configure_policy(policy({"min_success_rate": 0.85}))  # one failure of four proves 0.9
        assert set(await used(made, 6)) == {"a1", "b1"}  # nothing is known against either
        await simulator.fail("overloaded", organisation="org-a")

        async def known() -> bool:
            with suppress(ProviderError):  # retries have a budget
                await made.route()
            attempt = made.finished[-1].attempts[-1]
            assert attempt.ranking is not None
            return any(exclusion.key_id == "a1" for exclusion in attempt.ranking.excluded)

        await until(known)
        assert set(await used(made, 6)) == {"b1"}
        with pytest.raises(NoEligibleKeysError) as caught:
            await made.route(provider_id="openai")
        assert "min_success_rate" in str(caught.value) or "reliability" in str(caught.value)


@pytest.mark.parametrize(("enforcement", "served"), [("hard", False), ("soft", True)])
async def test_a_policy_has_a_budget_of_its_own(
    simulator: SimulatorProcess, store: StateStore, enforcement: str, served: bool
) -> None:
    rules = [{"budget_limit": 0.000000001, "budget_window": "monthly"}]
    async with house(simulator, store, ["a1"]) as made:
        await made.router.configure_policy(
            policy(rules, id="dev-money", scope="team", scope_id="dev", enforcement=enforcement)
        )
        await made.route(team="ops")
        if served:
            answer = await made.route(team="dev")
            assert answer.metadata.additional_metadata["soft_budgets_exceeded"] == ["policy:dev-money:monthly"]
        else:
            with pytest.raises(BudgetExceededError) as caught:
                await made.route(team="dev")
            assert caught.value.details["scope"] == "policy:dev-money:monthly"
        desk = made.router.cost_controller
        with pytest.raises(InvalidRequestError, match="by policy 'dev-money'"):
            await desk.update_budget("policy:dev-money:monthly", limit=5)
        await made.router.policy_engine.delete_policy("dev-money")
        await made.route(team="dev")
        assert await made.at_rest() == await made.billed()


async def test_a_budget_may_be_made_for_the_requests_of_a_policy(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        at_openai = policy({"allowed_models": ["*"]}, id="watch", scope="provider", scope_id="openai")
        await made.router.configure_policy(at_openai)
        await made.router.cost_controller.create_budget("policy", 0.000000001, scope_id="watch")
        assert set(await used(made, 4)) == {"b1"}
        with pytest.raises(BudgetExceededError):
            await made.route(provider_id="openai")


async def test_a_requests_own_policy_may_bring_a_budget(simulator: SimulatorProcess, store: StateStore) -> None:
    own = {"name": "experiment", "rules": {"budget_limit": "0.0001", "budget_window": "total"}}
    async with house(simulator, store, ["a1"]) as made:
        served = 0
        with pytest.raises(BudgetExceededError) as caught:
            for _ in range(50):
                await made.router.route(intent(parameters={"max_tokens": 5}), policy=own)
                assert await made.router.books.flush(seconds=5)
                served += 1
        assert served > 0
        assert caught.value.details["scope"] == "policy:experiment:total"
        status = await made.router.cost_controller.get_budget_status("policy:experiment:total")
        assert 0 < status.settled <= Decimal("0.0001")
        await made.route()


async def test_rules_hold_in_their_time_windows_alone(simulator: SimulatorProcess, store: StateStore) -> None:
    clock = [datetime(2026, 11, 23, 8, 30, tzinfo=UTC)]  # a Monday, half past nine in Berlin
    hours = {"days": "weekdays", "start": "09:00", "end": "17:00", "timezone": "Europe/Berlin"}
    rules = [{"denied_providers": ["other"], "time_windows": [hours]}, {"denied_keys": ["a2"]}]
    async with house(simulator, store, ["a1", "a2", "b1"]) as made:
        made.router.policy_engine._now = lambda: clock[0].timestamp()
        await made.router.configure_policy(policy(rules))
        assert set(await used(made)) == {"a1"}
        clock[0] += timedelta(hours=8)
        assert set(await used(made)) == {"a1", "b1"}
        clock[0] += timedelta(hours=16)
        assert set(await used(made)) == {"a1"}
        clock[0] = datetime(2026, 11, 28, 12, tzinfo=UTC)  # a Saturday
        assert set(await used(made)) == {"a1", "b1"}


async def test_narrower_policies_tighten_hard_ones_and_replace_soft_ones(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "a2", "b1"]) as made:
        await made.router.configure_policy(policy({"allowed_keys": ["a1", "a2"]}, id="all", enforcement="hard"))
        team = policy({"allowed_keys": ["a2", "b1"]}, id="team", scope=PolicyScope.PerTeam, scope_value="blue")
        await made.router.configure_policy(team)
        assert set(await used(made)) == {"a1", "a2"}
        assert set(await used(made, team="blue")) == {"a2"}
        mine = policy({"allowed_keys": ["b1"]})
        with pytest.raises(PolicyDeniedError):
            await made.router.route(intent(team="blue"), policy=mine)
        await made.router.configure_policy(
            policy({"allowed_keys": ["a1", "a2"]}, id="all", enforcement=PolicyEnforcement.Soft)
        )
        assert set(await used(made)) == {"a1", "a2"}
        assert set(await used(made, team="blue")) == {"a2", "b1"}
        answer = await made.router.route(intent(), policy=policy({"allowed_keys": ["b1"]}, enforcement="soft"))
        assert answer.key_used == "b1"


async def test_a_soft_policy_yields_where_it_would_leave_nothing(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    one_a_day = [{"quota_group": "org-b", "rpd": 1, "kind": "fixed", "headroom": 0}]
    async with house(simulator, store, ["a1", "b1"], limits=one_a_day) as made:
        await made.router.configure_policy(policy({"allowed_keys": ["b1"]}, id="rather", enforcement="soft"))
        assert (await made.route()).key_used == "b1"
        assert (await made.route()).key_used == "a1"  # b1 is full
        assert made.finished[-1].yielded == ("rather",)
        assert (await made.route(provider_id="openai")).key_used == "a1"  # b1 is not even a candidate
        assert (await made.router.policy_engine.get_counts("rather")).yielded == 2


async def test_a_shadow_policy_binds_nobody_and_counts_what_it_would_have_done(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        await made.router.configure_policy(policy({"denied_keys": ["a1"]}, id="try", enforcement="shadow"))
        keys = await used(made, 6)
        assert set(keys) == {"a1", "b1"}
        await made.route(provider_id="openai")
        counts = await made.router.policy_engine.get_counts("try")
        assert (counts.applied, counts.would_have_moved, counts.would_have_denied) == (7, keys["a1"], 1)
        assert (counts.denied, counts.yielded) == (0, 0)
        explanation = await made.router.explain(made.finished[-1].request_id)
        assert "shadow policy try would have refused it" in explanation.decision.explanation
        dear = policy({"max_cost_per_request": 0.00000001}, id="cheap", enforcement="shadow")
        poor = policy({"budget_limit": 0.000000001}, id="poor", enforcement="shadow")
        for shadow in (dear, poor):
            await made.router.configure_policy(shadow)
        await made.route()
        for shadow in (dear, poor):
            assert (await made.router.policy_engine.get_counts(shadow.id)).would_have_denied == 1


async def asked_of_policies(made: House, requests: int) -> Counter[str]:
    """Which functions that know policies so many requests call, and how often. What goes on behind them is left out."""
    frames: Counter[str] = Counter()

    def see(frame: FrameType, event: str, _: object) -> None:
        file, name = frame.f_code.co_filename.rpartition("/")[2], frame.f_code.co_name
        if event == "call" and file.startswith("polic") and name in ON_THE_WAY:
            frames[name] += 1

    sys.setprofile(see)
    try:
        for _ in range(requests):
            await made.route()
    finally:
        sys.setprofile(None)
    return frames


async def test_a_request_to_which_no_policy_applies_costs_at_most_one_look(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        await made.route()
        assert await asked_of_policies(made, 10) == {}
        for number in range(10):
            others = policy({"denied_keys": ["a1"]}, id=f"p{number}", scope="team", scope_id=f"t{number}")
            await made.router.configure_policy(others)
        await made.route()
        assert await asked_of_policies(made, 10) == {"rules": 10, "constraints": 10}


async def test_counts_of_policies_are_the_fleets_and_outlive_its_processes(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    tried = policy({"denied_keys": ["a1"]}, id="try", enforcement="shadow")
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        await made.router.configure_policy(tried)
        async with house(simulator, RedisStateStore(redis_url), ["a1"]) as other:
            await until(lambda: other.router.policy_engine.active)
            await used(made, 3)
            await used(other, 4)
        assert (await made.router.policy_engine.get_counts("try")).would_have_denied == 7  # told when it was closed
        await made.router.configure_policy(tried)
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        engine = made.router.policy_engine
        impact = await engine.dry_run_policy(tried, {"model": "gpt-4o-mini"})
        assert impact.counts == await engine.get_counts("try") == PolicyCounts(applied=7, would_have_denied=7)
        await engine.delete_policy("try")
        await made.router.configure_policy(tried)
        assert await engine.get_counts("try") == PolicyCounts()


async def test_the_documented_policies_take_effect(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, FILE_KEYS) as made:
        router = made.router
        team = Policy(
            id="team-engineering", name="Engineering Team Policy", type=PolicyType.Routing,
            scope=PolicyScope.PerTeam, scope_id="engineering",
            rules={
                "allowed_providers": ["openai"],
                "preferred_models": ["gpt-4", "gpt-3.5-turbo"],
                "max_cost_per_request": 0.10,
            },
        )  # fmt: skip
        answers = [await router.route(intent(), policy=team) for _ in range(4)]
        assert {answer.key_used for answer in answers} == {"a1", "a2"}
        router.configure_policy(
            Policy(name="budget", type=PolicyType.Cost, rules=[{"budget_limit": 1000.00, "budget_window": "monthly"}])
        )
        router.configure_policy(
            Policy(
                name="production_reliability", type=PolicyType.Routing, scope=PolicyScope.Team,
                scope_value="production", rules=[{"min_success_rate": 0.95, "prefer_premium_tier": True}],
            )
        )  # fmt: skip
        router.configure_policy(
            Policy(
                name="development_cost_optimization", type=PolicyType.Cost, scope=PolicyScope.Team,
                scope_value="development",
                rules=[{"action": "prefer_lowest_cost", "max_cost_per_request": 0.10, "fallback_to_reliable": True}],
            )
        )  # fmt: skip
        assert set(await used(made, 3, team="production")) == {"a2"}
        await made.route(team="development")
        assert made.finished[-1].objective == "cost"
        assert (await router.cost_controller.get_budget("policy:budget:monthly")).limit == 1000
        assert made.finished[-1].policies == ("development-cost-optimization", "budget")
