"""Forecasts: rates, intervals that contain the truth as often as they say, and nonsense survived."""

import math

import pytest
from benchmarks.forecast import FRESH, PROCESSES, SEASONED, coverage

from apikeyrouter.domain.components.forecast import IDLE_SLOTS_MAX, Burn, Demand, crossing


def steady(per_slot: float, slots: int = 200) -> Burn:
    burn = Burn(slot_seconds=1.0)
    burn.add(0, 100.0)
    for slot in range(1, slots + 1):
        burn.add(per_slot, 100.0 + slot)
    return burn


def test_a_steady_rate_is_learned_and_its_future_is_nearly_certain() -> None:
    burn = steady(10)
    assert burn.per_second == pytest.approx(10, rel=0.01)
    demand = burn.demand(60)
    assert demand.expected == pytest.approx(600, rel=0.01)
    assert demand.reaches(550) > 0.99
    assert demand.reaches(650) < 0.01
    found = crossing(burn, 300, reset_seconds=1000)
    assert found.earliest is not None
    assert found.expected == pytest.approx(30, rel=0.03)
    assert found.latest is not None
    assert found.earliest <= 30 <= found.latest


def test_what_flows_back_meanwhile_makes_it_last() -> None:
    burn = steady(10)
    assert crossing(burn, 300, reset_seconds=1000, refill_per_second=11).chance < 0.15
    slower = crossing(burn, 300, reset_seconds=1000, refill_per_second=5)
    assert slower.expected == pytest.approx(60, rel=0.1)


def test_nothing_left_is_now_and_nothing_used_is_never() -> None:
    assert crossing(steady(10), 0, reset_seconds=10).expected == 0.0
    idle = steady(0)
    assert crossing(idle, 5, reset_seconds=1e6).expected is None
    assert crossing(Burn(slot_seconds=1), 5, reset_seconds=10).chance == 0.0
    assert Burn(slot_seconds=1).per_second == 0.0


def test_more_confidence_is_a_wider_interval() -> None:
    burn, found = Burn(slot_seconds=1.0), []
    for slot in range(100):
        burn.add((slot * 7919) % 13, 10.0 + slot)
    for confidence in (0.5, 0.8, 0.95):
        told = crossing(burn, 500, reset_seconds=10_000, confidence=confidence)
        assert told.earliest is not None
        found.append((told.earliest, told.latest or math.inf))
    assert [found[0][0] > found[1][0] > found[2][0], found[0][1] < found[1][1] <= found[2][1]] == [True, True]


def test_a_clock_that_steps_and_a_long_silence_do_no_harm() -> None:
    burn = steady(10)
    burn.add(5, 50.0)  # back
    before = burn.slots
    burn.add(5, 101.0)
    assert burn.slots == before
    burn.add(5, 400.0)
    assert burn.slots > before
    burn.add(5, 400.0 + 10 * IDLE_SLOTS_MAX)
    assert burn.slots == 0
    assert burn.demand(10).expected == 0.0


def test_a_quantile_is_reached_as_often_as_it_says() -> None:
    demand = Demand(100.0, 0.04, 8.0)
    for share in (0.05, 0.5, 0.9):
        assert demand.reaches(demand.quantile(share)) == pytest.approx(1 - share, abs=0.01)
    assert Demand(0.0, 0.0, 1.0).quantile(0.9) == 0.0


@pytest.mark.parametrize("process", sorted(PROCESSES))
def test_stated_intervals_contain_the_truth_about_as_often_as_they_say(process: str) -> None:
    found = coverage(process, runs=40, seed=1, asked=SEASONED)
    for confidence, share in found.shares.items():  # in forty runs, chance alone is worth some hundredths
        assert share >= confidence - 0.15, (process, confidence, share)
    assert found.shares[0.5] <= 0.85, "an interval that contains everything says nothing"


@pytest.mark.parametrize("process", ["poisson", "bursts of 30 minutes", "daily cycle", "office hours", "a step"])
def test_within_the_first_day_intervals_are_wide_enough_for_a_load_that_goes_with_the_day(process: str) -> None:
    found = coverage(process, runs=60, seed=1, asked=FRESH)
    assert [found.shares[level] >= level - 0.08 for level in (0.8, 0.9, 0.95)] == [True] * 3, (process, found.shares)


def test_after_two_days_the_third_is_expected_to_go_as_they_went() -> None:
    burn = Burn.of_window(86_400)
    burn.add(0, 1e-6)
    for slot in range(1, 256 * 2 + 64):
        burn.add(100 if slot % 256 < 64 else 1, slot * burn.slot_seconds + 1e-6)
    night = burn.demand(64 * 337.5)
    assert night.expected == pytest.approx(64, rel=0.5)
    day = burn.demand(256 * 337.5)
    assert day.quantile(0.05) < 64 * 100 + 192 < day.quantile(0.95)


def test_a_load_that_falls_is_not_forecast_to_end() -> None:
    burn = Burn.of_window(86_400)
    burn.add(0, 1e-6)
    for slot in range(1, 64):  # an evening, in which a busy load becomes a thirtieth
        burn.add(max(3, 90 - 2 * slot), slot * burn.slot_seconds + 1e-6)
    seen = (90 + 3) / 2 * 43 + 3 * 20
    assert burn.demand(43_200).expected > 0
    assert crossing(burn, seen, reset_seconds=86_400).earliest is not None, "the morning may come"


def test_what_the_day_before_brought_is_known_for_any_length_of_time() -> None:
    burn = Burn.of_window(86_400)
    burn.add(0, 1e-6)

    def load(slot: int) -> int:
        return 100 if slot % 256 < 107 else 1

    now = 256 * 3 + 155
    for slot in range(1, now + 1):
        burn.add(load(slot), slot * burn.slot_seconds + 1e-6)
    for slots in (42, 85, 99, 110, 139, 181):  # the morning begins after 101
        truth = sum(load(now + ahead) for ahead in range(1, slots + 1))
        assert burn.demand(slots * burn.slot_seconds).expected == pytest.approx(truth, abs=101), slots


def test_the_doubt_about_the_rest_of_the_day_goes_as_the_day_does_and_is_nothing_for_minutes() -> None:
    burn, wide = Burn(slot_seconds=300.0), []
    burn.add(0, 1.0)
    for slot in range(1, 400):
        burn.add(100, 1.0 + slot * 300)
        if slot in (20, 140, 270, 399):
            demand = burn.demand(40_000)
            wide.append(demand.quantile(0.95) / demand.quantile(0.05))
    assert wide == sorted(wide, reverse=True)
    assert wide[0] > 10
    assert wide[-1] < 1.5
    early = Burn(slot_seconds=1.0)
    early.add(0, 1.0)
    for second in range(1, 200):
        early.add(10, 1.0 + second)
    assert early.demand(60).quantile(0.95) / early.demand(60).quantile(0.05) < 1.1
