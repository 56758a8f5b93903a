"""Expected waits: what requests compare, and in which order large pools know it."""

import pytest

from apikeyrouter.domain.components.pool import SCORED_AT_ONCE_MAX, TURN_REQUESTS, TURNING_FROM_MAX, Pool
from tests.routing.ways import NOW, NOW_US, lane, names, option, plan, rank, snapshot

LARGE = SCORED_AT_ONCE_MAX + 44


@pytest.mark.parametrize("count", [3, 8, 20, 100, LARGE])
def test_requests_go_to_the_shortest_wait_of_those_that_they_compare(count: int) -> None:
    """The leaders are those with the shortest waits of all, and what is under way counts from one request to the
    next, before lanes are looked at again."""
    options = [option(f"k{number}") for number in range(count)]
    known = snapshot(
        {f"k:k{number}": {"latency_us": 1000 + 50 * number, "last_used_us": NOW_US} for number in range(count)}
    )
    pool, latency = Pool("m", options), plan("latency")
    assert names(rank(pool, latency, known))[:3] == ["k0", "k1", "k2"]
    options[0].key.under_way = 1
    found = rank(pool, latency, known)
    at = found.ranking.measures.index("expected_us")
    waits = [standing.values[at] for standing in found.ranking.standings]
    assert names(found)[0] == "k1"
    assert waits == sorted(waits)
    assert dict(zip(names(found), waits, strict=True)).get("k0", 2000) == 2000
    options[0].key.under_way = 0
    assert names(rank(pool, latency, known))[0] == "k0"


@pytest.mark.parametrize("count", [9, 10, 11, 12, 60, TURNING_FROM_MAX])
def test_whoever_is_slower_is_compared_in_turn_so_that_everybody_is_seen(count: int) -> None:
    options = [option(f"k{number}") for number in range(count)]
    known = snapshot(
        {f"k:k{number}": {"latency_us": 1000 * (number + 1), "last_used_us": NOW_US} for number in range(count)}
    )
    pool, latency = Pool("m", options), plan("latency")
    seen: set[str] = set()
    for _ in range(TURN_REQUESTS * count):
        found = names(rank(pool, latency, known))
        assert len(found) == len(set(found)) == 8
        assert found[0] == "k0"
        seen.update(found)
    assert seen == {one.key.id for one in options}


@pytest.mark.parametrize("objective", ["latency", "reliability", "cost"])
def test_an_order_that_is_scored_by_and_by_is_the_one_that_is_scored_at_once(objective: str) -> None:
    options = [option(f"k{number}") for number in range(LARGE)]
    lanes = {
        f"k:k{number}": {
            "latency_us": (number * 37) % 900,
            "last_used_us": NOW_US,
            "failures": number % 7,
            "successes": 50,
        }
        for number in range(LARGE)
    }
    lanes |= {"k:k5": {"latency_us": 0, "requests_total": 3}}
    known, chosen = snapshot(lanes), plan(objective)
    at_once, by_and_by = Pool("m", options), Pool("m", options)
    at_once.order(chosen, known, NOW)
    by_and_by.order(chosen, known, NOW)
    known.take([lane("k:k1", latency_us=3, successes=50)], now=NOW, now_us=known.now_us)
    which = next(iter(by_and_by._orders))
    while not by_and_by.renew(which, known, NOW, 17):
        pass
    at_once.renew(which, known, NOW, LARGE)
    one, other = at_once.order(chosen, known, NOW), by_and_by.order(chosen, known, NOW)
    assert one.options == other.options
    assert one.turning == other.turning
    told = [order.standings(0, LARGE) for order in (one, other)]
    assert told[0] == told[1]
