"""Many keys at once: one code path with a single key, bounded pages, and what a process leaves behind that dies."""

import asyncio
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.components.key_manager import NewKey
from apikeyrouter.domain.interfaces.state_store import KEYS, StateStore
from apikeyrouter.domain.models.api_key import APIKey, KeyState
from apikeyrouter.domain.models.system_error import KeyRegistrationError
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from tests.router.house import MASTER_KEY

STORES = ("memory", "valkey")


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Callable[[], StateStore]:
    """Makes stores of one kind; those of a server share it."""
    if request.param == "memory":
        return InMemoryStateStore
    url = request.getfixturevalue("redis_url")
    return lambda: RedisStateStore(url)


def keys(count: int, **metadata: Any) -> list[NewKey]:
    return [
        NewKey(material=f"sk-{n}", provider_id="openai", metadata={"quota_group": f"org-{n % 7}", **metadata})
        for n in range(count)
    ]


def shown(found: Sequence[APIKey | Exception]) -> list[dict[str, Any]]:
    """What keys are, but for when."""
    return [
        key.model_dump(exclude={"created_at", "updated_at", "encrypted_material"}) if isinstance(key, APIKey) else {}
        for key in found
    ]


async def opened(store: StateStore) -> ApiKeyRouter:
    router = ApiKeyRouter(store, config={"encryption_key": MASTER_KEY})
    await router.register_provider("openai", OpenAIAdapter())
    return router


async def test_many_keys_become_what_each_becomes_by_itself(store: Callable[[], StateStore]) -> None:
    told = [*keys(300), NewKey(material="sk-named", provider_id="openai", key_id="mine")]
    one, other = await opened(InMemoryStateStore()), await opened(store())
    single = [
        await one.key_manager.register_key(key.material, key.provider_id, key.metadata, key_id=key.key_id)
        for key in told
    ]
    many = await other.key_manager.register_keys(told)
    assert shown(many) == shown(single)
    assert list(other.catalogue.keys) == list(one.catalogue.keys)
    assert shown(await other.key_manager.list_keys()) == shown(single)
    trails = [
        [
            (each.entity_id, each.from_state, each.to_state, each.reason)
            for each in await router.key_manager.get_transitions()
        ]
        for router in (one, other)
    ]
    assert trails[0] == trails[1]
    assert len(trails[0]) == len(told)
    lanes = [await router.ledger.lanes([f"k:{key_id}" for key_id in router.catalogue.keys]) for router in (one, other)]
    assert lanes[0] == lanes[1]
    again = await other.key_manager.register_keys(told)
    assert [key.updated_at for key in again if isinstance(key, APIKey)] == [
        key.updated_at for key in many if isinstance(key, APIKey)
    ]
    assert len(await other.key_manager.get_transitions()) == len(told)
    for router in (one, other):
        await router.close()


async def test_each_row_is_told_what_became_of_it_and_what_is_wrong_keeps_nothing_else_back(
    store: Callable[[], StateStore],
) -> None:
    router = await opened(store())
    found = await router.key_manager.register_keys(
        [
            NewKey(material="sk-good", provider_id="openai", metadata={"tier": "first"}),
            NewKey(material=" ", provider_id="openai"),
            NewKey(material="sk-x", provider_id="nobody"),
            NewKey(material="sk-y", provider_id="openai", metadata={"weight": -1}),
            NewKey(material="sk-z", provider_id="openai", metadata={"limits": [{"rpm": 5, "models": 3}]}),
            NewKey(material="sk-good", provider_id="openai", metadata={"tier": "second"}),
        ]
    )
    first, empty, unknown, heavy, limited, second = found
    assert isinstance(first, APIKey)
    assert isinstance(second, APIKey)
    assert first.id == second.id
    assert second.metadata == {"tier": "second"}
    for error, told in ((empty, "empty"), (unknown, "nobody"), (heavy, "metadata.weight"), (limited, "limits.models")):
        assert isinstance(error, KeyRegistrationError)
        assert told in str(error)
    assert [key.id for key in await router.key_manager.list_keys()] == [first.id]
    assert list(router.catalogue.keys) == [first.id]
    assert await router.key_manager.register_keys([]) == []
    await router.close()


async def test_what_a_file_or_an_operator_said_before_is_put_right_in_a_batch_too(
    store: Callable[[], StateStore],
) -> None:
    router = await opened(store())
    told = [NewKey(material=f"sk-{n}", provider_id="openai", key_id=f"k{n}", metadata={}) for n in range(3)]
    (*_, untouched) = await router.key_manager.register_keys(told)
    assert isinstance(untouched, APIKey)
    await router.key_manager.update_key_state("k0", "invalid", "refused")
    await router.key_manager.rotate_key("k1", "sk-other")
    await router.key_manager.register_keys(told)
    found = {key.id: key for key in await router.key_manager.list_keys()}
    assert found["k0"].state is KeyState.Available
    assert found["k1"].generation == 2
    assert str.__str__(router.catalogue.keys["k1"].material) == "sk-1"
    assert found["k2"].updated_at == untouched.updated_at
    assert await router.key_manager.revoke_keys(["k0", "nobody", "k2"], "moved") == ["k0", "k2"]
    assert [key.id for key in await router.key_manager.list_keys()] == ["k1"]
    assert list(router.catalogue.keys) == ["k1"]
    last = (await router.key_manager.get_transitions())[-1]
    assert (last.entity_id, last.to_state, last.reason) == ("k2", None, "revoked: moved")
    await router.close()


async def test_keys_that_one_process_registers_together_are_known_in_the_other_by_one_notice_a_page(
    redis_url: str,
) -> None:
    one, other = await opened(RedisStateStore(redis_url)), await opened(RedisStateStore(redis_url))
    await one.start()
    await other.start()
    notices: list[int] = []
    listens = asyncio.Event()
    store = RedisStateStore(redis_url)

    async def watch() -> None:
        async for change in store.watch():
            listens.set()
            if change.kind == KEYS:
                notices.append(len(change.key_ids))

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(20):
        while not listens.is_set():  # what was told before it listened it cannot know
            await store.save_document("probe", "x", {})
            await asyncio.sleep(0.01)
    await one.key_manager.register_keys(keys(300))
    async with asyncio.timeout(20):
        while len(other.catalogue.keys) < 300 or sum(notices) < 300:
            await asyncio.sleep(0.01)
    assert notices == [128, 128, 44]
    await one.key_manager.revoke_keys(list(one.catalogue.keys)[:200])
    async with asyncio.timeout(20):
        while len(other.catalogue.keys) != 100:
            await asyncio.sleep(0.01)
    assert list(other.catalogue.keys) == list(one.catalogue.keys)
    watching.cancel()
    await one.close()
    await other.close()


class Reading(RedisStateStore):
    """Counts the keys that were read as more than a mark."""

    opened = 0

    async def read_keys(self, seen: Any, ids: Any = None) -> Any:
        """As ever."""
        found = await super().read_keys(seen, ids)
        self.opened += len(found.changed)
        return found


async def test_looking_at_all_keys_costs_by_what_has_changed(redis_url: str) -> None:
    one, reading = await opened(RedisStateStore(redis_url)), Reading(redis_url)
    await one.key_manager.register_keys(keys(200))
    other = await opened(reading)
    await other.start()
    await other.key_manager.refresh()
    assert len(other.catalogue.keys) == 200
    before = reading.opened
    await other.key_manager.refresh()
    assert reading.opened == before
    changed = list(one.catalogue.keys)[5]
    await one.key_manager.update_key_state(changed, "disabled", "away")
    await other.key_manager.refresh()
    assert other.catalogue.keys[changed].state is KeyState.Disabled
    assert reading.opened - before <= 2  # once by the notice, or once here
    await other.close()
    await one.close()


DYING = """
import asyncio, os, signal, sys
from tests.router.test_many_keys import MASTER_KEY, RedisStateStore, keys, opened

class Dying(RedisStateStore):
    pages = 0
    async def change_keys(self, decisions, marks=None):
        if self.pages == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        self.pages += 1
        return await super().change_keys(decisions, marks)

async def main():
    router = await opened(Dying(sys.argv[1]))
    await router.key_manager.register_keys(keys(400, limits={"rpm": 100}))

asyncio.run(main())
"""


async def test_a_process_that_dies_between_two_pages_leaves_whole_keys_and_the_same_again_completes_them(
    redis_url: str,
) -> None:
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(DYING), redis_url], check=False, timeout=60
    )
    assert run.returncode == -signal.SIGKILL
    router = await opened(RedisStateStore(redis_url))
    await router.start()
    await router.key_manager.refresh()
    assert len(router.catalogue.keys) == 256
    for key in router.catalogue.keys.values():
        assert str.__str__(key.material).startswith("sk-")
    found = await router.key_manager.register_keys(keys(400, limits={"rpm": 100}))
    assert all(isinstance(key, APIKey) for key in found)
    assert len(router.catalogue.keys) == 400
    assert len(await router.key_manager.get_transitions()) == 400
    await router.close()


async def test_while_keys_are_replaced_elsewhere_there_is_always_one(redis_url: str) -> None:
    one, other = await opened(RedisStateStore(redis_url)), await opened(RedisStateStore(redis_url))
    await one.key_manager.register_key("sk-old", "openai", key_id="old")
    await other.start()
    await other.key_manager.refresh()
    put, there = other.ledger.put, []

    async def watched(**given: Any) -> Any:
        there.append(set(other.catalogue.keys))
        return await put(**given)

    other.ledger.put = watched  # type: ignore[method-assign]
    assert other._watcher is not None
    other._watcher.cancel()  # so that both changes are seen by one look
    await one.key_manager.register_key("sk-new", "openai", key_id="new")
    await one.key_manager.revoke_key("old")
    await other.key_manager.refresh()
    assert list(other.catalogue.keys) == ["new"]
    assert there
    assert all(there)
    await one.close()
    await other.close()
