"""The life of a key: what is done with it, what the audit trail says of it, and what its provider says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter, ProviderError
from apikeyrouter.domain.components.key_states import IllegalTransitionError
from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import APIKey, KeyState
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
A1, A2, B1 = "sk-sim-house-a-number-1", "sk-sim-house-a-number-2", "sk-sim-house-b-number-1"


@asynccontextmanager
async def plain(
    simulator: SimulatorProcess, store: StateStore, config: Mapping[str, Any] | None = None
) -> AsyncIterator[ApiKeyRouter]:
    """A router with the simulated provider, and no key of its own."""
    router = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY, **(config or {})})
    router.register_provider("openai", OpenAIAdapter(simulator.openai_url))
    async with router:
        yield router


async def test_the_audit_trail_says_who_did_what_when_and_why(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        keys = router.key_manager
        key = await router.register_key(A1, "openai")
        await router.register_key(A1, "openai")  # says nothing new
        await keys.update_key_state(key.id, "throttled", "too fast", actor="ann")
        await keys.enable_key(key.id, "it is fine", actor="bob")
        await keys.rotate_key(key.id, A2, actor="ann")
        await keys.revoke_key(key.id, "left the team", actor="bob")
        trail = await keys.get_transitions(key.id)
        assert [(e.actor, e.from_state, e.to_state, e.reason) for e in trail] == [
            ("operator", None, "available", "registered"),
            ("ann", "available", "throttled", "too fast"),
            ("bob", "throttled", "available", "it is fine"),
            ("ann", "available", "available", "rotated"),
            ("bob", "available", None, "revoked: left the team"),
        ]
        assert [e.timestamp for e in trail] == sorted(e.timestamp for e in trail)


@pytest.mark.parametrize("kind", ["memory", "valkey"])
async def test_the_audit_trail_is_capped_by_the_setting(
    simulator: SimulatorProcess, kind: str, request: pytest.FixtureRequest
) -> None:
    store: StateStore
    store = InMemoryStateStore() if kind == "memory" else RedisStateStore(request.getfixturevalue("redis_url"))
    async with plain(simulator, store, {"max_transitions": 3}) as router:
        key = await router.register_key(A1, "openai")
        for reason in "abcde":
            await router.key_manager.update_key_state(key.id, "throttled", reason)
        assert [entry.reason for entry in await router.key_manager.get_transitions()] == ["c", "d", "e"]


async def test_an_illegal_transition_changes_nothing_and_leaves_no_trace(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.key_manager.disable_key(key.id, "holiday")
        with pytest.raises(IllegalTransitionError, match="possible: available"):
            await router.key_manager.update_key_state(key.id, "exhausted")
        with pytest.raises(InvalidRequestError, match="must be one of"):
            await router.key_manager.update_key_state(key.id, "asleep")
        assert len(await router.key_manager.get_transitions(key.id)) == 2
        with pytest.raises(NoEligibleKeysError, match="holiday"):
            await router.route(intent())
        assert (await router.key_manager.enable_key(key.id)).state is KeyState.Available
        assert (await router.route(intent())).key_used == key.id


async def test_an_operators_throttle_lasts_the_default_cooldown_or_as_told(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store, {"default_cooldown_seconds": 7}) as router:
        key = await router.register_key(A1, "openai")
        for told, expected in ((None, 7.0), (90.0, 90.0)):
            entry = await router.key_manager.update_key_state(key.id, "throttled", for_seconds=told)
            assert entry.until is not None
            assert (entry.until - entry.timestamp).total_seconds() == expected
        for wrong in (0, -1, 10**9):
            with pytest.raises(InvalidRequestError, match="for_seconds"):
                await router.key_manager.update_key_state(key.id, "throttled", for_seconds=wrong)


async def test_enabling_an_exhausted_key_takes_the_legal_way(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.key_manager.update_key_state(key.id, "exhausted", for_seconds=1000)
        enabled = await router.key_manager.enable_key(key.id, "paid")
        assert (enabled.state, enabled.state_until) == (KeyState.Available, None)
        states = [entry.to_state for entry in await router.key_manager.get_transitions(key.id)]
        assert states == ["available", "exhausted", "recovering", "available"]


@pytest.mark.parametrize("action", ["update", "disable", "enable", "probe", "rotate", "revoke"])
async def test_nothing_can_be_done_with_a_key_that_is_not_there(
    simulator: SimulatorProcess, store: StateStore, action: str
) -> None:
    async with plain(simulator, store) as router:
        keys = router.key_manager
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "update": lambda: keys.update_key_state("gone", "disabled"), "disable": lambda: keys.disable_key("gone"),
            "enable": lambda: keys.enable_key("gone"), "probe": lambda: keys.probe_key("gone"),
            "rotate": lambda: keys.rotate_key("gone", A1), "revoke": lambda: keys.revoke_key("gone"),
        }  # fmt: skip
        with pytest.raises(InvalidRequestError, match="no key 'gone'"):
            await calls[action]()
        assert await keys.get_transitions() == []


async def test_the_counts_of_a_key_are_the_fleets(simulator: SimulatorProcess, redis_url: str) -> None:
    async with (
        plain(simulator, RedisStateStore(redis_url)) as one,
        plain(simulator, RedisStateStore(redis_url)) as two,
    ):
        key = await one.register_key(A1, "openai")
        assert (key.usage_count, key.last_used_at) == (0, None)
        await until(lambda: key.id in two.catalogue.keys)
        for router in (one, two, two):
            await router.route(intent())
        await simulator.fail("server_error", count=1)
        with pytest.raises(ProviderError):
            await one.route(intent())

        async def counted() -> bool:
            seen = await two.key_manager.get_key(key.id)
            return seen is not None and (seen.usage_count, seen.failure_count) == (4, 1)

        await until(counted)
        (listed,) = await one.key_manager.list_keys("openai")
        assert listed.usage_count == 4
        assert listed.last_used_at is not None
        assert listed.last_used_at.tzinfo is not None


async def test_eligible_keys_are_those_by_state_provider_and_permission(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        router.register_provider("other", OpenAIAdapter(simulator.openai_url))
        one = await router.register_key(A1, "openai", {"region": "eu"})
        two = await router.register_key(A2, "openai", {"region": "us"})
        three = await router.register_key(B1, "other", {"region": "eu"})
        keys = router.key_manager

        def european(key: APIKey) -> bool:
            return bool(key.metadata["region"] == "eu")

        assert [key.id for key in await keys.get_eligible_keys()] == [one.id, two.id, three.id]
        assert [key.id for key in await keys.get_eligible_keys("openai")] == [one.id, two.id]
        assert [key.id for key in await keys.get_eligible_keys(policy=european)] == [one.id, three.id]
        rules = {"denied_regions": ["us"]}
        declared = {"name": "eu", "scope": "team", "scope_id": "eng", "rules": rules}
        assert [key.id for key in await keys.get_eligible_keys(policy=declared)] == [one.id, three.id]
        assert [key.id for key in await keys.get_eligible_keys("openai", Policy.parse(declared))] == [one.id]
        with pytest.raises(InvalidRequestError, match="denied_planets"):
            await keys.get_eligible_keys(policy={"name": "x", "rules": {"denied_planets": ["mars"]}})
        await keys.disable_key(one.id)
        assert [key.id for key in await keys.get_eligible_keys(policy=european)] == [three.id]


# --- material --------------------------------------------------------------------------------------------------------


async def test_registering_without_metadata_leaves_the_metadata(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        await router.register_key(A1, "openai", {"weight": 2})
        assert (await router.register_key(A1, "openai")).metadata == {"weight": 2}
        assert (await router.register_key(A1, "openai", {})).metadata == {}


async def test_registering_what_is_known_writes_nothing(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        first = await router.register_key(A1, "openai", {"weight": 2})
        version = await store.version()
        assert await router.register_key(A1, "openai", {"weight": 2}) == first
        assert await store.version() == version


async def test_many_processes_that_register_one_key_at_once_make_one(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with (
        plain(simulator, RedisStateStore(redis_url)) as one,
        plain(simulator, RedisStateStore(redis_url)) as two,
    ):
        routers = [one, two] * 8
        made = await asyncio.gather(*(router.register_key(A1, "openai", {"index": 1}) for router in routers))
        assert len({key.id for key in made}) == 1
        assert [entry.reason for entry in await one.key_manager.get_transitions()] == ["registered"]


async def test_material_of_one_key_cannot_become_anothers(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        one = await router.register_key(A1, "openai")
        two = await router.register_key(A2, "openai")
        with pytest.raises(InvalidRequestError, match=f"is key {two.id}"):
            await router.key_manager.rotate_key(one.id, A2)
        assert (await router.key_manager.rotate_key(one.id, A1)).generation == 0
        assert len(await router.key_manager.list_keys()) == 2


async def test_what_was_learned_of_old_material_says_nothing_of_the_new(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key("sk-sim-house-slow-1", "openai")
        await simulator.fail("invalid_api_key", organisation="org-s", count=1, seconds=0)
        old = router.catalogue.keys[key.id]
        rotated = await router.key_manager.rotate_key(key.id, A1)
        assert rotated.generation == 1
        with pytest.raises(InvalidRequestError, match="rotated since"):
            await router.key_manager.update_key_state(key.id, "invalid", "refused", generation=old.generation)
        assert (await router.route(intent())).key_used == key.id


async def test_a_change_that_comes_after_the_revocation_brings_no_key_back(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with plain(simulator, store) as router:
        key = await router.register_key(A1, "openai")
        await router.register_key(B1, "openai")
        await asyncio.gather(
            router.key_manager.revoke_key(key.id),
            *(router.key_manager.update_key_state(key.id, "throttled", for_seconds=0.1) for _ in range(20)),
            return_exceptions=True,
        )
        await router.key_manager.refresh()
        assert await router.key_manager.get_key(key.id) is None
        assert key.id not in router.catalogue.keys


# --- probes ----------------------------------------------------------------------------------------------------------


class Oracle(ProviderAdapter):
    """Says of every key what it was told to say, and remembers which it was asked about."""

    def __init__(self) -> None:
        self.verdict: bool | Exception = True
        self.asked: list[str] = []

    async def execute_request(self, intent: RequestIntent, key: str) -> str:
        return "hello"

    async def check_health(self, key: str) -> bool:
        self.asked.append(f"{key}")
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


@pytest.mark.parametrize(
    ("before", "verdict", "after"),
    [
        ("available", True, "available"), ("available", False, "invalid"), ("throttled", False, "invalid"),
        ("exhausted", False, "invalid"), ("exhausted", True, "exhausted"), ("invalid", True, "available"),
        ("invalid", False, "invalid"), ("disabled", True, "disabled"), ("disabled", False, "disabled"),
        ("available", OSError("no route"), "available"), ("invalid", OSError("no route"), "invalid"),
    ],
)  # fmt: skip
async def test_a_probe_moves_a_key_only_where_the_answer_speaks_of_it(
    store: StateStore, before: str, verdict: bool | Exception, after: str
) -> None:
    router, oracle = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY}), Oracle()
    async with router:
        await router.register_provider("mine", oracle)
        key = await router.register_key("sk-mine-1", "mine")
        if before != "available":
            await router.key_manager.update_key_state(key.id, before)
        oracle.verdict = verdict
        probe = await router.key_manager.probe_key(key.id)
        assert probe.works is (None if isinstance(verdict, Exception) else verdict)
        stored = await store.get_key(key.id)
        assert stored is not None
        assert (probe.state, stored.state, router.catalogue.keys[key.id].state) == (after, after, after)
        assert oracle.asked == ["sk-mine-1"]


async def test_a_deleted_key_is_never_probed(store: StateStore) -> None:
    router, oracle = ApiKeyRouter(state_store=store, config={"encryption_key": MASTER_KEY}), Oracle()
    async with router:
        await router.register_provider("mine", oracle)
        key = await router.register_key("sk-mine-1", "mine")
        await router.key_manager.revoke_key(key.id)
        with pytest.raises(InvalidRequestError, match="no key"):
            await router.key_manager.probe_key(key.id)
        assert oracle.asked == []


async def test_a_probe_asks_the_real_endpoint_and_bills_nothing(simulator: SimulatorProcess, store: StateStore) -> None:
    async with plain(simulator, store) as router:
        good = await router.register_key(A1, "openai")
        bad = await router.register_key("sk-sim-nobody-has-this-one", "openai")
        assert (await router.key_manager.probe_key(good.id)).works is True
        assert (await router.key_manager.probe_key(bad.id)).state is KeyState.Invalid
        assert [(await router.route(intent())).key_used for _ in range(3)] == [good.id] * 3
        await router.books.flush(seconds=5)
        assert (await simulator.report())["total"]["admitted"] == 3
        await router.register_provider("openai", OpenAIAdapter("http://127.0.0.1:9/v1"), overwrite=True)
        assert (await router.key_manager.probe_key(good.id)).works is None


@pytest.mark.parametrize("objective", ["fairness", "cost", "latency", "reliability", "quality"])
async def test_a_key_that_is_throttled_while_it_serves_is_avoided_at_once(
    simulator: SimulatorProcess, objective: str
) -> None:
    async with plain(simulator, InMemoryStateStore()) as router:
        one, two = [await router.register_key(material, "openai") for material in (A1, B1)]

        async def used() -> set[str]:
            return {(await router.route(intent(), objective)).key_used for _ in range(8)}

        assert await used() <= {one.id, two.id}
        for key, other in ((one, two), (two, one)):
            await router.key_manager.update_key_state(key.id, "throttled", for_seconds=600)
            assert await used() == {other.id}
            await router.key_manager.update_key_state(key.id, "available", "it is fine")


async def test_a_key_that_was_refused_serves_again_with_new_material(simulator: SimulatorProcess) -> None:
    async with plain(simulator, InMemoryStateStore()) as router:
        key = await router.register_key(A1, "openai")
        await router.key_manager.update_key_state(key.id, "invalid", "401")
        with pytest.raises(NoEligibleKeysError):
            await router.route(intent())
        assert (await router.key_manager.rotate_key(key.id, A2)).state is KeyState.Available
        assert (await router.route(intent())).key_used == key.id
        trail = [(entry.to_state, entry.reason) for entry in await router.key_manager.get_transitions(key.id)]
        assert trail == [
            ("available", "registered"),
            ("invalid", "401"),
            ("invalid", "rotated"),
            ("available", "rotated"),
        ]


async def test_an_exhausted_key_that_serves_again_is_available_in_the_store_too(simulator: SimulatorProcess) -> None:
    async with plain(simulator, InMemoryStateStore()) as router:
        key = await router.register_key(A1, "openai")
        for state in ("exhausted", "recovering"):
            await router.key_manager.update_key_state(key.id, state, "it may serve again")
        assert (await router.route(intent())).key_used == key.id

        async def available() -> bool:
            found = await router.key_manager.get_key(key.id)
            return found is not None and found.state is KeyState.Available

        await until(available)
        assert (await router.key_manager.get_transitions(key.id))[-1].reason == "it serves again"
