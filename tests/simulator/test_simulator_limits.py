"""The simulator's arithmetic against hand-written tables of arrivals and verdicts, at the boundary ±1."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from apikeyrouter.simulator.limits import (
    NEVER,
    Bucket,
    CalendarWindow,
    FixedWindow,
    InFlight,
    Limit,
    RollingWindow,
)

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
MIDNIGHT = 1_795_219_200 * SECOND  # 2026-11-21T00:00:00Z

# Each row: (ns after MIDNIGHT, amount, the wait that is expected: 0 admits and takes, else nothing is taken).
Row = tuple[int, int, int]

BUCKET_3_PER_MINUTE: list[Row] = [
    (0, 4, NEVER),  # one more than it ever holds
    (0, 3, 0),  # all of it
    (0, 1, 20 * SECOND),  # one unit is back after a third of a minute
    (20 * SECOND - 1, 1, 1),  # one ns early
    (20 * SECOND, 1, 0),  # to the ns
    (20 * SECOND, 1, 20 * SECOND),
    (60 * SECOND, 2, 0),  # two thirds of a minute later: two
    (60 * SECOND, 1, 20 * SECOND),
    (119 * SECOND, 3, 1 * SECOND),  # 2.95 units there
    (120 * SECOND - 1, 3, 1),
    (120 * SECOND, 3, 0),
    (1_000 * SECOND, 4, NEVER),  # waiting does not help
    (1_000 * SECOND, 3, 0),  # and never more than the burst
    (1_000 * SECOND, 1, 20 * SECOND),
]

BUCKET_7_PER_MINUTE_BURST_2: list[Row] = [
    (0, 3, NEVER),
    (0, 2, 0),
    (0, 1, 8_571_428_572),  # 60 s / 7 = 8.571428571428…, rounded up to the first ns that suffices
    (8_571_428_571, 1, 1),
    (8_571_428_572, 1, 0),
    (8_571_428_572, 1, 8_571_428_571),  # what was refilled beyond the unit is kept, not lost
    (17_142_857_143, 1, 0),
]

FIXED_3_PER_MINUTE: list[Row] = [
    (30 * SECOND, 4, NEVER),
    (30 * SECOND, 2, 0),
    (30 * SECOND, 2, 30 * SECOND),  # one left: two must wait for the next minute
    (30 * SECOND, 1, 0),
    (60 * SECOND - 1, 1, 1),  # the last ns of the minute
    (60 * SECOND, 3, 0),  # the first ns of the next
    (60 * SECOND, 1, 60 * SECOND),
    (119 * SECOND, 1, 1 * SECOND),
    (180 * SECOND, 3, 0),  # an empty minute gives nothing extra
    (180 * SECOND, 1, 60 * SECOND),
]

ROLLING_3_PER_MINUTE: list[Row] = [
    (0, 4, NEVER),
    (0, 1, 0),
    (10 * SECOND, 2, 0),
    (10 * SECOND, 1, 50 * SECOND),  # when the first one leaves
    (10 * SECOND, 2, 60 * SECOND),  # when the second one leaves as well
    (60 * SECOND - 1, 1, 1),
    (60 * SECOND, 1, 0),  # exactly one period later it has left
    (60 * SECOND, 1, 10 * SECOND),
    (70 * SECOND - 1, 2, 1),
    (70 * SECOND, 2, 0),
    (70 * SECOND, 1, 50 * SECOND),
]

# New York leaves daylight saving on 2026-11-01: that day has 25 hours, from 04:00Z to 05:00Z of the next.
NEW_YORK = ZoneInfo("America/New_York")
LONG_DAY = int(datetime(2026, 11, 1, tzinfo=NEW_YORK).timestamp()) * SECOND
HOUR = 3600 * SECOND
CALENDAR_2_PER_LONG_DAY: list[Row] = [
    (-1, 1, 0),  # the last ns of the day before
    (-1, 1, 0),
    (-1, 1, 1),
    (0, 2, 0),
    (0, 1, 25 * HOUR),
    (24 * HOUR, 1, 1 * HOUR),  # a clock with 24 h days would have rolled
    (25 * HOUR - 1, 1, 1),
    (25 * HOUR, 2, 0),
    (25 * HOUR, 3, NEVER),
    (25 * HOUR, 1, 24 * HOUR),
]

SHORT_DAY = int(datetime(2026, 3, 8, tzinfo=ZoneInfo("America/Los_Angeles")).timestamp()) * SECOND
CALENDAR_1_PER_SHORT_DAY: list[Row] = [
    (0, 1, 0),
    (0, 1, 23 * HOUR),
    (23 * HOUR - 1, 1, 1),
    (23 * HOUR, 1, 0),
]

DECEMBER = int(datetime(2026, 12, 1, tzinfo=ZoneInfo("UTC")).timestamp()) * SECOND
CALENDAR_1_PER_MONTH: list[Row] = [
    (-1, 1, 0),
    (-1, 1, 1),
    (0, 1, 0),
    (0, 1, 31 * 24 * HOUR),
    (31 * 24 * HOUR, 1, 0),
]


@pytest.mark.parametrize(
    ("limit", "origin_ns", "rows"),
    [
        (Bucket(limit=3, period_ns=MINUTE, now_ns=MIDNIGHT), MIDNIGHT, BUCKET_3_PER_MINUTE),
        (Bucket(limit=7, period_ns=MINUTE, now_ns=MIDNIGHT, burst=2), MIDNIGHT, BUCKET_7_PER_MINUTE_BURST_2),
        (FixedWindow(limit=3, period_ns=MINUTE), MIDNIGHT, FIXED_3_PER_MINUTE),
        (RollingWindow(limit=3, period_ns=MINUTE), MIDNIGHT, ROLLING_3_PER_MINUTE),
        (CalendarWindow(limit=2, zone=NEW_YORK), LONG_DAY, CALENDAR_2_PER_LONG_DAY),
        (CalendarWindow(limit=1, zone=ZoneInfo("America/Los_Angeles")), SHORT_DAY, CALENDAR_1_PER_SHORT_DAY),
        (CalendarWindow(limit=1, zone=ZoneInfo("UTC"), unit="month"), DECEMBER, CALENDAR_1_PER_MONTH),
    ],
    ids=["bucket", "bucket with burst", "fixed", "rolling", "25 h day", "23 h day", "month"],
)
def test_each_arrival_gets_the_verdict_written_in_the_table(limit: Limit, origin_ns: int, rows: list[Row]) -> None:
    for number, (after_ns, amount, expected_wait_ns) in enumerate(rows):
        now_ns = origin_ns + after_ns
        assert limit.wait_ns(amount, now_ns) == expected_wait_ns, f"row {number}"
        if expected_wait_ns == 0:
            limit.take(amount, now_ns)


def test_a_bucket_of_a_large_token_limit_is_exact_to_the_token() -> None:
    limit = Bucket(limit=10_000_000, period_ns=MINUTE, now_ns=MIDNIGHT)
    limit.take(10_000_000, MIDNIGHT)
    assert limit.wait_ns(1, MIDNIGHT) == 6_000  # 6 µs a token
    assert limit.wait_ns(999_999, MIDNIGHT + 6 * SECOND) == 0
    assert limit.wait_ns(1_000_000, MIDNIGHT + 6 * SECOND) == 0
    assert limit.wait_ns(1_000_001, MIDNIGHT + 6 * SECOND) == 6_000
    assert limit.remaining(MIDNIGHT + 6 * SECOND) == 1_000_000


def test_debt_is_paid_before_anything_is_admitted_again() -> None:
    limit = Bucket(limit=60, period_ns=MINUTE, now_ns=MIDNIGHT)
    limit.take(90, MIDNIGHT)
    assert limit.remaining(MIDNIGHT) == 0
    assert limit.wait_ns(1, MIDNIGHT) == 31 * SECOND
    assert limit.replenished_in_ns(MIDNIGHT) == 90 * SECOND


@pytest.mark.parametrize(
    "limit",
    [
        Bucket(limit=2, period_ns=MINUTE, now_ns=MIDNIGHT),
        FixedWindow(limit=2, period_ns=MINUTE),
        RollingWindow(limit=2, period_ns=MINUTE),
    ],
    ids=["bucket", "fixed", "rolling"],
)
def test_draining_takes_what_is_left_and_never_makes_debt(limit: Limit) -> None:
    for _ in range(5):
        limit.drain(1, MIDNIGHT)
    assert limit.remaining(MIDNIGHT) == 0
    assert limit.wait_ns(2, MIDNIGHT + MINUTE) == 0


def test_draining_an_empty_bucket_loses_the_fraction_that_was_refilled() -> None:
    limit = Bucket(limit=60, period_ns=MINUTE, now_ns=MIDNIGHT)
    limit.take(60, MIDNIGHT)
    limit.drain(1, MIDNIGHT + SECOND - 1)
    assert limit.wait_ns(1, MIDNIGHT + SECOND - 1) == SECOND


def test_a_clock_that_steps_back_refills_nothing() -> None:
    limit = Bucket(limit=60, period_ns=MINUTE, now_ns=MIDNIGHT)
    limit.take(60, MIDNIGHT)
    assert limit.remaining(MIDNIGHT - MINUTE) == 0
    assert limit.remaining(MIDNIGHT + SECOND) == 1


@pytest.mark.parametrize(
    ("limit", "after_ns", "allowed"),
    [
        (Bucket(limit=60, period_ns=MINUTE, now_ns=MIDNIGHT, burst=10), 30 * SECOND, 40),
        (Bucket(limit=60, period_ns=MINUTE, now_ns=MIDNIGHT), SECOND - 1, 60),
        (Bucket(limit=60, period_ns=MINUTE, now_ns=MIDNIGHT), SECOND, 61),
        (FixedWindow(limit=5, period_ns=MINUTE), MINUTE - 1, 5),
        (FixedWindow(limit=5, period_ns=MINUTE), MINUTE, 10),
        (RollingWindow(limit=5, period_ns=MINUTE), MINUTE - 1, 5),
        (RollingWindow(limit=5, period_ns=MINUTE), MINUTE, 10),
        (CalendarWindow(limit=5, zone=ZoneInfo("UTC")), 24 * HOUR - 1, 5),
        (CalendarWindow(limit=5, zone=ZoneInfo("UTC")), 24 * HOUR, 10),
    ],
)
def test_the_capacity_since_the_start_is_what_could_have_been_admitted(
    limit: Limit, after_ns: int, allowed: int
) -> None:
    assert limit.allowed(MIDNIGHT, MIDNIGHT + after_ns) == allowed


def test_concurrency_admits_up_to_the_limit_and_again_after_one_has_left() -> None:
    limit = InFlight(limit=2)
    for _ in range(2):
        assert limit.has_room()
        limit.enter()
    assert not limit.has_room()
    limit.leave()
    assert limit.has_room()
    assert (limit.now, limit.peak) == (1, 2)


def test_draining_does_not_forgive_debt() -> None:
    limit = Bucket(limit=60, period_ns=MINUTE, now_ns=MIDNIGHT)
    limit.take(70, MIDNIGHT)
    limit.drain(1, MIDNIGHT)
    assert limit.wait_ns(1, MIDNIGHT) == 11 * SECOND


def test_what_leaves_a_rolling_window_is_free_in_the_same_instant() -> None:
    limit = RollingWindow(limit=2, period_ns=MINUTE)
    limit.take(2, MIDNIGHT)
    assert limit.remaining(MIDNIGHT + MINUTE - 1) == 0
    assert limit.remaining(MIDNIGHT + MINUTE) == 2
    assert limit.replenished_in_ns(MIDNIGHT + MINUTE) == 0
