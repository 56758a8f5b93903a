"""Capacity levels: from headroom, from forecasts, and without to and fro."""

import random
from dataclasses import replace

import pytest

from apikeyrouter.domain.components.capacity import CapacityWatch, Level, window_seconds, worst
from apikeyrouter.domain.models.accounting import LIMIT_NAMES, LaneState, LimitKind, LimitState, Metric

HOUR_US = 3_600_000_000
START_US = 1_790_000_000_000_000


def limit(
    used: int, *, capacity: int = 1000, kind: LimitKind = LimitKind.CALENDAR, name: str = "requests_hourly",
    reset_at_us: int = START_US + HOUR_US,
) -> LimitState:  # fmt: skip
    return LimitState(
        name=name, metric=Metric.REQUESTS, kind=kind, capacity=capacity, used=used, reset_at_us=reset_at_us,
        learned=False,
    )  # fmt: skip


def lane(*limits: LimitState, seq: int = 1, blocked_until_us: int = 0) -> LaneState:
    return LaneState(
        id="k:k1", seq=seq, in_flight=0, blocked_until_us=blocked_until_us, breaker="closed", breaker_until_us=0,
        successes=0, failures=0, latency_us=0, requests_total=0, failures_total=0, last_used_us=0, limits=limits,
    )  # fmt: skip


def level(watch: CapacityWatch, seen: LaneState, now_us: int = START_US + HOUR_US - 1_000_000) -> Level:
    return watch.see([seen], now_us)[seen.id]


@pytest.mark.parametrize(
    ("used", "expected"),
    [(0, "ABUNDANT"), (799, "ABUNDANT"), (800, "CONSTRAINED"), (950, "CRITICAL"), (999, "CRITICAL"),
     (1000, "EXHAUSTED"), (2000, "EXHAUSTED")],
)  # fmt: skip
def test_headroom_alone_gives_a_level_when_the_reset_is_near(used: int, expected: str) -> None:
    assert level(CapacityWatch(), lane(limit(used))).name == expected


def test_a_lane_is_as_well_off_as_its_worst_limit() -> None:
    both = lane(limit(100), limit(960, name="tpd", capacity=1000, reset_at_us=START_US + HOUR_US))
    assert level(CapacityWatch(), both) is Level.CRITICAL
    assert worst({"a": Level.CONSTRAINED, "b": Level.CRITICAL}, ["x", "a", "b"]) is Level.CRITICAL
    assert worst({}, ["x"]) is Level.ABUNDANT


def test_a_lane_that_its_provider_cooled_is_exhausted_until_then() -> None:
    watch = CapacityWatch()
    assert level(watch, lane(blocked_until_us=START_US + 10), START_US) is Level.EXHAUSTED
    assert level(watch, lane(blocked_until_us=START_US + 10), START_US + 11) is Level.ABUNDANT


def test_a_limit_of_nothing_is_exhausted() -> None:
    assert level(CapacityWatch(), lane(limit(0, capacity=0))) is Level.EXHAUSTED


@pytest.mark.parametrize(
    ("used", "places", "found"),
    [(90, 100, Level.CONSTRAINED), (33, 33, Level.EXHAUSTED), (32, 32, Level.ABUNDANT), (1, 1, Level.ABUNDANT)],
)
def test_calls_in_flight_count_by_headroom_where_there_are_many_places(used: int, places: int, found: Level) -> None:
    crowd = limit(used, capacity=places, kind=LimitKind.CONCURRENCY, name="concurrency", reset_at_us=0)
    assert level(CapacityWatch(), lane(crowd)) is found


def test_a_window_that_will_run_out_before_its_reset_is_constrained_with_most_of_it_left() -> None:
    watch, found = CapacityWatch(), Level.ABUNDANT
    for minute in range(1, 19):
        found = level(watch, lane(limit(25 * minute), seq=minute), START_US + minute * 60_000_000)
    assert found is Level.CONSTRAINED  # 25 a minute: out in the 40th of 60 minutes, and 55 % are left
    crossing = watch.crossing("k:k1", limit(450), START_US + 18 * 60_000_000, confidence=0.9)
    assert crossing is not None
    assert crossing.earliest is not None
    assert crossing.expected is not None
    assert crossing.latest is not None
    assert crossing.earliest < crossing.expected < crossing.latest
    assert 1200 < crossing.expected < 1450
    assert crossing.chance > 0.9


def test_a_window_that_will_run_out_soon_is_critical_with_a_third_of_it_left() -> None:
    watch, found = CapacityWatch(), {}
    for minute in range(1, 13):  # 60 a minute: what is left after 11 minutes lasts for less than six more
        found[minute] = level(watch, lane(limit(60 * minute), seq=minute), START_US + minute * 60_000_000)
    assert found[8] is Level.CONSTRAINED
    assert found[12] is Level.CRITICAL
    alone = level(CapacityWatch(), lane(limit(720)), START_US + HOUR_US - 1_000_000)
    assert alone is Level.ABUNDANT, "by its headroom alone"


def test_a_window_that_lasts_until_its_reset_is_abundant_all_the_time() -> None:
    watch = CapacityWatch()
    found = {
        level(watch, lane(limit(12 * minute), seq=minute), START_US + minute * 60_000_000) for minute in range(1, 60)
    }
    assert found == {Level.ABUNDANT}


def test_a_process_that_comes_late_knows_the_pace_of_the_window_so_far() -> None:
    half = START_US + HOUR_US // 2
    assert level(CapacityWatch(), lane(limit(700)), half) is Level.CONSTRAINED
    assert level(CapacityWatch(), lane(limit(300)), half) is Level.ABUNDANT


@pytest.mark.parametrize(("capacity", "expected"), [(1000, Level.ABUNDANT), (500, Level.CONSTRAINED)])
def test_a_new_window_begins_with_the_pace_of_the_old_one(capacity: int, expected: Level) -> None:
    watch = CapacityWatch()
    level(watch, lane(limit(600, capacity=600)), START_US + HOUR_US - 1)
    fresh = replace(limit(0, capacity=capacity), reset_at_us=START_US + 2 * HOUR_US)
    assert level(watch, lane(fresh, seq=2), START_US + HOUR_US + 1) is expected


def test_a_level_is_left_only_when_it_is_clearly_better() -> None:
    watch, near = CapacityWatch(), START_US + HOUR_US - 1_000_000
    levels = [level(watch, lane(limit(used), seq=n), near + n) for n, used in enumerate((800, 790, 760, 740))]
    assert [found.name for found in levels] == ["CONSTRAINED", "CONSTRAINED", "CONSTRAINED", "ABUNDANT"]


def bucket(used: int, now_us: int) -> LimitState:
    """600 a minute: what is used flows back at 10 a second."""
    return limit(used, capacity=600, kind=LimitKind.BUCKET, name="rpm", reset_at_us=now_us + used * 100_000)


@pytest.mark.parametrize(("per_second", "expected"), [(6, Level.ABUNDANT), (20, Level.CONSTRAINED)])
def test_a_bucket_is_constrained_when_more_flows_out_than_in(per_second: int, expected: Level) -> None:
    watch, used, now_us, rng = CapacityWatch(), 0.0, START_US, random.Random(1)
    found = Level.ABUNDANT
    for step in range(120):
        now_us += 250_000
        used = max(0.0, used - 2.5) + sum(rng.random() < per_second / 40 for _ in range(10))
        found = level(watch, lane(bucket(int(used), now_us), seq=step), now_us)
        assert used < 480  # never near its end
    assert found is expected


def test_what_is_in_use_no_longer_is_forgotten() -> None:
    watch = CapacityWatch()
    level(watch, lane(limit(100)))
    assert watch.burn("k:k1", limit(100)) is not None
    watch.forget(["k:k1"])
    assert watch.burn("k:k1", limit(100)) is None


def test_every_limit_has_a_window() -> None:
    seconds = {name: window_seconds(limit(0, name=name)) for name in LIMIT_NAMES}
    assert (seconds["rps"], seconds["tpm"], seconds["itpm"], seconds["rph"], seconds["otpd"]) == (
        1,
        60,
        60,
        3600,
        86400,
    )
    assert (seconds["tokens_daily"], seconds["requests_hourly~"]) == (86_400, 3_600)
    assert min(seconds.values()) > 0
