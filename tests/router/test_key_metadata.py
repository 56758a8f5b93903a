"""Metadata that routes, a test for each fact: two keys that differ in nothing else are chosen differently."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, intent

pytestmark = pytest.mark.asyncio(loop_scope="package")
A1, A2, B1 = "sk-sim-house-a-number-1", "sk-sim-house-a-number-2", "sk-sim-house-b-number-1"
LIMIT = {"rpd": 3, "kind": "fixed", "headroom": 0}


@asynccontextmanager
async def two(
    simulator: SimulatorProcess, store: StateStore, first: dict[str, Any], second: dict[str, Any]
) -> AsyncIterator[tuple[ApiKeyRouter, str, str]]:
    """A router with two keys of two organisations, and their ids."""
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY})
    router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
    async with router:
        one = await router.register_key(A1, "openai", first)
        other = await router.register_key(B1, "openai", second)
        yield router, one.id, other.id


async def used(
    router: ApiKeyRouter, count: int = 8, objective: str | None = None, **fields: Any
) -> Counter[str | None]:
    """How often each key served; None: nobody did."""
    found: Counter[str | None] = Counter()
    for _ in range(count):
        try:
            found[(await router.route(intent(**fields), objective)).key_used] += 1
        except NoEligibleKeysError:
            found[None] += 1
    return found


@pytest.mark.parametrize("name", ["tier", "account_tier"])
async def test_the_tier_routes(simulator: SimulatorProcess, store: StateStore, name: str) -> None:
    async with two(simulator, store, {name: "pro"}, {name: "free"}) as (router, pro, _):
        await router.configure_policy({"name": "pro", "type": "routing", "rules": {"allowed_tiers": ["pro"]}})
        assert await used(router) == {pro: 8}


async def test_the_region_routes(simulator: SimulatorProcess, store: StateStore) -> None:
    async with two(simulator, store, {"region": "us-east"}, {"region": "eu-west"}) as (router, _, european):
        await router.configure_policy({"name": "eu", "type": "routing", "rules": {"denied_regions": ["us-east"]}})
        assert await used(router) == {european: 8}


async def test_the_team_routes(simulator: SimulatorProcess, store: StateStore) -> None:
    async with two(simulator, store, {"team": "red"}, {"team": "blue"}) as (router, red, blue):
        assert await used(router, team="red") == {red: 8}
        assert await used(router, team="blue") == {blue: 8}
        assert await used(router) == {red: 4, blue: 4}
        with pytest.raises(InvalidRequestError, match="no key serves"):
            await router.route(intent(team="green"))


async def test_a_team_takes_its_own_key_first_and_nobodys_when_that_is_out(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with two(simulator, store, {"team": "red"}, {}) as (router, red, shared):
        assert await used(router, team="red") == {red: 8}
        assert await used(router, team="green") == {shared: 8}
        await router.key_manager.disable_key(red)
        assert await used(router, team="red") == {shared: 8}


async def test_the_price_routes(simulator: SimulatorProcess, store: StateStore) -> None:
    async with two(simulator, store, {"cost_per_1k": "0.05"}, {"cost_per_1k": "0.01"}) as (router, _, cheap):
        assert await used(router, objective="cost") == {cheap: 8}
        answer = await router.route(intent(), "cost")
        assert answer.metadata.cost is not None
        assert answer.metadata.tokens_used.total == answer.metadata.cost * 100_000  # a cent for a thousand


async def test_the_quota_group_routes(simulator: SimulatorProcess, store: StateStore) -> None:
    async with two(
        simulator, store, {"quota_group": "one", "limits": LIMIT}, {"quota_group": "one"}
    ) as (router, _, _other):  # fmt: skip
        assert (await used(router))[None] == 5  # one limit for both
    async with two(simulator, type(store)(**_again(store)), {"quota_group": "a", "limits": LIMIT}, {}) as (
        router, limited, free,
    ):  # fmt: skip
        found = await used(router)
        assert found[limited] <= 3
        assert found[free] >= 5


def _again(store: StateStore) -> dict[str, Any]:
    """What makes a second store beside one."""
    url = getattr(store, "redis_url", None)
    return {} if url is None else {"redis_url": url, "namespace": "again"}


async def test_the_models_route(simulator: SimulatorProcess, store: StateStore) -> None:
    async with two(simulator, store, {"models": ["gpt-4o"]}, {"models": ["gpt-4o-mini"]}) as (router, large, small):
        assert await used(router, 4) == {small: 4}
        assert await used(router, 4, model="gpt-4o") == {large: 4}


async def test_the_weight_routes(simulator: SimulatorProcess, store: StateStore) -> None:
    async with two(simulator, store, {"weight": 3}, {"weight": 1}) as (router, heavy, light):
        assert await used(router, 12) == {heavy: 9, light: 3}


async def test_the_quality_routes(simulator: SimulatorProcess, store: StateStore) -> None:
    async with two(simulator, store, {"quality": 0.4}, {"quality": 0.9}) as (router, _, good):
        assert await used(router, objective="quality") == {good: 8}


async def test_the_limits_route(simulator: SimulatorProcess, store: StateStore) -> None:
    async with two(simulator, store, {"limits": LIMIT}, {}) as (router, limited, free):
        found = await used(router, 12)
        assert found[limited] <= 3
        assert found[limited] + found[free] == 12


async def test_metadata_that_does_not_route_is_kept_and_changes_nothing(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with two(simulator, store, {"rotation_group": "primary", "index": 1}, {"index": 2}) as (router, one, other):
        assert await used(router) == {one: 4, other: 4}
        stored = await router.key_manager.get_key(one)
        assert stored is not None
        assert stored.metadata == {"rotation_group": "primary", "index": 1}
