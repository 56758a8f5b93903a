"""Settings: where they come from, and that each of them has an effect; reloading them, and a file, all or nothing."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.domain.interfaces.state_store import StateQuery, StateStore
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.failure import Failure, FailureAction, FailureScope
from apikeyrouter.domain.models.system_error import ConfigurationError, EncryptionError, ErrorCategory
from apikeyrouter.infrastructure.config.settings import RouterSettings
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import KEYS, MASTER_KEY, config_of, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
OTHER_MASTER_KEY = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="


async def test_load_says_what_the_sources_say_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    router = ApiKeyRouter(InMemoryStateStore(), config={"max_decisions": 7})
    manager = router.configuration_manager
    monkeypatch.setenv("APIKEYROUTER_MAX_DECISIONS", "9")
    monkeypatch.setenv("APIKEYROUTER_DEFAULT_COOLDOWN_SECONDS", "5")
    loaded = manager.load_configuration()
    assert (loaded.max_decisions, loaded.default_cooldown_seconds) == (7, 5), "the program's own word comes first"
    assert manager.get_setting("default_cooldown_seconds") == router.settings.default_cooldown_seconds == 60
    monkeypatch.setenv("APIKEYROUTER_DEFAULT_COOLDOWN_SECONDS", "many")
    with pytest.raises(ConfigurationError, match="APIKEYROUTER_DEFAULT_COOLDOWN_SECONDS"):
        manager.load_configuration()
    monkeypatch.delenv("APIKEYROUTER_DEFAULT_COOLDOWN_SECONDS")
    monkeypatch.setenv("APIKEYROUTER_DEFUALT", "5")
    with pytest.raises(ConfigurationError, match="APIKEYROUTER_DEFUALT"):
        manager.load_configuration()


async def test_a_setting_is_found_by_its_name_and_by_its_variable() -> None:
    manager = ApiKeyRouter(InMemoryStateStore(), config={"max_transitions": 3}).configuration_manager
    assert manager.get_setting("max_transitions") == manager.get_setting("APIKEYROUTER_MAX_TRANSITIONS") == 3
    assert manager.get_setting("no_such", "nothing") == "nothing"
    assert manager.get_setting("routing.objective") is None


async def test_defaults_are_the_documented_ones_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIKEYROUTER_MAX_DECISIONS", "9")
    defaults = ApiKeyRouter(InMemoryStateStore()).configuration_manager.get_defaults()
    assert defaults.model_dump() == {
        "max_decisions": 1000, "max_transitions": 1000, "default_cooldown_seconds": 60,
        "quota_default_cooldown_seconds": 60, "wait_max_ms": 0, "log_level": "INFO", "encryption_key": None,
        "outbox_dir": None, "slabs": "auto",
        "cells": {"cells": ({"name": "main", "quota_groups": (), "teams": (), "clients": ()},)},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"max_decisions": 5}, ""),
        ({"max_decisions": 0}, "max_decisions"),
        ({"max_decsions": 5}, "max_decsions"),
        ({"log_level": "LOUD"}, "log_level"),
        ({"limits": [{"quota_group": "a", "rpm": 5}]}, ""),
        ({"limits": [{"quota_group": "a", "rpm": -5}]}, "limits[0].rpm"),
        ({"keys": [{"id": "k", "provider": "nobody", "key": "sk-1"}]}, "keys[0].provider"),
        (3, "mapping"),
        ("no/such/file.yaml", "cannot be read"),
    ],
)
async def test_validation_names_what_is_wrong_and_never_raises(config: Any, complaint: str) -> None:
    result = ApiKeyRouter(InMemoryStateStore()).configuration_manager.validate_configuration(config)
    assert result.valid is not bool(complaint)
    assert complaint in "\n".join(result.errors)


async def test_reloaded_settings_take_effect(simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made:
        router = made.router
        for _ in range(5):
            await made.route()
        monkeypatch.setenv("APIKEYROUTER_MAX_DECISIONS", "2")
        monkeypatch.setenv("APIKEYROUTER_DEFAULT_COOLDOWN_SECONDS", "500")
        monkeypatch.setenv("APIKEYROUTER_QUOTA_DEFAULT_COOLDOWN_SECONDS", "700")
        monkeypatch.setenv("APIKEYROUTER_LOG_LEVEL", "debug")
        settings = await router.configuration_manager.reload_configuration()
        assert router.settings == settings
        assert len(router.decisions) == 2
        await made.route()
        await router.state_store.flush()
        assert len(await router.state_store.query_state(StateQuery("RoutingDecision"))) == 2
        transition = await router.key_manager.update_key_state("a1", KeyState.Throttled, "by hand")
        assert transition.until is not None
        assert 490 < (transition.until - transition.timestamp).total_seconds() < 510
        assert router.observability.listening, "requests have lines now"
        assert EventLog.level == logging.DEBUG


async def test_nothing_is_taken_over_of_what_is_wrong(
    simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("limits: [{quota_group: org-a, rpm: -1}]")
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        manager = made.router.configuration_manager
        monkeypatch.setenv("APIKEYROUTER_MAX_DECISIONS", "2")
        with pytest.raises(ConfigurationError, match="rpm"):
            await manager.reload_configuration(path)
        assert manager.get_setting("max_decisions") == 1000
        assert await made.route()


async def test_a_file_is_applied_and_reloaded(simulator: SimulatorProcess, tmp_path: Path, store: StateStore) -> None:
    path = tmp_path / "router.yaml"
    sections: dict[str, Any] = {
        "providers": {"openai": {"adapter": "openai", "base_url": simulator.openai_url}},
        "keys": [{"id": "a1", **KEYS["a1"]}],
        "limits": [{"quota_group": "org-a", "rpd": 1, "kind": "fixed", "headroom": 0}],
        "routing": {"objective": "cost"},
    }
    path.write_text(yaml.safe_dump(sections))
    async with ApiKeyRouter(store, config={"encryption_key": MASTER_KEY}) as router:
        manager = router.configuration_manager
        manager.reload_configuration(path)  # not awaited: finished before the first request
        assert (await router.route(intent())).key_used == "a1"
        with pytest.raises(NoEligibleKeysError):
            await router.route(intent())
        assert manager.get_setting("routing.objective").primary == "cost"
        sections["limits"][0]["rpd"] = 100
        path.write_text(yaml.safe_dump(sections))
        await manager.reload_configuration()
        assert (await router.route(intent())).key_used == "a1"


async def test_a_wrong_file_that_was_not_awaited_is_told_by_the_first_request(tmp_path: Path) -> None:
    async with ApiKeyRouter(InMemoryStateStore()) as router:
        router.configuration_manager.reload_configuration(tmp_path / "missing.yaml")
        with pytest.raises(ConfigurationError, match="missing"):
            await router.route(intent())


async def test_the_records_kept_follow_the_settings_on_both_stores(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    settings = RouterSettings(max_decisions=3, max_transitions=2, encryption_key=MASTER_KEY)
    async with ApiKeyRouter(store, config=settings) as router:
        await router.apply(config_of(simulator, ["a1"]))
        for _ in range(6):
            await router.route(intent())
        for state in (KeyState.Disabled, KeyState.Available) * 3:
            await router.key_manager.update_key_state("a1", state, "by hand")
        assert len(router.decisions) == 3

        async def kept() -> bool:
            await router.state_store.flush()
            decisions = await router.state_store.query_state(StateQuery("RoutingDecision"))
            transitions = await router.state_store.query_state(StateQuery("StateTransition"))
            return (len(decisions), len(transitions)) == (3, 2)

        await until(kept)


async def test_a_cooldown_without_a_stated_time_is_the_settings(simulator: SimulatorProcess) -> None:
    settings = {"encryption_key": MASTER_KEY, "quota_default_cooldown_seconds": 321}
    limited = Failure(
        category=ErrorCategory.RateLimitError, scope=FailureScope.KEY, action=FailureAction.COOL, retry_elsewhere=True,
        message="too many",
    )  # fmt: skip
    async with ApiKeyRouter(InMemoryStateStore(), config=settings) as router:
        await router.apply(config_of(simulator, ["a1"]))
        await router.failure_handler.update_key_health("a1", limited)
        key = await router.key_manager.get_key("a1")
        assert key is not None
        assert key.state_until is not None
        assert 310 < (key.state_until - datetime.now(UTC)).total_seconds() <= 321


async def test_the_encryption_key_seals_and_another_cannot_open(simulator: SimulatorProcess, redis_url: str) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1"]):
        pass
    async with ApiKeyRouter(RedisStateStore(redis_url), config={"encryption_key": OTHER_MASTER_KEY}) as other:
        from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter

        await other.register_provider("openai", OpenAIAdapter(simulator.openai_url))
        assert other.catalogue.keys == {}
        stored = await other.key_manager.get_key("a1")
        assert stored is not None
        with pytest.raises(EncryptionError):
            other._open_vault().decrypt(stored.encrypted_material, key_id="a1")
