"""Keys that come and go by their state: pools put themselves right, and look at nobody else."""

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apikeyrouter.domain.components.catalogue import Catalogue, Key, Provider
from apikeyrouter.domain.components.pool import SCORED_AT_ONCE_MAX, Option, Pool, Snapshot
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from tests.routing.ways import NOW, OBJECTIVES, key, names, option, plan, price, rank, snapshot

LARGE = SCORED_AT_ONCE_MAX + 44
SIZES = [7, LARGE]
PRICES = [price("1", "1"), price("2", "2"), price("3", "3")]


def put(pool: Pool, moved: Option, state: KeyState) -> None:
    """A key changes its state, and its pool is told."""
    moved.key.state = state
    pool.moved(moved.key.id)


def out(pool: Pool, moved: Option) -> None:
    """A key goes."""
    put(pool, moved, KeyState.Disabled)


def back(pool: Pool, moved: Option) -> None:
    """It comes back."""
    put(pool, moved, KeyState.Available)


def renew(known: Snapshot) -> None:
    """What requests found to be out of date is renewed, as housekeeping does it."""
    for pool, which in list(known.wanted):
        assert pool.renew(which, known, NOW, len(pool.options))
        del known.wanted[pool, which]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("size", SIZES)
def test_who_goes_is_not_offered_from_that_moment_and_who_comes_back_is(objective: str, size: int) -> None:
    options = [option(f"k{n}") for n in range(size)]
    pool, known, under = Pool("m", options), snapshot(), plan(objective)
    rank(pool, under, known)
    out(pool, options[3])
    offered = Counter(name for _ in range(2 * size) for name in names(rank(pool, under, known, count=2)))
    assert "k3" not in offered
    back(pool, options[3])
    offered = Counter(name for _ in range(2 * size) for name in names(rank(pool, under, known, count=2)))
    assert offered["k3"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("size", SIZES)
def test_who_was_out_when_the_order_was_built_is_seen_by_a_final_denial(objective: str, size: int) -> None:
    options = [option(f"k{n}") for n in range(size)]
    options[5].key.state = KeyState.Throttled
    pool, known, under = Pool("m", options), snapshot(), plan(objective)
    first = rank(pool, under, known).options
    assert options[5] not in first
    back(pool, options[5])
    seen = [*first, *(other for other, _ in pool.rest(under, first, snapshot=known, now=NOW))]
    assert set(seen) == set(options)
    assert len(seen) == size


def test_a_key_that_comes_back_takes_turns_like_the_others() -> None:
    options = [option(f"k{n}") for n in range(LARGE)]
    options[5].key.state = KeyState.Throttled
    pool, known, under = Pool("m", options), snapshot(), plan("fairness")
    rank(pool, under, known)
    back(pool, options[5])
    turns = Counter(names(rank(pool, under, known, count=1))[0] for _ in range(2 * LARGE))
    assert set(turns.values()) == {2}
    assert len(turns) == LARGE
    assert not known.wanted


def test_a_key_of_another_weight_gets_its_turns_with_the_next_order() -> None:
    options = [option(f"k{n}", weight=2 if n == 5 else 1) for n in range(LARGE)]
    options[5].key.state = KeyState.Throttled
    pool, known, under = Pool("m", options), snapshot(), plan("fairness")
    rank(pool, under, known)
    back(pool, options[5])
    rank(pool, under, known)
    renew(known)
    turns = Counter(names(rank(pool, under, known, count=1))[0] for _ in range(LARGE + 1))
    assert turns["k5"] == 2


@pytest.mark.parametrize("place", range(3))
def test_who_comes_back_stands_where_a_new_order_would_have_it(place: int) -> None:
    options = [option(f"k{n}", priced=PRICES[n % 3], rate=n % 3) for n in range(LARGE)]
    options[place].key.state = KeyState.Throttled
    pool, known, under = Pool("m", options), snapshot(), plan("cost")
    rank(pool, under, known)
    back(pool, options[place])
    joined, anew = pool.order(under, known, NOW), Pool("m", options).order(under, known, NOW)
    assert [row.value for row in joined.rows] == [row.value for row in anew.rows]
    assert joined.turning == anew.turning
    assert set(joined.options) == set(options)
    assert joined.place_of(options[place]) == joined.options.index(options[place])
    assert joined.standing(joined.options.index(options[place])).key_id == f"k{place}"
    assert not known.wanted


def test_who_comes_back_better_than_all_is_first_with_the_next_order() -> None:
    options = [option(f"k{n}", priced=PRICES[0 if n == 5 else 1]) for n in range(LARGE)]
    options[5].key.state = KeyState.Throttled
    pool, known, under = Pool("m", options), snapshot(), plan("cost")
    rank(pool, under, known)
    back(pool, options[5])
    rank(pool, under, known)
    assert known.wanted
    renew(known)
    assert names(rank(pool, under, known))[0] == "k5"


def test_who_moves_while_an_order_is_being_built_is_where_it_belongs() -> None:
    options = [option(f"k{n}") for n in range(LARGE)]
    options[1].key.state = KeyState.Throttled
    pool, known, under = Pool("m", options), snapshot(), plan("reliability")
    rank(pool, under, known)
    known.take([], now=NOW, now_us=known.now_us)
    rank(pool, under, known)
    ((_, which),) = known.wanted
    assert not pool.renew(which, known, NOW, LARGE // 2)
    out(pool, options[2])
    back(pool, options[1])
    out(pool, options[3])
    back(pool, options[3])
    assert pool.renew(which, known, NOW, LARGE)
    order = pool.order(under, known, NOW)
    assert (order.gone, list(order.came)) == ({options[2]}, [options[1]])


def test_an_order_that_many_have_left_is_built_anew() -> None:
    options = [option(f"k{n}") for n in range(LARGE)]
    pool, known, under = Pool("m", options), snapshot(), plan("fairness")
    rank(pool, under, known)
    for gone in options[: LARGE // 2]:
        out(pool, gone)
    assert len(names(rank(pool, under, known))) == 8
    renew(known)
    order = pool.order(under, known, NOW)
    assert order.options == options[LARGE // 2 :]
    assert not order.gone
    assert not order.worn


@pytest.mark.parametrize("size", SIZES)
def test_groups_are_those_of_the_keys_that_are_there(size: int) -> None:
    options = [option(f"k{n}", group="a" if n else "b", priced=price("2", "2", "1")) for n in range(size)]
    pool = Pool("m", options)
    told = [pool.caches]
    out(pool, options[0])
    told.append(pool.caches)
    assert told == [True, False]
    assert pool.members.in_group("b", 2) == []
    back(pool, options[0])
    assert pool.members.in_group("b", 2) == [options[0]]
    assert len(pool.members.in_group("a", 2)) == 2


@settings(max_examples=40, deadline=None)
@given(
    objective=st.sampled_from([*OBJECTIVES, RoutingObjective("cost", weights={"cost": 1, "quality": 1})]),
    size=st.sampled_from(SIZES),
    moves=st.lists(st.tuples(st.integers(0, LARGE - 1), st.sampled_from(list(KeyState)), st.booleans()), max_size=60),
)
def test_whatever_comes_and_goes_exactly_those_that_are_there_are_offered(
    objective: str | RoutingObjective, size: int, moves: list[tuple[int, KeyState, bool]]
) -> None:
    options = [option(f"k{n}", weight=1 + n % 2, priced=PRICES[n % 3], rate=n % 3) for n in range(size)]
    pool, known, under = Pool("m", options), snapshot(), plan(objective)
    for number, state, renewed in moves:
        put(pool, options[number % size], state)
        if renewed:
            renew(known)
        there = {each for each in options if each.key.state.eligible}
        first = rank(pool, under, known).options
        rest = [other for other, _ in pool.rest(under, first, snapshot=known, now=NOW)]
        assert {*first, *rest} == there
        assert len(first) + len(rest) == len(there)


def work(of: Callable[[], object]) -> int:
    """Steps of the interpreter that something takes: what it costs, on any machine."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        of()
    finally:
        sys.settrace(before)
    return steps


def _turned(moved: Key, told: Callable[[str], None], offered: Callable[[], object], state: KeyState) -> None:
    """A key changes its state, and the next request is ranked."""
    moved.state = state
    told(moved.id)
    offered()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_key_that_goes_and_comes_costs_the_same_among_a_thousand_and_ten_thousand(objective: str) -> None:
    taken = []
    for count in (1_000, 10_000):
        catalogue, known, under = Catalogue(PriceBook()), snapshot(), plan(objective)
        catalogue.providers["p"] = Provider(id="p", adapter=None)
        for number in range(count):
            catalogue.keys[f"k{number}"] = key(f"k{number}")
        moved = catalogue.keys["k77"]
        moved.state = KeyState.Throttled
        pool = catalogue.pool("m", "p", "")
        offered = partial(pool.rank, under, 8, snapshot=known, now=NOW, start=200)
        offered()
        turn = partial(_turned, moved, catalogue.state_changed, offered)
        taken.append([work(partial(turn, state)) for state in (KeyState.Available, KeyState.Disabled)])
        assert catalogue.pool("m", "p", "") is pool
    for few, many in zip(*taken, strict=True):
        assert many <= 1.1 * few
