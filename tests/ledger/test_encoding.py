"""Limits and budgets as integers: exact for awkward numbers, refused where they would not be."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.models.accounting import (
    AMOUNT_MAX,
    ID_BYTES_MAX,
    Breaker,
    LaneConfig,
    Limit,
    LimitKind,
    Metric,
    Observation,
    Period,
    ScopeConfig,
    check_id,
)
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger.encoding import (
    bucket_numbers,
    check_amount,
    lane_entry,
    limit_numbers,
    observation_numbers,
    scope_entry,
)
from tests.ledger.support import DAY, MINUTE, bucket, budget, cost, in_flight, lane, local_cell, wish

SEEN = Observation(name="rpm", metric=Metric.REQUESTS, kind=LimitKind.BUCKET, period_us=MINUTE, limit=60)


@pytest.mark.parametrize("amount", [1, 7, 997, 7_919, 104_729, 999_983, 15_485_863])
@pytest.mark.parametrize("period_us", [1_009, 999_983, MINUTE, DAY])
def test_a_buckets_rate_is_an_exact_fraction_for_primes(amount: int, period_us: int) -> None:
    scale, drain, tick_us = bucket_numbers(amount, period_us, amount, what="prime")
    assert Fraction(drain, scale * tick_us) == Fraction(amount, period_us)


@given(
    amount=st.integers(min_value=1, max_value=10**7),
    period_us=st.integers(min_value=1_000, max_value=86_400).map(lambda ms: ms * 1_000),
    burst=st.integers(min_value=1, max_value=10**7),
)
def test_a_buckets_numbers_are_exact_and_below_the_level_that_refunds_need(
    amount: int, period_us: int, burst: int
) -> None:
    scale, drain, tick_us = bucket_numbers(amount, period_us, burst, what="any")
    assert Fraction(drain, scale * tick_us) == Fraction(amount, period_us)
    assert burst * scale <= 2**50


def test_a_bucket_that_no_tick_makes_exact_is_refused() -> None:
    with pytest.raises(LedgerConfigError, match="cannot be counted exactly"):
        bucket_numbers(7, 999_999_999_989, 10**9, what="limit tpm")


async def test_a_bucket_of_an_awkward_prime_fills_and_drains_to_the_microsecond() -> None:
    cell = await local_cell(lane("lane", bucket(997)))
    for _ in range(997):
        await cell.admit(wish())
    denial = await cell.deny(wish())
    wait_us = denial.binding.retry_at_us - cell.time.now_us
    assert wait_us == -(-MINUTE // 997)
    cell.time.advance(wait_us - 1)
    await cell.deny(wish())
    cell.time.advance(1)
    await cell.admit(wish())
    await cell.deny(wish())


@pytest.mark.parametrize("value", [-1, 2**53, 1.0, True, "1", None, float("nan")])
def test_what_no_counter_holds_exactly_is_no_amount(value: Any) -> None:
    with pytest.raises(LedgerConfigError, match=r"between 0 and 2\^53 - 1"):
        check_amount(value, what="amount")
    assert check_amount(AMOUNT_MAX, what="amount") == AMOUNT_MAX


@pytest.mark.parametrize("value", ["", "two\nlines", "x" * (ID_BYTES_MAX + 1), "é" * (ID_BYTES_MAX // 2 + 1)])
def test_an_id_is_one_line_of_bounded_bytes(value: str) -> None:
    with pytest.raises(LedgerConfigError, match="one line of 1 to 200 bytes"):
        check_id(value, what="lane")
    assert check_id("x" * ID_BYTES_MAX, what="lane") == "x" * ID_BYTES_MAX


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (replace(bucket(1), name="per_fortnight"), "the name must be one of"),
        (replace(bucket(1), amount=2**53), r"2\^53"),
        (replace(bucket(1), burst=2**53), r"2\^53"),
        (replace(bucket(1), headroom=0.51), "headroom"),
        (replace(bucket(1), headroom=-0.01), "headroom"),
        (replace(bucket(1), kind=LimitKind.FIXED, burst=5), "only a bucket has a burst"),
        (replace(in_flight(1), burst=5), "only a bucket has a burst"),
        (replace(bucket(1), kind=LimitKind.CONCURRENCY), "belong together"),
        (replace(bucket(1), metric=Metric.CONCURRENCY), "belong together"),
        (replace(bucket(1), period_us=999), "at least 1 ms"),
        (replace(bucket(1), kind=LimitKind.SLIDING, period_us=2**53), r"2\^53"),
        (replace(bucket(1), kind=LimitKind.CALENDAR, timezone="Europe/Atlantis"), "unknown time zone"),
    ],
)
def test_a_limit_that_contradicts_itself_is_refused(wrong: Limit, why: str) -> None:
    with pytest.raises(LedgerConfigError, match=why):
        limit_numbers(wrong)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: lane("lane", *[bucket(1)] * 2), "declared twice"),
        (lambda: lane("lane", *[bucket(1)] * 9), "at most 8 limits"),
        (lambda: lane("", bucket(1)), "one line"),
        (lambda: LaneConfig(id="lane", breaker=Breaker(failures=-1)), "breaker"),
        (lambda: lane("named", replace(bucket(1), headroom=2)), "lane named: limit rpm"),
    ],
)
def test_a_lane_that_cannot_be_counted_is_refused(make: Callable[[], LaneConfig], why: str) -> None:
    with pytest.raises(LedgerConfigError, match=why):
        lane_entry(make())


@pytest.mark.parametrize(
    "wrong",
    [
        budget(limit=2**53),
        budget(limit=-1),
        replace(budget(), flat_nanousd=-1),
        replace(budget(), suspense_after_us=2**53),
        replace(budget(), period=Period.DAILY, timezone="Nowhere"),
        replace(budget(), id="a\nb"),
    ],
)
def test_a_budget_that_cannot_be_counted_is_refused(wrong: ScopeConfig) -> None:
    with pytest.raises(LedgerConfigError, match=r"budget|scope|time zone"):
        scope_entry(wrong)


def test_headroom_comes_off_the_burst_and_leaves_at_least_one() -> None:
    capacity = 3
    assert limit_numbers(replace(bucket(100), headroom=0.02))[capacity] == 98
    assert limit_numbers(replace(bucket(1), headroom=0.5))[capacity] == 1
    assert limit_numbers(replace(bucket(0), headroom=0.5))[capacity] == 0


@pytest.mark.parametrize(
    "strange",
    [
        replace(SEEN, name="per_fortnight"),
        replace(SEEN, limit=-1),
        replace(SEEN, limit=2**40 + 1),
        replace(SEEN, reset_us=-1),
        replace(SEEN, reset_us=2**50 + 1),
        replace(SEEN, kind=LimitKind.CALENDAR),
        replace(SEEN, kind=LimitKind.SLIDING),
    ],
)
def test_what_a_provider_says_and_makes_no_sense_is_left_out(strange: Observation) -> None:
    assert observation_numbers(strange) is None


@pytest.mark.parametrize("remaining", [-1, 61, None])
def test_a_remainder_that_makes_no_sense_counts_as_not_told(remaining: int | None) -> None:
    numbers = observation_numbers(replace(SEEN, remaining=remaining))
    assert numbers is not None
    assert numbers[7] == -1


async def test_a_budget_at_the_largest_exact_integer_counts_to_its_last_nano_dollar() -> None:
    cell = await local_cell(budget(limit=AMOUNT_MAX), lane())
    await cell.admit(wish(scopes=("budget",), charge=cost(AMOUNT_MAX - 1)))
    await cell.deny(wish(scopes=("budget",), charge=cost(2)))
    await cell.admit(wish(scopes=("budget",), charge=cost(1)))
    (state,) = await cell.scopes(["budget"])
    assert state.held == AMOUNT_MAX
    await cell.deny(wish(scopes=("budget",), charge=cost(1)))


async def test_a_limit_at_the_largest_exact_integer_is_shown_exactly() -> None:
    cell = await local_cell(lane("lane", replace(bucket(1), kind=LimitKind.FIXED, amount=AMOUNT_MAX)))
    await cell.admit(wish())
    (state,) = await cell.lanes(["lane"])
    assert (state.limits[0].capacity, state.limits[0].used) == (AMOUNT_MAX, 1)
