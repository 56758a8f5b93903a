"""A small world in virtual time: every objective wins on its own measure, to the digit, every time."""

import pytest
from benchmarks.objectives import OBJECTIVES, OWN_MEASURE, compare
from benchmarks.routing_world import Told

from tests.routing.ways import OBJECTIVES as NAMES

SECONDS = 90.0


@pytest.fixture(scope="module")
def told() -> dict[str, Told]:
    """Everybody on the same requests."""
    import asyncio

    return asyncio.run(compare(3, SECONDS))


@pytest.mark.parametrize("objective", sorted(NAMES))
def test_an_objective_wins_on_its_own_measure(objective: str, told: dict[str, Told]) -> None:
    _, measure = OWN_MEASURE[objective]
    rivals = {name: measure(each) for name, each in told.items() if name in OWN_MEASURE or name not in OBJECTIVES}
    assert min(rivals, key=lambda name: rivals[name]) == objective


def test_no_provider_has_to_refuse_what_was_admitted(told: dict[str, Told]) -> None:
    assert {told[name].refused for name in OBJECTIVES} == {0}
    assert all(told[name].refused > 0 for name in ("random", "round-robin", "least-used"))


def test_everybody_meets_the_same_requests(told: dict[str, Told]) -> None:
    assert len({each.requests for each in told.values()}) == 1
    assert all(each.success > 0.99 for each in told.values())


def test_a_constraint_keeps_failures_away_at_little_cost(told: dict[str, Told]) -> None:
    plain, bounded = told["cost"], told["cost, reliable"]
    assert bounded.at_once > plain.at_once
    assert plain.cost_per_thousand_usd < bounded.cost_per_thousand_usd < told["round-robin"].cost_per_thousand_usd


def test_weights_lie_between_what_they_combine(told: dict[str, Told]) -> None:
    both = told["cost + latency"]
    assert told["cost"].cost_per_thousand_usd < both.cost_per_thousand_usd < told["latency"].cost_per_thousand_usd
    assert told["latency"].seconds_at(0.5) < both.seconds_at(0.5) < told["cost"].seconds_at(0.5)


async def test_it_repeats_to_the_digit(told: dict[str, Told]) -> None:
    again = await compare(3, SECONDS / 6)
    once_more = await compare(3, SECONDS / 6)
    assert {name: (each.cost_usd, each.served) for name, each in again.items()} == {
        name: (each.cost_usd, each.served) for name, each in once_more.items()
    }
