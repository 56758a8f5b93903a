"""Measures: what each objective looks at, as pure functions of an option and its lanes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.evidence import proven_share
from apikeyrouter.domain.components.observations import GOOD_HALF_SECONDS, Observations, Seen
from apikeyrouter.domain.components.pool import Pool
from apikeyrouter.domain.components.scoring import (
    WORST,
    Conditions,
    cost_nanousd,
    failure_share,
    latency_us,
    recent_load,
    shortfall,
)
from tests.routing.ways import NOW, NOW_US, lane, names, option, plan, price, rank, snapshot


def under(lanes: dict[str, dict[str, Any]] | None = None, **fields: Any) -> Conditions:
    """Conditions with these lanes."""
    states = {name: lane(name, **values) for name, values in (lanes or {}).items()}
    return Conditions(**{"lanes": states, "now_us": NOW_US, "now": NOW, **fields})


def test_cost_is_that_of_so_many_tokens_and_an_unknown_price_is_the_worst() -> None:
    known = option("k", priced=price("2", "8"))
    assert cost_nanousd(known, under(input_tokens=1000, output_tokens=100)) == 2_000_000 + 800_000
    assert cost_nanousd(option("k"), under()) == WORST


def test_the_cheapest_depends_on_how_long_question_and_answer_are() -> None:
    reads, writes = option("reads", priced=price("1", "10"), rate=0), option("writes", priced=price("3", "3"), rate=1)
    pool, cost = Pool("m", [reads, writes]), plan("cost")
    assert pool.shaped
    assert names(rank(pool, cost, tokens=(10_000, 100)))[0] == "reads"
    assert names(rank(pool, cost, tokens=(100, 10_000)))[0] == "writes"


def test_prices_in_one_ratio_share_one_order() -> None:
    pool = Pool("m", [option("a", priced=price("1", "4")), option("b", priced=price("2", "8"))])
    cost, known = plan("cost"), snapshot()
    for tokens in ((10, 10), (10_000, 10), (10, 10_000)):
        assert names(rank(pool, cost, known, tokens=tokens)) == ["a", "b"]
    assert (pool.shaped, len(pool._orders)) == (False, 1)


def test_orders_by_size_of_request_are_bounded() -> None:
    pool = Pool("m", [option("a", priced=price("1", "9")), option("b", priced=price("3", "1"))])
    cost, known = plan("cost"), snapshot()
    for size in range(1, 40):
        rank(pool, cost, known, tokens=(2**size, 2 ** (40 - size)))
    assert len(pool._orders) <= 32


@pytest.mark.parametrize(
    ("failed", "total", "least", "most"), [(0, 0, 0, 0), (0, 9, 0, 0), (1, 1, 0.5, 0.5), (10, 100, 0.07, 0.08)]
)
def test_what_is_proven_of_failures(failed: int, total: int, least: float, most: float) -> None:
    assert least <= proven_share(failed, total) <= most


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 1000))
def test_proof_grows_with_failures_and_never_exceeds_their_share(failed: int, more: int, ok: int) -> None:
    assert 0 <= proven_share(failed, failed + ok) <= failed / (failed + ok)
    assert proven_share(failed + more, failed + more + ok) >= proven_share(failed, failed + ok)


def test_a_key_and_its_provider_fail_independently() -> None:
    lanes = {"k:k": {"failures": 1}, "p:p": {"failures": 1}}
    assert failure_share(option("k"), under(lanes)) == pytest.approx(0.75)
    assert failure_share(option("k"), under({"k:k": {"successes": 50}})) == 0
    assert failure_share(option("k"), under()) == 0


def test_blame_counts_as_failure_and_fades() -> None:
    blamed = option("k")
    for _ in range(3):
        blamed.seen.blame(NOW)
    lanes = {"k:k": {"successes": 3}}
    fresh, later = failure_share(blamed, under(lanes)), failure_share(blamed, under(lanes, now=NOW + 600))
    assert fresh > 0.25 > 0.01 > later


def test_latency_is_what_was_seen_here_else_what_the_fleet_saw() -> None:
    at = under({"k:k": {"latency_us": 900}, "g:g-k:m": {"latency_us": 700}})
    seen = option("k")
    assert latency_us(seen, at) == 700
    seen.seen.answered(300.0, stream=False, now=NOW)
    assert latency_us(seen, at) == 300
    assert latency_us(seen, under({"k:k": {"latency_us": 900}}, stream=True)) == 900
    seen.seen.answered(50.0, stream=True, now=NOW)
    assert latency_us(seen, under(stream=True)) == 50


def test_a_slower_answer_counts_at_once_and_faster_ones_by_and_by() -> None:
    seen = Seen()
    for us in (100.0, 1000.0):
        seen.answered(us, stream=False, now=NOW)
    assert seen.latency(False) == 1000
    seen.answered(100.0, stream=False, now=NOW + 0.1)
    assert 980 < seen.latency(False) < 1000
    seen.answered(100.0, stream=False, now=NOW + 60)
    assert 100 < seen.latency(False) < 110


def test_the_wait_grows_with_what_is_under_way_here_and_elsewhere() -> None:
    fast, slow = option("fast"), option("slow")
    fast.seen.answered(100.0, stream=False, now=NOW)
    slow.seen.answered(250.0, stream=False, now=NOW)
    pool, latency = Pool("m", [fast, slow]), plan("latency")
    known = snapshot({"k:fast": {"in_flight": 1}})
    assert names(rank(pool, latency, known)) == ["fast", "slow"]
    fast.key.under_way = 1
    known.version += 1  # the one that is in the snapshot is ours
    assert names(rank(pool, latency, known)) == ["fast", "slow"]
    fast.key.under_way = 2
    assert names(rank(pool, latency, known)) == ["slow", "fast"]


def test_a_fast_refusal_is_never_attractive() -> None:
    """A key that only ever refused has no latency; it is taken for the best of all until it was tried."""
    steady, refusing = option("steady"), option("refusing")
    steady.seen.answered(1000.0, stream=False, now=NOW)
    pool, latency = Pool("m", [steady, refusing]), plan("latency")
    untried = snapshot()
    assert {names(rank(pool, latency, untried))[0] for _ in range(2)} == {"steady", "refusing"}
    known = snapshot({"k:refusing": {"requests_total": 3}})
    assert names(rank(pool, latency, known)) == ["steady", "refusing"]
    known = snapshot({"k:refusing": {"failures": 60, "latency_us": 100, "last_used_us": NOW_US}})
    assert names(rank(pool, latency, known)) == ["steady", "refusing"]


def test_a_latency_that_was_not_seen_again_is_doubted_so_that_a_key_gets_another_chance() -> None:
    fast, slow = option("fast"), option("slow")
    slow.seen.answered(5000.0, stream=False, now=NOW - 720)
    fast.seen.answered(100.0, stream=False, now=NOW)
    pool, known, latency = Pool("m", [fast, slow]), snapshot(), plan("latency")
    assert {names(rank(pool, latency, known))[0] for _ in range(4)} == {"fast", "slow"}


def test_load_is_recent_requests_and_those_in_flight_per_weight() -> None:
    lanes = {"k:k": {"successes": 5, "failures": 2, "in_flight": 2}}
    assert recent_load(option("k", weight=2), under(lanes)) == 5


def test_quality_is_declared_times_what_is_seen() -> None:
    good = option("k", quality=0.8)
    assert shortfall(good, under()) == pytest.approx(0.2)
    for _ in range(5):
        good.seen.judged(0.0, NOW)
    assert shortfall(good, under()) == pytest.approx(1 - 0.8 * (1 - proven_share(5, 10)))
    assert shortfall(good, under(now=NOW + 20 * GOOD_HALF_SECONDS)) == pytest.approx(0.2, abs=0.001)


def test_one_bad_answer_changes_the_next_order() -> None:
    pool, quality, known = Pool("m", [option("a"), option("b")]), plan("quality"), snapshot()
    assert {names(rank(pool, quality, known))[0] for _ in range(2)} == {"a", "b"}
    pool.options[0].seen.judged(0.0, NOW)
    known.take([], now=NOW, now_us=NOW_US)
    assert [names(rank(pool, quality, known))[0] for _ in range(2)] == ["b", "b"]


def test_processes_add_up_what_they_saw_and_nothing_twice() -> None:
    here, there = Observations(), Observations()
    there.of("k", "m").judged(0.0, NOW)
    there.of("k", "m").blame(NOW)
    for _ in range(3):
        here.take_over([there.export(NOW), {"version": 1, "rows": [["k", "m", 1.0, 0.0, 0.0]]}])
    assert here.of("k", "m").good_share(NOW) == pytest.approx(1 - proven_share(2, 7))
    assert here.of("k", "m").blamed(NOW) == 1
    assert here.export(NOW)["rows"] == []
    here.take_over([])
    assert here.of("k", "m").good_share(NOW) == 1


NONSENSE: list[Any] = [
    {}, {"version": 2, "rows": [["k", "m", 9, 0, 9]]}, {"version": 1, "rows": 5}, {"version": 1, "rows": [5]},
    {"version": 1, "rows": [["k", "m", -1, 0, 0]]}, {"version": 1, "rows": [["k", "m", float("nan"), 0, 0]]},
    {"version": 1, "rows": [["k", 5, 1, 0, 0]]}, {"version": 1, "rows": [["k", "m", 1e300, 0, 0]]},
    {"version": 1, "rows": [["k", "m", "1", 0, 0]]},
]  # fmt: skip


@pytest.mark.parametrize("told", NONSENSE)
def test_what_others_tell_and_makes_no_sense_is_skipped(told: Any) -> None:
    here = Observations()
    here.take_over([told])
    assert (here.of("k", "m").good_share(NOW), here.of("k", "m").blamed(NOW)) == (1, 0)


def test_what_is_remembered_is_bounded() -> None:
    few = Observations(kept_max=3)
    kept = few.of("k0", "m")
    for number in range(1, 5):
        few.of(f"k{number}", "m")
        few.of("k0", "m").judged(0.0, NOW)
    assert few.of("k0", "m") is kept
    assert len(few.export(NOW)["rows"]) == 1  # type: ignore[arg-type]
    assert len(few._seen) == 3
