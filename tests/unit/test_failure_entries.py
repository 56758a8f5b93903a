"""What a configuration file says of time limits, breakers, retries and failures alike."""

from typing import Any

import pytest

from apikeyrouter.domain.components.circuits import KEY_BREAKER, PROVIDER_BREAKER
from apikeyrouter.domain.components.correlation_guard import Guard
from apikeyrouter.domain.components.retry_budget import RetryBudget
from apikeyrouter.domain.models.accounting import Breaker
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.config.config_file import read_config


def compiled(routing: dict[str, Any] | None = None, **sections: Any) -> CompiledConfig:
    keys = [{"id": "k1", "provider": "openai", "key": "sk-0123456789abcdef"}]
    return compile_config(read_config({"keys": keys, "routing": routing or {}, **sections}), environ={})


def breaker(config: CompiledConfig, lane_id: str) -> Breaker | None:
    return next(lane.breaker for lane in config.lanes if lane.id == lane_id)


def test_a_file_that_says_nothing_changes_nothing() -> None:
    config = compiled()
    told, budget = config.routing, RetryBudget()
    assert (told.timeouts, told.guard) == (None, Guard())
    assert (told.retry_share, told.retry_floor) == (budget.share, budget.floor)
    assert (breaker(config, "k:k1"), breaker(config, "p:openai")) == (KEY_BREAKER, PROVIDER_BREAKER)
    assert config.providers["openai"].timeouts == {}


def test_times_are_told_in_milliseconds_and_null_is_no_limit() -> None:
    own = {"adapter": "openai", "timeouts": {"first_token_ms": 700, "idle_ms": None}}
    config = compiled({"timeouts": {"connect_ms": 250, "total_ms": 9000}}, providers={"own": own})
    assert config.routing.timeouts == {"connect": 0.25, "total": 9.0}
    assert config.providers["own"].timeouts == {"first_token": 0.7, "idle": None}


def test_breakers_are_for_keys_and_providers_and_a_provider_may_have_its_own() -> None:
    config = compiled(
        {"breakers": {"key": {"failures": 2}, "provider": {"within_ms": 5000}}},
        providers={"own": {"adapter": "openai", "breaker": {"open_ms": 100, "open_max_ms": 400}}},
        limits=[{"key": "k1", "concurrency": 3}],
    )
    assert breaker(config, "k:k1") == Breaker(failures=2)
    assert breaker(config, "p:openai") == Breaker(failures=10, window_us=5_000_000)
    assert breaker(config, "p:own") == Breaker(failures=10, window_us=5_000_000, open_us=100_000, open_max_us=400_000)


@pytest.mark.parametrize(
    ("routing", "path"),
    [
        ({"timeouts": {"connect_ms": 0}}, "routing.timeouts.connect_ms"),
        ({"timeouts": {"connect_ms": True}}, "routing.timeouts.connect_ms"),
        ({"timeouts": {"connect": 3}}, "routing.timeouts.connect"),
        ({"timeouts": {"total_ms": 1e99}}, "routing.timeouts.total_ms"),
        ({"retry_budget": {"share": -0.1}}, "routing.retry_budget.share"),
        ({"retry_budget": {"share": float("nan")}}, "routing.retry_budget.share"),
        ({"retry_budget": {"floor": 1.5}}, "routing.retry_budget.floor"),
        ({"correlated_failures": {"keys": 1}}, "routing.correlated_failures.keys"),
        ({"breakers": {"key": {"failures": 0}}}, "routing.breakers.key.failures"),
        ({"breakers": {"key": {"open_ms": 900_000}}}, "routing.breakers.key.open_max_ms"),
        ({"breakers": {"group": {}}}, "routing.breakers.group"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(routing: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compiled(routing)
    assert any(line.startswith(path) for line in caught.value.errors), caught.value.errors


def test_what_is_wrong_with_a_provider_is_named_with_its_path() -> None:
    with pytest.raises(ConfigurationError) as caught:
        compiled(providers={"own": {"adapter": "openai", "breaker": {"open_max_ms": 1}}})
    assert caught.value.errors == ("providers.own.breaker.open_max_ms: must not be below open_ms",)
    with pytest.raises(ConfigurationError, match=r"providers\.own\.timeouts\.total_ms"):
        compiled(providers={"own": {"adapter": "openai", "timeouts": {"total_ms": 1}}})
