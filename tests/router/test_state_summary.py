"""The state in a few numbers: of the whole fleet, and nothing counted twice."""

import asyncio
from decimal import Decimal

import pytest

from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import house, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
BUDGETS = [
    {"name": "all", "scope": "global", "limit_usd": 10, "period": "total", "enforcement": "hard"},
    {"name": "today", "scope": "global", "limit_usd": 10, "period": "daily", "enforcement": "hard"},
    {"name": "one", "scope": "team", "scope_id": "one", "limit_usd": 10, "period": "total", "enforcement": "hard"},
]


async def test_providers_keys_and_the_time_are_told(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ("a1", "b1")) as made:
        state = await made.router.get_state_summary()
        assert (state.providers, state.keys.total) == (4, 2)
        assert state.as_of is not None
        await made.router.key_manager.disable_key("a1")
        keys = (await made.router.get_state_summary()).keys
        assert (keys.available, keys.disabled) == (1, 1)
        await made.router.key_manager.update_key_state("b1", "exhausted", "no credit")
        state = await made.router.get_state_summary()
        assert (state.keys.available, state.keys.exhausted, state.quotas.exhausted_keys) == (0, 1, 1)


async def test_what_two_processes_spent_is_one_sum_that_survives_them(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    costs: list[Decimal] = []
    async with (
        house(simulator, RedisStateStore(redis_url)) as one,
        house(simulator, RedisStateStore(redis_url)) as other,
    ):
        for made in (one, other, other):
            cost = (await made.route()).metadata.cost_actual
            assert cost is not None
            costs.append(cost)

        async def agreed() -> bool:
            states = [await made.router.get_state_summary() for made in (one, other)]
            return [state.costs.total_spent for state in states] == [sum(costs)] * 2

        await until(agreed)
    async with house(simulator, RedisStateStore(redis_url)) as later:
        assert (await later.router.get_state_summary()).costs.total_spent == sum(costs)


async def test_what_is_held_in_several_budgets_is_held_once(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ("s1",), budgets=BUDGETS) as made:
        asked = asyncio.create_task(made.route(team="one", parameters={"max_tokens": 400}))
        await until(lambda: made.router.books.open)
        state = await made.router.get_state_summary()
        (held,) = {scope.held for scope in await made.router.ledger.scopes(["global:all", "team:one:one"])}
        assert state.costs.held == Decimal(held) / 10**9 > 0
        assert state.costs.suspense == 0
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def test_answers_without_a_price_are_counted_and_in_no_sum(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ("a1",)) as made:
        assert (await made.route(model="a-model-without-a-price")).cost is None
        costs = (await made.router.get_state_summary()).costs
        assert costs.unpriced_requests == 1
        assert costs.total_spent == Decimal(0)
