"""Pools: what a request is offered, in which order, and at which cost."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.pool import SCAN_MAX, SCORED_AT_ONCE_MAX, Option, Pool
from apikeyrouter.domain.models.api_key import KeyState
from tests.routing.ways import NOW, NOW_US, OBJECTIVES, lane, names, option, plan, price, rank, snapshot


class Watched(list[Any]):
    """A list that counts how many of its places were read."""

    reads = 0

    def __getitem__(self, at: Any) -> Any:
        self.reads += 1
        return super().__getitem__(at)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equals_share_evenly(objective: str) -> None:
    pool, known, under = Pool("m", [option(f"k{n}") for n in range(10)]), snapshot(), plan(objective)
    firsts = Counter(names(rank(pool, under, known))[0] for _ in range(1000))
    assert set(firsts.values()) == {100}


@pytest.mark.parametrize("objective", ["fairness", "cost", "reliability", "quality"])
def test_weights_stretch_the_turns_of_equals(objective: str) -> None:
    pool, known = Pool("m", [option("k0", weight=3), option("k1"), option("k2", weight=1.5)]), snapshot()
    under = plan(objective)
    firsts = Counter(names(rank(pool, under, known))[0] for _ in range(1100))
    assert firsts == {"k0": 600, "k1": 200, "k2": 300}


@given(st.lists(st.floats(0.5, 60), min_size=2, max_size=12))
def test_turns_are_in_proportion_to_any_weights(weights: list[float]) -> None:
    pool, known, under = Pool("m", [option(f"k{n}", weight=w) for n, w in enumerate(weights)]), snapshot(), plan("cost")
    rank(pool, under, known)
    order = pool.order(under, known, NOW)
    firsts = Counter(each.key.id for each in order.options[: order.turning])
    for number, weight in enumerate(weights):
        share, fair = firsts[f"k{number}"] / order.turning, weight / sum(weights)
        assert abs(share - fair) <= fair * 0.15


def test_a_request_looks_at_few_of_ten_thousand_keys_even_when_all_are_out() -> None:
    options = [option(f"k{n}") for n in range(10_000)]
    pool, known, under = Pool("m", options), snapshot(), plan("fairness")
    assert len(names(rank(pool, under, known))) == 8
    order = pool.order(under, known, NOW)
    order.options = watched = Watched(order.options)
    known.blocked.update({each.lanes[0]: NOW + 1 for each in options})
    assert len(names(rank(pool, under, known))) == 8
    assert watched.reads <= SCAN_MAX


def test_a_large_pool_is_scored_a_part_at_a_time_while_requests_use_the_order_of_before() -> None:
    options = [option(f"k{n}") for n in range(4 * SCORED_AT_ONCE_MAX)]
    pool, under, scored = Pool("m", options), plan("reliability"), Counter[str]()
    known = snapshot()
    rank(pool, under, known)
    known.lanes = Recorded(known.lanes, scored)
    known.take([lane(f"k:k{n}", successes=10, failures=10) for n in range(1, len(options))], now=NOW, now_us=NOW_US)
    assert len({names(rank(pool, under, known))[0] for _ in range(20)}) == 20
    assert not scored
    ((wanting, which),) = known.wanted
    assert wanting is pool
    for part in range(1, 5):
        assert len({names(rank(pool, under, known))[0] for _ in range(20)}) == 20
        assert pool.renew(which, known, NOW, SCORED_AT_ONCE_MAX) is (part == 4)
        assert len(scored) == part * SCORED_AT_ONCE_MAX
    assert {names(rank(pool, under, known))[0] for _ in range(20)} == {"k0"}


class Recorded(dict[str, Any]):
    """Lanes that note which keys' lanes were looked up."""

    def __init__(self, lanes: Any, scored: Counter[str]) -> None:
        super().__init__(lanes)
        self._scored = scored

    def get(self, name: str, default: Any = None) -> Any:
        if name.startswith("k:"):
            self._scored[name] += 1
        return super().get(name, default)


def test_the_rest_of_ten_thousand_keys_is_seen_once_each() -> None:
    pool, known = Pool("m", [option(f"k{n}", weight=1 + n % 3) for n in range(10_000)]), snapshot()
    first = rank(pool, "fairness", known).options
    rest = [other for other, _ in pool.rest(plan("fairness"), first, snapshot=known, now=NOW)]
    assert len(rest) == len(set(rest)) == 10_000 - len(first)
    assert not set(rest).intersection(first)


@pytest.mark.parametrize("state", [KeyState.Invalid, KeyState.Disabled, KeyState.Throttled, KeyState.Exhausted])
def test_keys_that_are_out_by_their_state_are_never_offered(state: KeyState) -> None:
    out, well = option("k0", state=state), option("k1")
    pool = Pool("m", [out, well])
    assert names(rank(pool, "fairness")) == ["k1"]
    assert list(pool.rest(plan("fairness"), [well], snapshot=snapshot(), now=NOW)) == []
    assert pool.out == [out]
    assert names(rank(Pool("m", [out]), "fairness")) == []


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_known_to_be_out_comes_last_and_what_was_tried_not_at_all(objective: str) -> None:
    first, second, third = option("k0"), option("k1"), option("k2")
    pool, known, under = Pool("m", [first, second, third]), snapshot(), plan(objective)
    known.blocked["k:k0"] = NOW + 1
    for _ in range(3):
        assert names(rank(pool, under, known))[-1] == "k0"
        assert sorted(names(rank(pool, under, known, skip=(second,)))) == ["k0", "k2"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "trouble",
    [
        {"blocked_until_us": NOW_US + 1_000_000},
        {"breaker": "open", "breaker_until_us": NOW_US + 1_000_000},
    ],
)
def test_a_lane_that_another_process_saw_out_puts_its_options_last(objective: str, trouble: dict[str, Any]) -> None:
    pool, under = Pool("m", [option(f"k{n}") for n in range(4)]), plan(objective)
    known = snapshot()
    assert {names(rank(pool, under, known))[0] for _ in range(4)} == {"k0", "k1", "k2", "k3"}
    known.take([lane("g:g-k2:m", **trouble)], now=NOW, now_us=NOW_US)
    assert {names(rank(pool, under, known))[-1] for _ in range(4)} == {"k2"}
    known.take([lane("g:g-k2:m")], now=NOW, now_us=NOW_US)
    assert {names(rank(pool, under, known))[0] for _ in range(4)} == {"k0", "k1", "k2", "k3"}


def test_who_stands_beside_one_that_is_out_does_not_serve_its_requests_alone() -> None:
    pool, under, known = Pool("m", [option(f"k{n}") for n in range(4)]), plan("fairness"), snapshot()
    known.take([lane("k:k2", blocked_until_us=NOW_US + 1_000_000)], now=NOW, now_us=NOW_US)
    firsts = Counter(names(rank(pool, under, known))[0] for _ in range(300))
    assert firsts == {"k0": 100, "k1": 100, "k3": 100}


def test_later_targets_of_an_alias_come_after_all_of_the_first() -> None:
    pool = Pool("m", [option("k0", rank=1, priced=price("0", "0")), option("k1"), option("k2")])
    for objective in OBJECTIVES:
        assert names(rank(pool, objective))[2] == "k0"


def test_a_later_target_comes_first_while_all_keys_of_the_first_one_cool() -> None:
    pool, known = Pool("m", [option("k0", rank=1), option("k1")]), snapshot()
    known.take([lane("k:k1", blocked_until_us=NOW_US + 1_000_000)], now=NOW, now_us=NOW_US)
    for objective in OBJECTIVES:
        assert names(rank(pool, objective, known)) == ["k0", "k1"]


def test_a_rotated_order_offers_every_option_once() -> None:
    options: list[Option] = [option(f"k{n}", quality=0.9 if n < 5 else 0.1) for n in range(7)]
    pool, known, under = Pool("m", options), snapshot(), plan("quality")
    for _ in range(10):
        offered = names(rank(pool, under, known))
        assert sorted(offered) == sorted(each.key.id for each in options)
        assert set(offered[:5]) == {"k0", "k1", "k2", "k3", "k4"}
