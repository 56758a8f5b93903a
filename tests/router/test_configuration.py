"""A configuration file in force: all or nothing, again while requests run, and the same for every process."""

import asyncio
from dataclasses import replace

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.cost_controller import BudgetExceededError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.config.compiled import ProviderRecord
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import KEYS, MASTER_KEY, SOFT_BUDGET, config_of, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
FIVE_A_DAY = [{"quota_group": "org-a", "models": ["gpt-4o-mini"], "rpd": 5, "kind": "fixed", "headroom": 0}]
TINY = {"name": "tiny", "scope": "global", "limit_usd": 0.000001, "period": "total", "enforcement": "hard"}


async def test_a_second_file_drops_what_it_no_longer_names(simulator: SimulatorProcess, store: StateStore) -> None:
    alias = {"fast": [{"provider": "openai", "model": "gpt-4o-mini"}]}
    async with house(
        simulator, store, ["a1", "b1"], budgets=[SOFT_BUDGET, TINY], limits=FIVE_A_DAY, models=alias
    ) as made:
        with pytest.raises(BudgetExceededError):
            await made.route()
        await made.apply(["a1"])
        assert set(made.router.catalogue.keys) == {"a1"}
        assert {key.id for key in await made.router.key_manager.list_keys()} == {"a1"}
        assert [scope.id for scope in made.router.catalogue.budgets()] == ["global:all"]
        for _ in range(8):
            assert (await made.route()).key_used == "a1"
        with pytest.raises(InvalidRequestError):
            await made.route(model="fast", provider_id="anthropic")
        assert made.router.catalogue.aliases == {}
        await made.at_rest()


async def test_a_file_that_is_wrong_changes_nothing(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], limits=FIVE_A_DAY) as made:
        before = made.router.ledger.stamp.config_version
        config = config_of(simulator, ["b1"])
        wrong = ProviderRecord(id="wrong", adapter="openai", base_url=None, lane="p:wrong", options={"what": 1})
        with pytest.raises(ConfigurationError, match="wrong"):
            await made.router.apply(replace(config, providers={**config.providers, "wrong": wrong}))
        assert set(made.router.catalogue.keys) == {"a1"}
        assert made.router.ledger.stamp.config_version == before
        assert (await made.route()).key_used == "a1"


async def test_a_file_is_applied_while_requests_run(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1", "b1"]) as made:
        stop = asyncio.Event()

        async def keep_asking() -> None:
            while not stop.is_set():
                await made.route()

        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for keys in (["a1"], ["a1", "a2", "b1"], ["b1"], ["a2", "b1"]):
            served = len(made.finished)
            await until(lambda served=served: len(made.finished) >= served + 8)
            await made.apply(keys)
        stop.set()
        await asyncio.gather(*asking)
        assert await made.at_rest() == await made.billed()


async def test_a_changed_limit_holds_from_then_on(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], limits=FIVE_A_DAY) as made:
        for _ in range(5):
            await made.route()
        with pytest.raises(NoEligibleKeysError) as caught:
            await made.route()
        assert "rpd" in caught.value.reasons["a1"]
        more = [{**FIVE_A_DAY[0], "rpd": 7}]
        await made.apply(["a1"], limits=more)
        for _ in range(2):
            await made.route()
        with pytest.raises(NoEligibleKeysError):
            await made.route()
        assert (await made.seen("org-a"))["admitted"] == 7


async def test_a_limit_that_is_gone_limits_no_longer_even_after_a_restart(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1", "b1"], limits=FIVE_A_DAY) as made:
        for _ in range(5):
            await made.route(provider_id="openai")
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        assert (await made.route()).key_used == "a1"
        assert {key.id for key in await made.router.key_manager.list_keys()} == {"a1"}


async def test_a_process_without_the_file_meters_and_holds_the_same(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    stranger = ApiKeyRouter(state_store=RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY})
    async with house(simulator, RedisStateStore(redis_url), ["a1"], limits=FIVE_A_DAY) as made, stranger:
        await stranger.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        for _ in range(3):
            await made.route()
        for _ in range(2):
            assert (await stranger.route(intent())).key_used == "a1"
        for router in (made.router, stranger):
            with pytest.raises(NoEligibleKeysError):
                await router.route(intent())
        await stranger.books.flush(seconds=5)
        assert await made.at_rest() == await made.billed()
        await made.apply(["a1"], budgets=[SOFT_BUDGET, TINY])
        await until(lambda: len(stranger.catalogue.budgets()) == 2)
        with pytest.raises(BudgetExceededError):
            await stranger.route(intent())


async def test_an_equivalent_that_cannot_say_the_request_is_passed_over(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    alias = {
        "fast": [
            {"provider": "anthropic", "model": "claude-haiku-5"},
            {"provider": "openai", "model": "gpt-4o-mini"},
        ]
    }
    async with house(simulator, store, ["a1", "c1"], models=alias) as made:
        assert (await made.route(model="fast")).key_used == "c1"
        answer = await made.route(model="fast", parameters={"n": 2})
        assert answer.key_used == "a1"
        await simulator.fail("overloaded", organisation="org-c")
        assert (await made.route(model="fast")).key_used == "a1"
        assert await made.at_rest() == await made.billed()


async def test_a_key_of_the_file_registered_by_hand_is_the_same_key(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"]) as made:
        by_hand = await made.router.register_key(KEYS["a1"]["key"], "openai")
        assert by_hand.id == "a1"
        assert len(await made.router.key_manager.list_keys()) == 1
