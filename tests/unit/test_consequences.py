"""What follows from each kind of failure, as a pure function: lanes, keys, options, seconds."""

from collections.abc import Iterator
from typing import Any

import pytest

from apikeyrouter.domain.components.catalogue import Catalogue, Key, Provider
from apikeyrouter.domain.components.consequences import (
    COOL_SECONDS_MAX,
    EXHAUSTED_SECONDS_DEFAULT,
    PAUSE_SECONDS_MAX,
    SKIP_SECONDS,
    Consequences,
    consequences,
)
from apikeyrouter.domain.components.failure_taxonomy import MEANINGS
from apikeyrouter.domain.components.pool import Option, Pool
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.models.accounting import LaneState, LimitKind, LimitState, Metric
from apikeyrouter.domain.models.api_key import KeyMaterial, KeyState
from apikeyrouter.domain.models.failure import FailureAction

NOW_US = 1_764_000_000_000_000
KEYS = {"a1": ("one", "A"), "a2": ("one", "A"), "b1": ("one", "B"), "c1": ("two", "C"), "x1": ("two", "A")}


@pytest.fixture
def catalogue() -> Catalogue:
    made = Catalogue(PriceBook())
    for provider in ("one", "two"):
        made.providers[provider] = Provider(id=provider, adapter=None, models=frozenset({"m", "n"}))
    for name, (provider, group) in KEYS.items():
        made.put_keys(
            [Key(id=name, provider_id=provider, material=KeyMaterial("x" * 20, key_id=name), quota_group=group)]
        )
    return made


def option_of(pool: Pool, key: str) -> Option:
    return next(option for option in pool.options if option.key.id == key)


def after(catalogue: Catalogue, kind: str, *, lanes: dict[str, LaneState] | None = None, **more: Any) -> Consequences:
    """What follows when key a1 fails like that for model m."""
    pool = catalogue.pool("m", None, "")
    return consequences(
        MEANINGS[kind].failure("it failed", **more), option_of(pool, "a1"), pool.options,
        keys=catalogue.keys.values(), lanes=lanes or {}, now_us=NOW_US, default_seconds=60.0,
    )  # fmt: skip


def skipped(found: Consequences) -> set[str]:
    return {option.key.id for option in found.skip}


def put_out(found: Consequences) -> set[str]:
    return {key.id for key in found.keys}


def test_a_rate_limit_cools_the_groups_lane_for_the_model_as_long_as_it_says(catalogue: Catalogue) -> None:
    found = after(catalogue, "rate_limited", retry_after_us=7_000_000)
    assert (found.cool, found.seconds, found.keys, found.avoid) == (("g:A:m",), 7.0, (), ())
    assert skipped(found) == {"a1", "a2", "x1"}
    assert after(catalogue, "rate_limited").seconds == 60.0
    assert after(catalogue, "rate_limited", pause_seconds=2.0).seconds == 2.0
    assert after(catalogue, "rate_limited", until_us=NOW_US + 10**15).seconds == COOL_SECONDS_MAX


def test_a_limit_of_one_key_cools_its_own_lane(catalogue: Catalogue) -> None:
    found = after(catalogue, "key_rate_limited")
    assert (found.cool, skipped(found)) == (("k:a1",), {"a1"})


def test_a_day_that_is_over_cools_the_model_alone_until_the_date(catalogue: Catalogue) -> None:
    found = after(catalogue, "period_used_up", until_us=NOW_US + 3_600_000_000, retry_after_us=34_000_000)
    assert (found.cool, found.seconds, found.keys) == (("g:A:m",), 3600.0, ())


def test_an_organisation_that_cannot_pay_puts_out_its_keys_at_that_provider(catalogue: Catalogue) -> None:
    found = after(catalogue, "exhausted", until_us=NOW_US + 86_400_000_000)
    assert (found.key_state, found.seconds, found.cool) == (KeyState.Exhausted, 86_400.0, ())
    assert put_out(found) == {"a1", "a2"}  # x1's group has the same name, at another provider
    alone = after(catalogue, "key_exhausted")
    assert (put_out(alone), alone.seconds) == ({"a1"}, EXHAUSTED_SECONDS_DEFAULT)
    assert skipped(alone) == {"a1"}


def test_a_refused_key_is_invalid_and_a_closed_organisation_with_all_its_keys(catalogue: Catalogue) -> None:
    assert put_out(after(catalogue, "key_refused")) == {"a1"}
    closed = after(catalogue, "organisation_refused")
    assert (closed.key_state, put_out(closed)) == (KeyState.Invalid, {"a1", "a2"})


def test_a_key_that_is_out_already_is_left_as_it_is(catalogue: Catalogue) -> None:
    catalogue.keys["a2"].state = KeyState.Disabled
    assert put_out(after(catalogue, "organisation_refused")) == {"a1"}


def test_a_provider_in_trouble_is_left_alone_only_while_another_serves(catalogue: Catalogue) -> None:
    found = after(catalogue, "provider_failed")
    assert (found.cool, found.avoid, found.keys) == ((), (), ())
    assert skipped(found) == {"a1", "a2", "b1"}
    pool = catalogue.pool("m", "one", "")
    alone = consequences(
        MEANINGS["provider_failed"].failure("it failed"), option_of(pool, "a1"), pool.options,
        keys=catalogue.keys.values(), lanes={}, now_us=NOW_US, default_seconds=60.0,
    )  # fmt: skip
    assert skipped(alone) == {"a1"}


def test_a_provider_without_capacity_comes_last_for_a_while(catalogue: Catalogue) -> None:
    assert (after(catalogue, "overloaded").avoid, after(catalogue, "overloaded").seconds) == (("p:one",), 1.0)
    assert after(catalogue, "overloaded", retry_after_us=9_000_000).seconds == 9.0
    assert after(catalogue, "overloaded", retry_after_us=10**12).seconds == PAUSE_SECONDS_MAX


def test_a_key_without_the_model_comes_last_for_it_alone(catalogue: Catalogue) -> None:
    found = after(catalogue, "model_not_served")
    assert (found.avoid, found.seconds, found.keys, found.cool) == (("a1/m",), SKIP_SECONDS, (), ())
    assert skipped(found) == {"a1"}


def test_the_callers_fault_penalises_nobody(catalogue: Catalogue) -> None:
    for kind in ("callers_fault", "deadline_passed", "given_up"):
        found = after(catalogue, kind)
        assert (found.cool, found.avoid, found.keys) == ((), (), ())


def test_a_request_too_large_here_goes_only_where_it_may_fit(catalogue: Catalogue) -> None:
    lanes = {lane.id: lane for lane in metered({"g:B:m": 30_000, "g:C:m": 100_000})}
    found = after(catalogue, "too_large_here", lanes=lanes, requested=64_000)
    assert skipped(found) == {"a1", "a2", "x1", "b1"}
    assert skipped(after(catalogue, "too_large_here", lanes=lanes)) == {"a1", "a2", "x1"}  # nobody said how large
    assert (found.cool, found.keys) == ((), ())


def metered(capacities: dict[str, int]) -> Iterator[LaneState]:
    for lane, capacity in capacities.items():
        limit = LimitState(
            name="tpm", metric=Metric.TOKENS, kind=LimitKind.BUCKET, capacity=capacity, used=0, reset_at_us=0,
            learned=False,
        )  # fmt: skip
        yield LaneState(
            id=lane, seq=1, in_flight=0, blocked_until_us=0, breaker="closed", breaker_until_us=0, successes=0,
            failures=0, latency_us=0, requests_total=0, failures_total=0, last_used_us=0, limits=(limit,),
        )  # fmt: skip


@pytest.mark.parametrize("kind", MEANINGS)
def test_nothing_wider_than_the_scope_is_ever_touched(catalogue: Catalogue, kind: str) -> None:
    """Whatever the kind: lanes, keys and options that are penalised belong to what the failure speaks for."""
    meaning, found = MEANINGS[kind], after(catalogue, kind, retry_after_us=5_000_000)
    allowed = {
        "request": set(), "key": {"k:a1"}, "key_model": {"a1/m"}, "quota_group": {"g:A:m"}, "provider": {"p:one"},
    }[meaning.scope]  # fmt: skip
    assert {*found.cool, *found.avoid} <= allowed
    assert put_out(found) <= ({"a1", "a2"} if meaning.scope == "quota_group" else {"a1"})
    assert bool(found.keys) == (meaning.action in (FailureAction.EXHAUST, FailureAction.INVALIDATE))
    assert "a1" in skipped(found)
