"""Settings: constructor, then environment, then default; unknown names are refused everywhere."""

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from apikeyrouter import ApiKeyRouter
from apikeyrouter.domain.models.system_error import ApiKeyRouterError, ConfigurationError
from apikeyrouter.infrastructure.config.environment import PREFIX, environment, provider_keys
from apikeyrouter.infrastructure.config.settings import RouterSettings, ServiceSettings
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from tests.router.house import MASTER_KEY

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def test_defaults_are_the_documented_ones() -> None:
    assert RouterSettings().model_dump() == {
        "max_decisions": 1000,
        "max_transitions": 1000,
        "default_cooldown_seconds": 60,
        "quota_default_cooldown_seconds": 60,
        "log_level": "INFO",
        "encryption_key": None,
        "wait_max_ms": 0,
        "outbox_dir": None,
        "slabs": "auto",
        "cells": {"cells": ({"name": "main", "quota_groups": (), "teams": (), "clients": ()},)},
    }


def test_the_constructor_wins_over_the_environment_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIKEYROUTER_MAX_DECISIONS", "5000")
    monkeypatch.setenv("APIKEYROUTER_LOG_LEVEL", "debug")
    settings = RouterSettings(max_decisions=7)
    assert (settings.max_decisions, settings.log_level, settings.max_transitions) == (7, "DEBUG", 1000)
    assert RouterSettings.read({"max_transitions": 3}).max_decisions == 5000


def test_whatever_the_router_takes_becomes_settings() -> None:
    settings = RouterSettings(max_decisions=2)
    assert RouterSettings.read(settings) is settings
    assert RouterSettings.read() == RouterSettings()
    with pytest.raises(ConfigurationError, match="not list"):
        RouterSettings.read([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"max_decision": 5}, "max_decision: is not a known field"),
        ({"max_decisions": 0}, "max_decisions: must be at least 1"),
        ({"max_decisions": "many"}, "max_decisions: must be an integer"),
        ({"default_cooldown_seconds": -1}, "default_cooldown_seconds: must be at least 1"),
        ({"log_level": "LOUD"}, "log_level: must be one of DEBUG"),
        ({"encryption_key": 5}, "encryption_key: must be text"),
        ({"encryption_key": "short"}, "encryption_key: key 1: .*; set APIKEYROUTER_ENCRYPTION_KEY to 32 bytes"),
        ({"encryption_key": "c2hvcnQ="}, "encryption_key: key 1: must be 32 bytes, not 5"),
        ({"encryption_key": f"{MASTER_KEY},not base64!"}, "encryption_key: key 2: is not base64"),
    ],
)
def test_wrong_settings_are_refused_by_name(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        RouterSettings(**given)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ApiKeyRouterError)
    with pytest.raises(ConfigurationError, match=complaint):
        RouterSettings.read(given)


def test_a_wrong_variable_is_named_as_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIKEYROUTER_MAX_TRANSITIONS", "seven")
    with pytest.raises(ConfigurationError, match="APIKEYROUTER_MAX_TRANSITIONS: must be an integer"):
        RouterSettings()


def test_an_unknown_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIKEYROUTER_MAX_DECISION", "5")
    with pytest.raises(ConfigurationError, match="did you mean APIKEYROUTER_MAX_DECISIONS"):
        RouterSettings()


@pytest.mark.parametrize("name", ["PROXY_PORT", "REDIS_URL", "CONFIG", "MANAGEMENT_API_KEY", "LOG_LEVEL", "NAMESPACE"])
def test_the_services_own_variables_do_not_trouble_the_library(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(PREFIX + name, "INFO")
    RouterSettings()


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APIKEYROUTER_ENCRYPTION_KEY", "")
    monkeypatch.setenv("APIKEYROUTER_MAX_DECISIONS", " ")
    assert RouterSettings() == RouterSettings(max_decisions=1000, encryption_key=None)


def test_the_library_reads_no_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("APIKEYROUTER_MAX_DECISIONS=5\n")
    monkeypatch.chdir(tmp_path)
    assert RouterSettings().max_decisions == 1000
    assert RouterSettings.from_environment(environment(tmp_path / ".env")).max_decisions == 5


def test_no_secret_is_printed() -> None:
    assert "hush" not in repr(ServiceSettings(management_api_key="hush", redis_url="redis://:hush@h"))


def test_no_copy_of_settings_holds_the_master_key_in_the_clear() -> None:
    settings = RouterSettings(encryption_key=MASTER_KEY)
    shown = [
        repr(settings), str(settings), repr(settings.model_dump()), repr(settings.model_dump(mode="json")),
        settings.model_dump_json(), json.dumps(settings.model_dump(mode="json")), repr(dict(settings)), f"{settings}",
        repr(vars(settings)), repr(settings.model_copy()), repr(copy.deepcopy(settings)),
    ]  # fmt: skip
    assert [text for text in shown if MASTER_KEY in text] == []
    for copied in (copy.copy(settings), copy.deepcopy(settings), RouterSettings(**settings.model_dump())):
        assert copied == settings
        assert copied.master_keys == MASTER_KEY
    with pytest.raises(TypeError, match="APIKEYROUTER_ENCRYPTION_KEY") as refused:
        pickle.dumps(settings)
    assert MASTER_KEY not in str(refused.value)
    assert pickle.loads(pickle.dumps(RouterSettings(max_decisions=7))) == RouterSettings(max_decisions=7)


def test_a_master_key_that_is_none_is_refused_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="encryption_key"):
        ApiKeyRouter(InMemoryStateStore(), config={"encryption_key": MASTER_KEY[:-8]})
    monkeypatch.setenv("APIKEYROUTER_ENCRYPTION_KEY", "hush hush")
    with pytest.raises(ConfigurationError, match="APIKEYROUTER_ENCRYPTION_KEY: key 1") as refused:
        ApiKeyRouter(InMemoryStateStore())
    assert "hush" not in str(refused.value)


def test_the_service_takes_bare_names_and_the_prefixed_ones_win() -> None:
    told = {"PROXY_PORT": "81", "PROXY_HOST": "::1", "APIKEYROUTER_PROXY_PORT": "82", "ENABLE_HSTS": "true"}
    settings = ServiceSettings.load(environ=told)
    assert (settings.proxy_port, settings.proxy_host, settings.enable_hsts) == (82, "::1", True)
    assert ServiceSettings.load(environ=told, proxy_port=83).proxy_port == 83


def test_names_that_anybody_may_use_need_the_prefix() -> None:
    assert ServiceSettings.load(environ={"WORKERS": "9", "CONFIG": "x", "NAMESPACE": "n"}) == ServiceSettings.load(
        environ={}
    )
    assert ServiceSettings.load(environ={"APIKEYROUTER_WORKERS": "9"}).workers == 9


@pytest.mark.parametrize(
    "told", [{"PROXY_PORT": "70000"}, {"PROXY_RELOAD": "perhaps"}, {"APIKEYROUTER_PROXY_PRT": "1"}]
)
def test_wrong_service_variables_are_refused_by_name(told: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(told))):
        ServiceSettings.load(environ=told)


def test_the_environment_wins_over_a_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PROXY_PORT=81\nPROXY_HOST='a b'\n")
    monkeypatch.setenv("PROXY_PORT", "82")
    told = environment(tmp_path / ".env")
    assert (told["PROXY_PORT"], told["PROXY_HOST"]) == ("82", "a b")


def test_provider_keys_are_found_in_order_and_once() -> None:
    told = {
        "OPENAI_KEY_10": "sk-10", "OPENAI_KEY_2": "sk-2", "OPENAI_API_KEY": "sk-0", "OPENAI_KEY_3": "sk-2",
        "ANTHROPIC_KEY_1": " sk-ant ", "OPENAI_KEY_": "x", "OPENAI_KEY_0": "x", "OPENAI_KEY_1001": "x",
        "MY_OPENAI_KEY_1": "x", "OPENAI_KEY_4": "",
    }  # fmt: skip
    found = [(key.provider_id, key.material) for key in provider_keys(told)]
    assert found == [("anthropic", "sk-ant"), ("openai", "sk-0"), ("openai", "sk-2"), ("openai", "sk-10")]
    assert "sk-10" not in repr(provider_keys(told))


def test_the_example_file_lists_every_setting_with_its_default() -> None:
    listed = dict(re.findall(r"^#([A-Z][A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    for model in (RouterSettings, ServiceSettings):
        for name, field in model.model_fields.items():
            variable = PREFIX + name.upper() if PREFIX + name.upper() in listed else name.upper()
            default = (
                "" if field.default is None else str(field.default).replace("True", "true").replace("False", "false")
            )
            assert listed[variable] == default
