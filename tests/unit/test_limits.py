"""Declared limits as the ledger counts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.limits import (
    DAY_US,
    MINUTE_US,
    SAFE_PROFILE,
    LimitProfile,
    LimitRow,
    compile_limits,
    limits_from,
)
from apikeyrouter.domain.models.accounting import Limit, LimitKind, Metric, Period
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.config.limit_profiles import KNOWN_PROFILES, profile_for
from apikeyrouter.infrastructure.ledger.encoding import limit_numbers

BUCKET = LimitProfile()


def one(profile: LimitProfile = BUCKET, **declared: object) -> Limit:
    (limit,) = limits_from(declared, profile)
    return limit


@pytest.mark.parametrize(
    ("name", "short", "metric", "period_us"),
    [
        ("rpm", "rpm", Metric.REQUESTS, MINUTE_US),
        ("tpm", "tpm", Metric.TOKENS, MINUTE_US),
        ("input_tpm", "itpm", Metric.INPUT_TOKENS, MINUTE_US),
        ("output_tpm", "otpm", Metric.OUTPUT_TOKENS, MINUTE_US),
        ("rpd", "rpd", Metric.REQUESTS, DAY_US),
        ("tpd", "tpd", Metric.TOKENS, DAY_US),
    ],
)
def test_each_rate_counts_what_its_name_says(name: str, short: str, metric: Metric, period_us: int) -> None:
    limit = one(BUCKET, **{name: 600})
    assert (limit.name, limit.metric, limit.amount, limit.period_us) == (short, metric, 600, period_us)
    assert (limit.kind, limit.headroom) == (LimitKind.BUCKET, 0.02)


def test_concurrency_is_counted_in_flight_and_without_headroom() -> None:
    limit = one(concurrency=5)
    assert (limit.kind, limit.metric, limit.amount, limit.headroom) == (
        LimitKind.CONCURRENCY,
        Metric.CONCURRENCY,
        5,
        0.0,
    )


def test_spend_is_counted_in_nanodollars_of_a_calendar_period() -> None:
    limit = one(spend_usd=0.1, spend_period="daily", timezone="Europe/Berlin")
    assert (limit.kind, limit.amount, limit.calendar) == (LimitKind.CALENDAR, 100_000_000, Period.DAILY)
    assert limit.timezone == "Europe/Berlin"
    assert one(spend_usd=1).calendar is Period.MONTHLY


def test_a_kind_of_the_row_goes_for_all_of_its_rates() -> None:
    limits = compile_limits(LimitRow(rpm=5, tpm=6, rpd=7, concurrency=8, kind="fixed"), BUCKET)
    assert [limit.kind for limit in limits] == [LimitKind.FIXED] * 3 + [LimitKind.CONCURRENCY]


def test_one_dimension_known_to_be_a_calendar_is_one_by_default() -> None:
    gemini = KNOWN_PROFILES["gemini"]
    by_name = {limit.name: limit for limit in compile_limits(LimitRow(rpm=5, tpm=6, rpd=7), gemini)}
    assert by_name["rpm"].kind is LimitKind.FIXED
    assert by_name["tpm"].metric is Metric.INPUT_TOKENS
    assert (by_name["rpd"].kind, by_name["rpd"].timezone) == (LimitKind.CALENDAR, "America/Los_Angeles")
    assert by_name["rpd"].headroom == 0.0


def test_a_declared_burst_is_the_buckets_capacity() -> None:
    limit = one(rpm=60, kind="bucket", burst=10, headroom=0.1)
    assert (limit.amount, limit.burst, limit.headroom) == (60, 10, 0.1)


@pytest.mark.parametrize("amount", [1, 2, 3, 7, 60, 1001])
def test_of_an_unknown_provider_no_window_admits_more_than_the_limit(amount: int) -> None:
    limit = one(SAFE_PROFILE, rpm=amount)
    assert limit.burst is not None
    refilled_in_a_window = limit.amount * MINUTE_US // limit.period_us
    assert limit.burst + refilled_in_a_window <= amount
    assert limit.burst + refilled_in_a_window >= amount - 1 or amount == 1


def test_a_kind_that_was_declared_is_believed_of_an_unknown_provider_too() -> None:
    assert one(SAFE_PROFILE, rpm=60, kind="bucket").burst is None


def test_requests_at_azure_come_in_slices_of_seconds() -> None:
    azure = profile_for("azure")
    sliced = one(azure, rpm=65)
    assert (sliced.kind, sliced.amount, sliced.period_us) == (LimitKind.SLIDING, 10, 10_500_000)
    rare = one(azure, rpm=5)
    assert (rare.amount, rare.period_us) == (1, 12_500_000)
    assert one(azure, rpm=60, kind="fixed").amount == one(azure, rpm=60, burst=5).amount == 60
    assert one(azure, tpm=60_000).kind is LimitKind.BUCKET


def test_tokens_come_back_where_the_provider_counts_real_use() -> None:
    assert one(profile_for("anthropic"), output_tpm=5).refund
    assert not one(profile_for("openai"), tpm=5).refund
    assert profile_for("something new") is SAFE_PROFILE


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ({}, "limits nothing"),
        ({"rpm": 0}, "rpm: must be a positive integer"),
        ({"rpm": -5}, "rpm: must be a positive integer"),
        ({"rpm": 5.0}, "rpm: must be a positive integer"),
        ({"rpm": True}, "rpm: must be a positive integer"),
        ({"rpm": "5"}, "rpm: must be a positive integer"),
        ({"tpm": 2**53}, "tpm: must be at most 9007199254740991"),
        ({"rps": 5}, "rps: is not a known field"),
        ({"rpm": 5, "kind": "leaky"}, "kind: must be one of"),
        ({"rpm": 5, "kind": "calendar"}, "kind: calendar is for days"),
        ({"rpm": 5, "kind": "fixed", "burst": 5}, "burst: belongs to a bucket"),
        ({"rpm": 5, "tpm": 6, "burst": 5}, "burst: belongs to one rate"),
        ({"concurrency": 5, "burst": 5}, "burst: belongs to one rate"),
        ({"concurrency": 5, "kind": "fixed"}, "kind: goes with a rate"),
        ({"concurrency": 5, "headroom": 0.1}, "headroom: goes with a rate"),
        ({"rpm": 5, "headroom": 0.6}, "headroom: must be a number between"),
        ({"rpm": 5, "headroom": float("nan")}, "headroom: must be a number between"),
        ({"rpd": 5, "timezone": "Mars/Olympus"}, "timezone: is not a known time zone"),
        ({"rpd": 5, "timezone": "../etc/passwd"}, "timezone: is not a known time zone"),
        ({"rpd": 5, "timezone": ""}, "timezone: is not a known time zone"),
        ({"rpm": 5, "kind": "bucket", "timezone": "UTC"}, "timezone: belongs to a calendar"),
        ({"spend_usd": float("inf")}, "spend_usd: must be a positive, finite"),
        ({"spend_usd": 1e9}, "spend_usd: must be at most"),
        ({"rpm": 5, "spend_period": "daily"}, "spend_period: goes with spend_usd"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused_by_field(declared: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint):
        limits_from(declared, BUCKET)


@pytest.mark.parametrize("adapter", [*KNOWN_PROFILES, "generic"])
def test_the_ledger_takes_what_every_profile_makes(adapter: str) -> None:
    rates = {"rpm": 500, "tpm": 2_000_000, "input_tpm": 5, "output_tpm": 6, "rpd": 10_000, "tpd": 50_000_000}
    row = LimitRow.parse({**rates, "concurrency": 9, "spend_usd": 5})
    for limit in compile_limits(row, profile_for(adapter)):
        limit_numbers(limit)


@pytest.mark.parametrize("kind", ["fixed", "sliding", "bucket", None])
@pytest.mark.parametrize("profile", [LimitProfile(), SAFE_PROFILE])
def test_headroom_takes_no_whole_request_off_a_small_limit(kind: str | None, profile: LimitProfile) -> None:
    for amount in range(1, 50):
        (plain,) = compile_limits(LimitRow.parse({"rpm": amount, "kind": kind, "headroom": 0}), profile)
        (usual,) = compile_limits(LimitRow.parse({"rpm": amount, "kind": kind}), profile)
        assert limit_numbers(usual) == limit_numbers(plain)


@given(st.integers(1, 10**9), st.floats(0, 0.5))
def test_headroom_is_never_more_than_was_declared(amount: int, headroom: float) -> None:
    row = {"rpm": amount, "kind": "fixed", "headroom": headroom}
    capacity = limit_numbers(compile_limits(LimitRow.parse(row), LimitProfile())[0])[3]
    assert amount - capacity <= amount * headroom + 1e-6 < amount - capacity + 1 + 1e-5
