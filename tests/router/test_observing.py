"""What providers say in headers and refusals, and what follows: limits learned, lanes that rest, keys that are one."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import LaneState, LimitKind, LimitState, Metric, Observation
from apikeyrouter.domain.models.system_error import InvalidRequestError, ProviderError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.serving.observing import complete
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, intent, until
from tests.router.in_process import local_simulator

pytestmark = pytest.mark.asyncio(loop_scope="package")
A1, A2, B1 = "sk-sim-house-a-number-1", "sk-sim-house-a-number-2", "sk-sim-house-b-number-1"


@asynccontextmanager
async def plain(simulator: SimulatorProcess, store: StateStore) -> AsyncIterator[ApiKeyRouter]:
    """A router with the simulated provider, and no key of its own."""
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY})
    router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
    async with router:
        yield router


def answer(status: int, body: bytes = b"", **headers: str) -> Any:
    """An answer as HTTP clients have it."""
    named: Mapping[str, str] = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return SimpleNamespace(status_code=status, headers=named, content=body)


# --- organisations ---------------------------------------------------------------------------------------------------


async def test_keys_of_one_organisation_become_one_group_in_every_process(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with (
        plain(simulator, RedisStateStore(redis_url)) as one,
        plain(simulator, RedisStateStore(redis_url)) as two,
    ):
        first = await one.register_key(A1, "openai")
        second = await one.register_key(A2, "openai")
        other = await one.register_key(B1, "openai")
        await until(lambda: len(two.catalogue.keys) == 3)
        for _ in range(6):
            await one.route(intent())
        for router in (one, two):
            await until(lambda router=router: router.catalogue.keys[second.id].quota_group == first.id)
            assert router.catalogue.keys[first.id].quota_group == first.id
            assert router.catalogue.keys[other.id].quota_group == other.id
        trail = await one.key_manager.get_transitions(second.id)
        assert [entry.actor for entry in trail if "of one organisation" in entry.reason] == ["router"]
        stored = await one.key_manager.get_key(second.id)
        assert stored is not None
        assert "org-a" not in str(stored.public())


async def test_a_limit_of_one_key_holds_for_the_other_after_they_were_found_to_be_one(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        first = await router.register_key(A1, "openai", {"limits": {"rpd": 10, "kind": "fixed", "headroom": 0}})
        second = await router.register_key(A2, "openai")
        while router.catalogue.keys[second.id].quota_group != first.id:
            await router.route(intent())
        for _ in range(10):
            try:
                await router.route(intent())
            except NoEligibleKeysError:
                break
        with pytest.raises(NoEligibleKeysError):
            await router.route(intent())


async def test_declared_groups_are_left_alone_and_the_contradiction_is_told(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    heard: list[Mapping[str, Any]] = []
    async with plain(simulator, store) as router:
        router.subscribe_to_events("quota_group.conflict", heard.append)
        first = await router.register_key(A1, "openai", {"quota_group": "one"})
        second = await router.register_key(A2, "openai", {"quota_group": "two"})
        for _ in range(4):
            await router.route(intent())
        await until(lambda: heard)
        assert set(heard[0]["groups"]) == {"one", "two"}
        assert set(heard[0]["key_ids"]) == {first.id, second.id}
        groups = [router.catalogue.keys[key.id].quota_group for key in (first, second)]
        assert groups == ["one", "two"]


def where_it_is_morning() -> str:
    """A time zone whose day has most of its hours before it: what a day still allows is learned by when it ends."""
    ahead = (6 - datetime.now(UTC).hour + 12) % 24 - 12
    return f"Etc/GMT{-ahead:+d}"


async def test_a_contradiction_of_many_keys_names_ten_and_says_how_many(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    heard: list[Mapping[str, Any]] = []
    async with plain(simulator, store) as router:
        router.subscribe_to_events("quota_group.conflict", heard.append)
        for n in range(12):
            key = await router.register_key(f"sk-sim-many-{n}", "openai", {"quota_group": f"group-{n}"})
            await router.key_manager.learn_organization(key.id, "digest")
        await until(lambda: len(heard) == 11)
    assert (heard[-1]["key_count"], heard[-1]["group_count"]) == (12, 12)
    assert (len(heard[-1]["key_ids"]), len(heard[-1]["groups"])) == (10, 10)


async def test_counters_that_fall_together_are_told_and_one_word_of_the_operator_makes_them_one(
    store: StateStore,
) -> None:
    """Nothing in these answers names an organisation; of a day's requests they tell what is left."""
    limit = 400
    heard: list[Mapping[str, Any]] = []
    day = {"rpd": limit, "kind": "calendar", "timezone": where_it_is_morning()}
    organisation = {"id": "org-g", "dialect": "groq", "keys": [A1, A2], "limits": [day]}
    async with (
        local_simulator({"organisations": [organisation]}) as groq,
        ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY}) as router,
    ):
        router.register_provider("groq", OpenAIAdapter(groq.base_url("groq"), profile="groq"))
        router.subscribe_to_events("quota_group.suspected", heard.append)
        keys = [await router.register_key(material, "groq", {"models": ["llama"]}) for material in (A1, A2)]
        lanes, asked = [f"k:{key.id}" for key in keys], 0

        def counted() -> bool:
            seen = [router.snapshot.lanes[lane].requests_total for lane in lanes if lane in router.snapshot.lanes]
            return sum(seen) == asked

        while not heard:
            for _ in range(2):  # as many as may be under way uncounted
                await router.route(intent(model="llama"))
            asked += 2
            assert asked < limit // 2
            await until(counted)
        assert {heard[0]["key_id"], heard[0]["other_key_id"]} == {key.id for key in keys}
        groups = {router.catalogue.keys[key.id].quota_group for key in keys}
        assert groups == {key.id for key in keys}, "a suspicion changes nothing"
        for material in (A1, A2):
            await router.register_key(material, "groq", {"models": ["llama"], "quota_group": "org-g"})
        with pytest.raises((NoEligibleKeysError, ProviderError)):  # one may be sent before the last header is counted
            for _ in range(limit):
                await router.route(intent(model="llama"))
        with pytest.raises(NoEligibleKeysError) as caught:
            await router.route(intent(model="llama"))
        assert set(caught.value.details["reasons"]) == {key.id for key in keys}, "both are out at once"
        assert len(groq.billed("org-g")) <= limit + 1, "of the second key it was not tried again"


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_a_refusal_teaches_the_limit_that_its_words_state(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.register_key(B1, "openai")
        await simulator.fail("rate_limit_tokens", organisation="org-a", count=1, seconds=1)
        for _ in range(3):
            await router.route(intent())

        async def learned() -> bool:
            lanes = await router.ledger.lanes([f"g:{key.id}:gpt-4o-mini"])
            found = [limit for lane in lanes for limit in lane.limits if limit.name == "tpm"]
            return [(limit.capacity, limit.learned) for limit in found] == [(200_000, True)]

        await until(learned)


async def test_an_answer_that_the_router_did_not_fetch_is_acted_on_as_its_own(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        engine = router.quota_awareness_engine
        key = await router.register_key(A1, "openai")
        with pytest.raises(InvalidRequestError, match="name one"):
            await engine.handle_quota_response(key.id, answer(200))
        state = await engine.handle_quota_response(
            key.id, answer(200, x_ratelimit_limit_requests="100", x_ratelimit_remaining_requests="15"),
            model="gpt-4o-mini",
        )  # fmt: skip
        assert (state.limit, state.total_capacity, state.used_capacity) == ("rpm", 100, 85)
        assert state.capacity_state in ("Constrained", "Critical")
        body = b'{"error": {"message": "slow", "type": "requests", "code": "rate_limit_exceeded"}}'
        state = await engine.handle_quota_response(key.id, answer(429, body, retry_after="30"), model="gpt-4o-mini")
        assert state.capacity_state == "Exhausted"
        with pytest.raises(NoEligibleKeysError) as caught:
            await router.route(intent())
        assert caught.value.retry_after is not None
        assert 25 <= caught.value.retry_after <= 30
        for wrong in (None, "text", SimpleNamespace(status_code=200)):
            with pytest.raises(InvalidRequestError, match="response"):
                await engine.handle_quota_response(key.id, wrong, model="gpt-4o-mini")  # type: ignore[arg-type]


async def test_a_refused_key_is_invalid_whoever_was_refused(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        body = b'{"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_api_key"}}'
        await router.quota_awareness_engine.handle_quota_response(key.id, answer(401, body), model="gpt-4o-mini")
        await until(lambda: router.catalogue.keys[key.id].state == "invalid")
        with pytest.raises(NoEligibleKeysError):
            await router.route(intent())


async def test_nothing_left_of_an_unknown_limit_rests_the_lane(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.quota_awareness_engine.handle_quota_response(
            key.id, answer(200, x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="40s"),
            model="gpt-4o-mini",
        )  # fmt: skip
        with pytest.raises(NoEligibleKeysError) as caught:
            await router.route(intent())
        assert caught.value.retry_after is not None
        assert 35 <= caught.value.retry_after <= 40


def seen(name: str, *, limit: int = 0, remaining: int | None = 0, reset_us: int = 0) -> Observation:
    return Observation(
        name=name, metric=Metric.REQUESTS, kind=LimitKind.BUCKET, period_us=60_000_000, limit=limit,
        remaining=remaining, reset_us=reset_us,
    )  # fmt: skip


async def test_nothing_left_without_the_limit_is_the_limit_that_is_known_all_used() -> None:
    known = LimitState(
        name="rpm", metric=Metric.REQUESTS, kind=LimitKind.BUCKET, capacity=490, used=3, reset_at_us=0, learned=False
    )
    lane = LaneState(
        id="g:a:m", seq=1, in_flight=0, blocked_until_us=0, breaker="closed", breaker_until_us=0, successes=0,
        failures=0, latency_us=0, requests_total=0, failures_total=0, last_used_us=0, limits=(known,),
    )  # fmt: skip
    assert complete([seen("rpm")], lane) == ([seen("rpm", limit=490)], 0.0)
    assert complete([seen("rpd")], lane) == ([], 1.0)
    assert complete([seen("rpd", reset_us=5_000_000)], None) == ([], 5.0)
    assert complete([seen("rpd", reset_us=10**15)], None) == ([], 86_400.0)
    assert complete([seen("rpm", remaining=7), seen("tpm", remaining=None)], lane)[1] == 0.0
