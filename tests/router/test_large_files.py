"""Configuration files of many keys, and files that take their time to come into force."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.interfaces.state_store import KeyDecision
from apikeyrouter.domain.models.api_key import APIKey, KeyChange, KeyState
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.infrastructure.state_store.codec import encode_document
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.serving import changing
from apikeyrouter.serving.changing import FileChanges
from apikeyrouter.serving.configuring import SharedConfig
from tests.router.house import MASTER_KEY


def compiled(count: int) -> CompiledConfig:
    told = {
        "providers": {"openai": {"adapter": "openai", "base_url": "http://127.0.0.1:1/v1"}},
        "keys": [
            {"id": f"k{n}", "provider": "openai", "key": f"sk-{n}", "quota_group": f"org-{n % 100}", "models": ["m"]}
            for n in range(count)
        ],
        "limits": [{"quota_group": f"org-{n}", "rpm": 1000} for n in range(100)],
    }
    return compile_config(read_config(told), environ={}, base=Path())


def test_a_file_of_ten_thousand_keys_fits_into_what_processes_share() -> None:
    shared = SharedConfig.of(compiled(10_000), "digest")
    assert len(encode_document(msgspec.to_builtins(shared))) < 200_000
    assert len(shared.keys) == 10_000


async def test_a_file_that_is_applied_again_puts_right_what_was_changed_meanwhile_and_leaves_the_rest(
    redis_url: str,
) -> None:
    store = RedisStateStore(redis_url)
    async with ApiKeyRouter(store, config={"encryption_key": MASTER_KEY}) as router:
        await router.apply(compiled(4))
        before = {key.id: key for key in await router.key_manager.list_keys()}
        await router.key_manager.register_key("sk-0", "openai", {"tier": "pro"}, key_id="k0")
        await router.key_manager.update_key_state("k1", "invalid", "refused")
        await router.key_manager.rotate_key("k2", "sk-another")
        await router.apply(compiled(4))
        after = {key.id: key for key in await router.key_manager.list_keys()}
        materials = {key.id: str.__str__(key.material) for key in router.catalogue.keys.values()}
    assert {key.id: key.metadata for key in after.values()} == {key.id: key.metadata for key in before.values()}
    assert after["k1"].state is KeyState.Available
    assert materials == {f"k{n}": f"sk-{n}" for n in range(4)}
    assert after["k3"].updated_at == before["k3"].updated_at


class Asked(RedisStateStore):
    """Counts what is asked about single keys."""

    asked = 0

    async def get_key(self, key_id: str) -> APIKey | None:
        """As ever."""
        self.asked += 1
        return await super().get_key(key_id)

    async def change_keys(
        self, decisions: Mapping[str, KeyDecision], marks: dict[str, int] | None = None
    ) -> dict[str, KeyChange]:
        """As ever."""
        self.asked += len(decisions)
        return await super().change_keys(decisions, marks)


async def test_a_process_that_begins_takes_over_what_another_registered_and_registers_only_what_is_new(
    redis_url: str,
) -> None:
    asked = []
    for count in (50, 50, 51):
        store = Asked(redis_url)
        async with ApiKeyRouter(store, config={"encryption_key": MASTER_KEY}) as router:
            await router.start()
            before = store.asked
            await router.apply(compiled(count))
            asked.append(store.asked - before)
            assert len(router.catalogue.keys) == count
            assert str.__str__(router.catalogue.keys["k7"].material) == "sk-7"
    assert asked[0] >= 50
    assert asked[1:] == [0, 1]


async def test_others_wait_for_a_change_that_takes_longer_than_its_note_lasts(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changing, "NOTE_SECONDS", 1)
    ledger = ScriptLedger(RedisEngine(redis_url))
    await ledger.open()
    mine, theirs = RedisStateStore(redis_url), RedisStateStore(redis_url)
    other = FileChanges(ledger, theirs)
    async with FileChanges(ledger, mine).under_way("ab" * 32, ""):
        waiting = asyncio.create_task(other.settled())
        done, _ = await asyncio.wait({waiting}, timeout=2.5)
        assert not done
    await asyncio.wait_for(waiting, 10)
    await ledger.close()
    await mine.aclose()
    await theirs.aclose()
