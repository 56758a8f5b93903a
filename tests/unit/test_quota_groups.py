"""Which keys share a quota: what is declared, what a provider names, what is only suspected; limits told in words."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apikeyrouter.domain.components.quota_groups import (
    EVIDENCE,
    Conflict,
    SharedCounters,
    group_of,
    merges,
    organization_digest,
)
from apikeyrouter.domain.components.stated_limits import stated_limits
from apikeyrouter.domain.models.accounting import LimitKind, Metric, Observation
from apikeyrouter.domain.models.api_key import APIKey

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def key(name: str, organization: str = "o", group: str = "", merged: str = "", age: int = 0) -> APIKey:
    metadata: dict[str, Any] = {"quota_group": group} if group else {}
    return APIKey(
        id=name, provider_id="p", organization=organization, merged_group=merged, metadata=metadata,
        created_at=NOON - timedelta(seconds=age),
    )  # fmt: skip


def test_keys_of_one_organisation_go_into_the_group_of_the_oldest() -> None:
    assert merges([key("b"), key("a", age=1), key("c", organization="other"), key("d", organization="")]) == (
        {"a": "a", "b": "a"}, [],
    )  # fmt: skip


def test_a_key_alone_stays_alone_and_what_is_merged_stays_merged() -> None:
    assert merges([key("a"), key("b", organization="other")]) == ({}, [])
    assert merges([key("a", merged="a"), key("b", merged="a")]) == ({}, [])
    # the oldest was revoked: the name of the group stays
    assert merges([key("b", merged="a"), key("c", age=-1)]) == ({"c": "a"}, [])


def test_the_declared_group_holds_and_takes_the_others_in() -> None:
    assert merges([key("a", age=9), key("b", group="mine")]) == ({"a": "mine"}, [])
    assert group_of(key("b", group="mine", merged="other")) == "mine"
    assert group_of(key("a", group="a", merged="other")) == "other"  # a group named like the key is none
    assert group_of(key("a")) == "a"


def test_groups_that_contradict_the_provider_are_told_and_left_alone() -> None:
    keys = [key("a", group="one"), key("b", group="two"), key("c")]
    assert merges(keys) == ({}, [Conflict(("a", "b"), ("one", "two"))])


def test_organisations_are_told_apart_and_not_named() -> None:
    digests = {organization_digest(p, o) for p, o in [("a", "org-1"), ("a", "org-2"), ("b", "org-1"), ("ao", "rg-1")]}
    assert len(digests) == 4
    assert not any("org-1" in digest for digest in digests)


# --- counters that fall together -------------------------------------------------------------------------------------


def told(remaining: int | None, *, metric: Metric = Metric.REQUESTS, limit: int = 5000) -> Observation:
    return Observation(
        name="rpd", metric=metric, kind=LimitKind.BUCKET, period_us=86_400_000_000, limit=limit, remaining=remaining
    )


def interplay(
    *, shared: bool, each: int = 5, rounds: int = 120, groups: tuple[str, str] = ("g1", "g2")
) -> list[str | None]:
    """Two keys that take turns, `each` so many requests; their provider counts them together, or not."""
    counters, made = SharedCounters(), {"k1": 0, "k2": 0}
    found = []
    for number in range(rounds):
        name = f"k{number % 2 + 1}"
        made[name] += each
        left = 5000 - (sum(made.values()) if shared else made[name])
        group = groups[number % 2]
        found.append(counters.see(name, group, ("p", "m"), told(left), made.__getitem__, 10.0 + number / each))
    return found


@pytest.mark.parametrize("each", [1, 2, 5])
def test_two_keys_whose_counter_is_one_are_suspected_once_and_after_enough_evidence(each: int) -> None:
    found = interplay(shared=True, each=each)
    assert [name for name in found if name] in (["k1"], ["k2"])
    assert next(at for at, name in enumerate(found) if name) >= EVIDENCE


@pytest.mark.parametrize("each", [1, 2, 5])
def test_two_keys_that_are_only_used_alike_are_not_suspected(each: int) -> None:
    assert set(interplay(shared=False, each=each)) == {None}


def test_keys_that_are_in_one_group_already_are_not_suspected() -> None:
    assert set(interplay(shared=True, groups=("g", "g"))) == {None}


@pytest.mark.parametrize("nonsense", [told(None), told(5, limit=0), told(5, metric=Metric.TOKENS)])
def test_what_does_not_tell_requests_says_nothing(nonsense: Observation) -> None:
    counters = SharedCounters()
    for at in range(40):
        assert counters.see(f"k{at % 2}", f"g{at % 2}", ("p", "m"), nonsense, lambda _: 0, float(at)) is None


# --- limits in words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "amount"),
    [
        ("Rate limit reached for m in org on requests per min (RPM): Limit 500, Used 500, Requested 1.", "rpm", 500),
        ("… on tokens per min (TPM): Limit 200000, Used 199500, Requested 1200.", "tpm", 200_000),
        ("… on requests per day (RPD): Limit 14,400, Used 14400", "rpd", 14_400),
        ("This request would exceed the rate limit for your organization (…) of 50 requests per minute.", "rpm", 50),
        ("would exceed your organization's rate limit of 40,000 input tokens per minute.", "itpm", 40_000),
    ],
)  # fmt: skip
def test_a_limit_is_read_from_the_words_of_a_refusal(text: str, name: str, amount: int) -> None:
    found = stated_limits(text)
    assert [(one.name, one.limit, one.remaining) for one in found] == [(name, amount, None)]


@pytest.mark.parametrize(
    "text",
    ["", "requests per min: Limit 0", "requests per min: Limit " + "9" * 30, "x" * 10**5, "Limit 5 per fortnight"],
)
def test_nonsense_is_no_limit(text: str) -> None:
    assert stated_limits(text) == []
