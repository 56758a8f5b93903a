"""The life of policies: declared, shared, foreseen, explained, and kept."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest
import redis

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.system_error import InvalidRequestError, PolicyDeniedError
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, SOFT_BUDGET, house, intent, until
from tests.router.test_policies import policy, used

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_what_was_configured_wrongly_is_raised_where_it_is_awaited_or_at_the_first_request(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        with pytest.raises(InvalidRequestError, match="alowed_providers"):
            await made.router.configure_policy({"name": "p", "rules": {"alowed_providers": ["openai"]}})
        made.router.configure_policy({"name": "p", "rules": {"min_success_rate": 7}})
        with pytest.raises(InvalidRequestError, match="min_success_rate"):
            await made.route()
        await made.route()
        with pytest.raises(InvalidRequestError, match=r"policy\.rules"):
            await made.router.route(intent(), policy={"name": "p", "rules": {"objective": "beauty"}})
        assert await made.router.policy_engine.list_policies() == []
        await made.at_rest()


async def test_policies_of_the_file_hold_for_every_process_and_are_changed_there(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    declared = [{"name": "only-a", "rules": {"allowed_providers": ["openai"], "budget_limit": 5}}]
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1", "b1"], policies=declared) as made,
        ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY}) as other,
    ):
        assert set(await used(made)) == {"a1"}
        assert [one.id for one in await other.policy_engine.list_policies()] == ["only-a"]
        assert other.policy_engine.active
        with pytest.raises(InvalidRequestError, match="configuration file"):
            await made.router.configure_policy({"name": "only-a", "rules": {"denied_keys": ["a1"]}})
        with pytest.raises(InvalidRequestError, match="configuration file"):
            await made.router.policy_engine.delete_policy("only-a")
        await made.apply(["a1", "b1"])
        assert set(await used(made)) == {"a1", "b1"}
        await until(lambda: not other.policy_engine.active)


async def test_policies_made_in_code_spread_and_survive(simulator: SimulatorProcess, redis_url: str) -> None:
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as made,
        ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY}) as other,
    ):
        await other.configure_policy(policy({"denied_keys": ["a1"]}, id="elsewhere"))
        await until(lambda: made.router.policy_engine.active)
        assert set(await used(made)) == {"b1"}
    async with house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as made:
        assert set(await used(made)) == {"b1"}
        await made.router.policy_engine.delete_policy("elsewhere")
        assert set(await used(made)) == {"a1", "b1"}


async def test_a_decision_names_the_policies_and_what_they_refused(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        await made.router.configure_policy(policy({"denied_keys": ["a1"]}, id="no-a", enforcement="soft"))
        served = await made.route()
        await made.route(provider_id="openai")
        await made.router.configure_policy(policy({"denied_models": ["gpt*"]}, id="no-gpt"))
        with pytest.raises(PolicyDeniedError):
            await made.route()

        async def kept() -> bool:
            return len(await made.router.state_store.query_state(StateQuery("RoutingDecision"))) == 3

        await until(kept)
        first, second, third = await made.router.state_store.query_state(StateQuery("RoutingDecision"))
        assert (first.id, first.policy_ids) == (served.request_id, ["no-a"])
        (verdict,) = [one for one in first.candidates if one.key_id == "a1"]
        assert (verdict.outcome, verdict.provider_id) == ("excluded", "openai")
        assert "policy 'no-a' (global) denies key a1" in first.explanation
        assert "soft policy no-a passed over" in second.explanation
        assert third.selected_key_id == ""
        assert third.policy_ids == ["no-a", "no-gpt"]
        assert "denies model gpt-4o-mini" in third.explanation


async def test_a_batch_is_routed_under_a_policy(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        answers = await made.router.route_batch([intent(), intent()], policy=policy({"denied_keys": ["a1"]}))
        assert [answer.key_used for answer in answers] == ["b1", "b1"]
        stream = made.router.route_stream(intent(), policy=policy({"denied_keys": ["b1"]}))
        assert [chunk async for chunk in stream][-1].key_used == "a1"


async def test_a_dry_run_tells_what_would_change_and_changes_nothing(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    prices = [
        {"provider": "openai", "model": "gpt-4o-mini", "input": 0.15, "output": 0.6},
        {"provider": "other", "model": "gpt-4o-mini", "input": 0.3, "output": 1.2},
    ]
    async with house(simulator, store, ["a1", "b1"], prices=prices) as made:
        keys = await used(made, 6)
        await made.route(provider_id="openai")
        engine = made.router.policy_engine
        no_a = policy({"denied_keys": ["a1"]}, id="no-a")
        impact = await engine.dry_run_policy(no_a, {"model": "gpt-4o-mini"})
        assert (impact.keys_before, impact.keys_after) == (["a1", "b1"], ["b1"])
        assert impact.selected_after == "b1"
        assert "no-a" in impact.excluded["a1"]
        assert (impact.requests, impact.would_be_moved, impact.would_be_refused) == (7, keys["a1"], 1)
        assert impact.refused_requests == [made.finished[-1].request_id]
        costs = [facts.cost_nanousd or 0 for facts in made.finished]
        assert impact.cost_before == Decimal(sum(costs)).scaleb(-9)
        moved = [cost for facts, cost in zip(made.finished[:-1], costs, strict=False) if facts.key_id == "a1"]
        assert impact.cost_difference == Decimal(sum(moved) - costs[-1]).scaleb(-9)
        assert not engine.active
        assert len(await used(made, 4)) == 2
        with pytest.raises(InvalidRequestError, match="model"):
            await engine.dry_run_policy(no_a, {"team": "x"})


async def test_a_dry_run_judges_what_other_processes_have_served(simulator: SimulatorProcess, redis_url: str) -> None:
    async with (
        house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as made,
        house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as other,
    ):
        keys = await used(made, 6)
        await made.router.state_store.flush()
        impact = await other.router.policy_engine.dry_run_policy(policy({"denied_keys": ["a1"]}, id="no-a"))
        assert (impact.requests, impact.would_be_moved, impact.all_processes) == (6, keys["a1"], True)
        assert impact.cost_before == Decimal(sum(facts.cost_nanousd or 0 for facts in made.finished)).scaleb(-9) > 0


async def test_a_store_that_tells_no_facts_leaves_a_dry_run_with_its_own_process(simulator: SimulatorProcess) -> None:
    class Plain(InMemoryStateStore):
        async def recent_facts(self) -> Any:
            return None

    async with house(simulator, Plain(), ["a1", "b1"]) as made:
        await used(made, 2)
        impact = await made.router.policy_engine.dry_run_policy(policy({"denied_keys": ["a1"]}, id="no-a"))
        assert (impact.requests, impact.all_processes) == (2, False)


async def test_requests_at_once_under_changing_policies_end_well(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "a2", "b1"], budgets=[SOFT_BUDGET]) as made:
        stop = asyncio.Event()

        async def keep_asking() -> None:
            while not stop.is_set():
                await made.route(team="blue")

        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for denied in ("a1", "a2", "b1", "a1"):
            rules = {"denied_keys": [denied], "budget_limit": 10}
            await made.router.configure_policy(policy(rules, scope="team", scope_id="blue"))
            served = len(made.finished)
            await until(lambda served=served: len(made.finished) >= served + 12)
            assert denied not in {facts.key_id for facts in made.finished[served + 4 :]}
        stop.set()
        await asyncio.gather(*asking)
        assert await made.at_rest() == await made.billed()


async def test_advice_and_what_was_spent_elsewhere_know_the_budgets_of_policies(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        desk = made.router.cost_controller
        small = {"budget_limit": 0.001, "budget_window": "total"}
        await made.router.configure_policy(policy(small, id="team-money", scope="team", scope_id="dev"))
        await made.router.configure_policy(policy(small, id="a-money", scope="key", scope_id="a1"))
        asked = intent(team="dev", parameters={"max_tokens": 4000})
        estimate = await desk.estimate_request_cost(asked, key_id="a1")
        assert estimate is not None
        assert (await desk.check_budget(intent(), estimate)).allowed
        assert (await desk.check_budget(asked, estimate, key_id="b1")).violated == ["policy:team-money:total"]
        advice = await desk.check_budget(asked, estimate, key_id="a1")
        assert set(advice.violated) == {"policy:team-money:total", "policy:a-money:total"}
        await desk.record_actual_cost("elsewhere-1", "0.0004", team="dev", key_id="a1")
        for budget_id in ("policy:team-money:total", "policy:a-money:total"):
            assert (await desk.get_budget(budget_id)).current_spending == Decimal("0.0004")
        served = await made.route(team="dev", provider_id="openai", parameters={"max_tokens": 5})
        assert await made.router.books.flush(seconds=5)
        before = (await desk.get_budget("policy:team-money:total")).current_spending
        await desk.record_actual_cost(served.request_id, "0.0005")
        assert served.cost is not None
        after = (await desk.get_budget("policy:team-money:total")).current_spending
        assert after - before == Decimal("0.0005") - served.cost.amount


async def test_policies_and_budgets_made_in_code_come_back_to_an_emptied_store(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as made:
        await made.router.configure_policy(policy({"denied_keys": ["a1"], "budget_limit": 7}, id="kept"))
        budget = await made.router.cost_controller.create_budget("global", 100)
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()

        async def back() -> bool:
            store = made.router.state_store
            found = await store.get_policy("kept") is not None
            return found and budget.id in await store.list_documents("budget")

        await until(back)
        assert set(await used(made)) == {"b1"}
        assert await made.router.books.flush(seconds=10)
        ids = {one.id for one in await made.router.cost_controller.list_budgets()}
        assert {budget.id, "policy:kept:daily"} <= ids
        assert (await made.router.cost_controller.get_budget_status(budget.id)).settled > 0
        await made.router.policy_engine.delete_policy("kept")
        await made.router.cost_controller.delete_budget(budget.id)
        assert await made.router.policy_engine.list_policies() == []
        assert {one.id for one in await made.router.cost_controller.list_budgets()} == {"global:all"}


async def test_policies_configured_at_once_are_all_in_force(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "a2", "b1"]) as made:
        engine = made.router.policy_engine
        both = [policy({"denied_keys": [key], "budget_limit": 3}, id=f"no-{key}") for key in ("a1", "a2")]
        await asyncio.gather(*(engine.configure(one) for one in both), made.router._refresh())
        assert set(await used(made)) == {"b1"}
        await asyncio.gather(*(engine.delete_policy(one.id) for one in both), made.router._refresh())
        assert set(await used(made, 9)) == {"a1", "a2", "b1"}


async def test_what_the_engine_says_of_policies_is_what_requests_meet(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    wide = policy({"allowed_keys": ["a1", "b1"]}, id="wide")
    blue = policy({"denied_providers": ["other"]}, id="blue", scope="team", scope_id="blue")
    red = policy({"allowed_keys": ["a2"]}, id="red", scope="team", scope_id="red")
    async with house(simulator, store, ["a1", "a2", "b1"]) as made:
        engine = made.router.policy_engine
        for one in (blue, wide, red):
            await made.router.configure_policy(one)

        # evaluate_policy: a key serves where every policy that applies allows it
        applying = await engine.get_applicable_policies("team", scope_id="blue")
        assert [one.id for one in applying] == ["blue", "wide"]
        allowed = set()
        for key in await made.router.key_manager.list_keys():
            context = {"team": "blue", "key_id": key.id, "provider_id": key.provider_id}
            if all([(await engine.evaluate_policy(one, context)).allowed for one in applying]):
                allowed.add(key.id)
        assert set(await used(made, team="blue")) == allowed == {"a1"}

        # find_policy_conflicts: what it says leaves nothing does
        (conflict,) = [one for one in await engine.find_policy_conflicts() if "nothing is left" in one.explanation]
        assert set(conflict.policy_ids) == {"red", "wide"}
        with pytest.raises(PolicyDeniedError):
            await made.route(team="red")

        # resolve_policy_conflicts: one policy in the place of several
        merged = await engine.resolve_policy_conflicts(applying)
        for one in (blue, wide, red):
            await engine.delete_policy(one.id)
        assert set(await used(made, team="blue")) == {"a1", "a2", "b1"}
        await made.router.configure_policy(merged)
        assert set(await used(made, team="blue")) == {"a1"}


async def test_the_budget_of_a_requests_own_policy_is_forgotten_when_nothing_of_it_counts_any_more() -> None:
    clock = [1_000_000.0]
    async with ApiKeyRouter() as router:
        engine = router.policy_engine
        engine._now = lambda: clock[0]

        async def listed() -> list[str]:
            return sorted(budget.id for budget in await router.cost_controller.list_budgets())

        for window in ("hourly", "daily", "total"):
            await engine.own({"name": window, "rules": {"budget_limit": 5, "budget_window": window}})
        assert await listed() == ["policy:daily:daily", "policy:hourly:hourly", "policy:total:total"]
        clock[0] += 3601
        await engine.refresh()
        assert await listed() == ["policy:daily:daily", "policy:total:total"]
        clock[0] += 80_000
        await engine.own({"name": "daily", "rules": {"budget_limit": 5}})  # it is used again, and stays
        clock[0] += 80_000
        await engine.refresh()
        assert await listed() == ["policy:daily:daily", "policy:total:total"]
        await engine.own({"name": "hourly", "rules": {"budget_limit": 5, "budget_window": "hourly"}})
        clock[0] += 86_401
        await engine.own({"name": "new", "rules": {"budget_limit": 5, "budget_window": "total"}})  # makes room, too
        assert await listed() == ["policy:new:total", "policy:total:total"]
        clock[0] += 86_401
        await engine.refresh()
        assert await listed() == ["policy:new:total", "policy:total:total"]
