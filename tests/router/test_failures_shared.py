"""What one process finds out of failures, every process on the store knows: what comes last, and who answers well."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from apikeyrouter import ProviderError
from apikeyrouter.domain.components.avoidance import AVOIDED, PLACES_MAX, Avoidance
from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import KEYS, House, house, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
PATIENT = {"correlated_failures": {"within_ms": 600_000, "suspect_ms": 600_000, "pause_ms": 600_000}}


@asynccontextmanager
async def two(
    simulator: SimulatorProcess, redis_url: str, keys: Sequence[str], **parts: Any
) -> AsyncIterator[tuple[House, House]]:
    async with (
        house(simulator, RedisStateStore(redis_url), keys, **parts) as one,
        house(simulator, RedisStateStore(redis_url), keys, **parts) as other,
    ):
        yield one, other


def comes_last(made: House, key_id: str) -> bool:
    """Whether a key is offered behind all others for the model."""
    router = made.router
    pool = router.catalogue.pool("gpt-4o-mini", None, "")
    ranked = pool.rank(router.routing_engine.plan(None), 8, snapshot=router.snapshot, now=time.perf_counter())
    return ranked.options[-1].key.id == key_id and ranked.ranking.standings[-1].out_until_us > 0


async def test_a_key_that_lacks_a_model_comes_last_in_every_process(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    await simulator.fail("model_not_found", key=KEYS["a1"]["key"])
    async with two(simulator, redis_url, ["a1", "b1"]) as (one, other):
        for _ in range(2):
            await one.route()
        await until(lambda: comes_last(other, "a1"))
        for _ in range(4):
            await other.route()
        assert {facts.key_id for facts in other.finished} == {"b1"}
        assert all(len(facts.attempts) == 1 for facts in other.finished), "nobody asks it again"
        async with house(simulator, RedisStateStore(redis_url), ["a1", "b1"]) as late:
            assert comes_last(late, "a1"), "who comes later knows it from the start"


async def test_a_provider_without_capacity_comes_last_in_every_process(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    await simulator.fail("overloaded", organisation="org-a", seconds=20)
    async with two(simulator, redis_url, ["a1", "b1"]) as (one, other):
        for _ in range(2):
            await one.route()
        await until(lambda: comes_last(other, "a1"))
        for _ in range(4):
            await other.route()
        assert {facts.key_id for facts in other.finished} == {"b1"}


async def test_what_ended_is_taken_away_and_there_are_only_so_many(redis_url: str) -> None:
    store, snapshot = InMemoryStateStore(), Snapshot()
    avoidance = Avoidance(snapshot, store)
    assert avoidance.avoid("k", 10)
    await avoidance.tell("k", 10)
    assert not avoidance.avoid("k", 11), "they know"
    assert avoidance.avoid("k", 100)
    for number in range(PLACES_MAX + 5):
        await avoidance.tell(f"place-{number}", 100 + number)
    found = await store.list_documents(AVOIDED)
    assert len(found) == PLACES_MAX
    assert "k" not in found, "what ends first is forgotten first"
    assert f"place-{PLACES_MAX + 4}" in found
    await store.save_document(AVOIDED, "old", {"until_us": 1})
    await store.save_document(AVOIDED, "nonsense", {"until_us": "soon"})
    reader = Avoidance(Snapshot(), store)
    await reader.look()
    left = await store.list_documents(AVOIDED)
    assert {"old", "nonsense"} & set(left) == set()


async def refused(made: House, key_id: str) -> None:
    """One request of this process goes to this key alone, which is refused."""
    router = made.router
    router.attempts_max = 1
    blocked = {f"k:{key}": time.perf_counter() + 600 for key in (*KEYS, "good") if key != key_id}
    router.snapshot.blocked.update(blocked)
    router.snapshot.blocked.pop(f"k:{key_id}", None)
    with pytest.raises(ProviderError):
        await made.route()

    async def is_out() -> bool:
        key = await router.state_store.get_key(key_id)
        return key is not None and key.state is KeyState.Invalid

    await until(is_out)


async def test_a_good_answer_anywhere_clears_a_provider_of_blame_everywhere(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    keys = ["a1", "a2", "s1", {**KEYS["b1"], "id": "good", "provider": "openai"}]
    for key in ("a1", "a2", "s1"):
        await simulator.fail("invalid_api_key", key=KEYS[key]["key"])
    async with two(simulator, redis_url, keys, routing=PATIENT) as (served, unlucky):  # type: ignore[arg-type]
        served.router.snapshot.blocked.update({f"k:{key}": time.perf_counter() + 600 for key in KEYS})
        await refused(unlucky, "a1")
        await refused(unlucky, "a2")
        before = unlucky.router.catalogue.providers["openai"].answered_at
        await served.route()
        assert served.finished[-1].key_id == "good"
        provider = unlucky.router.catalogue.providers["openai"]
        await until(lambda: provider.answered_at > before)
        await refused(unlucky, "s1")
        await until(lambda: not unlucky.router._chores)
        states = [await unlucky.router.key_manager.get_key(key) for key in ("a1", "a2", "s1")]
        assert [key.state for key in states if key is not None] == [KeyState.Invalid] * 3, "each speaks for itself"
        assert not (await unlucky.router.failure_handler.get_circuit_state("good")).cooling


async def test_nothing_is_told_of_good_answers_while_no_key_was_refused(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with two(simulator, redis_url, ["a1"]) as (one, _):
        for _ in range(5):
            await one.route()
        assert one.router.failure_handler.refusals.answers.due() == []
        assert await one.router.state_store.get_document("answered", "openai") is None
