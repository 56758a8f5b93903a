"""Objectives, compiled: ties, weights, constraints, strategies, and what makes no sense."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.objectives import Strategies, key_of, objective_of, weighed
from apikeyrouter.domain.components.pool import Option, Pool
from apikeyrouter.domain.components.scoring import CandidateView
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError
from tests.routing.ways import NOW, NOW_US, lane, names, option, plan, price, rank, snapshot

SLOW = {"latency_us": 900_000, "last_used_us": NOW_US}
PRICES = [None, price("1", "2"), price("3", "1"), price("0", "0")]


def test_secondaries_break_ties_in_their_order_and_what_still_ties_takes_turns() -> None:
    dear, good, fast, also = (
        option("dear", priced=price("9", "9"), quality=0.9), option("good", priced=price("1", "1"), quality=0.9),
        option("fast", priced=price("1", "1")), option("also", priced=price("1", "1"), quality=0.9),
    )  # fmt: skip
    for each, us in ((good, 500.0), (also, 500.0), (fast, 1.0)):
        each.seen.answered(us, stream=False, now=NOW)
    pool, known = Pool("m", [dear, good, fast, also]), snapshot()
    under = plan(RoutingObjective("cost", ["quality", "latency"]))
    assert [set(names(rank(pool, under, known))[:2]) for _ in range(2)] == [{"good", "also"}] * 2
    assert {names(rank(pool, under, known))[0] for _ in range(2)} == {"good", "also"}
    assert names(rank(pool, under, known))[2:] == ["fast", "dear"]
    also.seen.answered(900.0, stream=False, now=NOW)
    known.version += 1
    assert {names(rank(pool, under, known))[0] for _ in range(4)} == {"good"}


def test_nothing_follows_turns() -> None:
    pool = Pool("m", [option("a", priced=price("1", "1")), option("b", priced=price("9", "9"))])
    under, known = plan(RoutingObjective("fairness", ["cost"])), snapshot()
    assert {names(rank(pool, under, known))[0] for _ in range(2)} == {"a", "b"}


def two(cost: float, failures: int) -> tuple[Pool, Any]:
    """A cheap key that fails ten of a hundred, and one `cost` times as dear that fails `failures`."""
    pool = Pool("m", [option("cheap", priced=price("1", "1")), option("sound", priced=price(str(cost), str(cost)))])
    lanes = {
        "k:cheap": {"successes": 900, "failures": 100}, "k:sound": {"successes": 1000 - failures, "failures": failures},
    }  # fmt: skip
    return pool, snapshot(lanes)


def test_weights_say_what_a_ratio_is_worth() -> None:
    """Twice the cost for a ninth of the failures: worth it evenly weighted, not when cost counts four times as much."""
    pool, known = two(2, 10)
    assert names(rank(pool, plan(RoutingObjective("cost", weights={"cost": 1, "reliability": 1})), known))[0] == "sound"
    assert names(rank(pool, plan(RoutingObjective("cost", weights={"cost": 8, "reliability": 2})), known))[0] == "cheap"
    assert names(rank(pool, plan("cost"), known))[0] == "cheap"
    assert names(rank(pool, plan("reliability"), known))[0] == "sound"


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4),
    st.floats(1e-3, 1e3),
)
def test_only_the_proportion_of_weights_counts(weights: list[float], factor: float) -> None:
    kinds = ["cost", "reliability", "quality", "latency"][: len(weights)]
    once, scaled = weighed(dict(zip(kinds, weights, strict=True))), weighed(
        {kind: weight * factor for kind, weight in zip(kinds, weights, strict=True)}
    )  # fmt: skip
    assert math.fsum(once) == pytest.approx(1)
    assert once == pytest.approx(scaled)


@given(st.floats(1e-3, 100), st.permutations(["a", "b", "c", "d"]))
def test_no_unit_matters_among_weights(unit: float, order: list[str]) -> None:
    """The ranking stays when all costs are counted in another currency."""
    costs = dict(zip(["a", "b", "c", "d"], [1.0, 2.0, 3.5, 9.0], strict=True))
    under = plan(RoutingObjective("cost", weights={"cost": 0.4, "quality": 0.6}))
    offered = []
    for factor in (1000.0, 1000.0 * unit):
        options = [
            option(name, priced=price(str(costs[name] * factor), "0"), quality=0.2 + 0.15 * costs[name] ** 0.5)
            for name in order
        ]
        offered.append(names(rank(Pool("m", options), under)))
    assert offered[0] == offered[1]


def test_what_has_no_weight_breaks_ties() -> None:
    options = [option("a", priced=price("1", "1")), option("b", priced=price("1", "1"), quality=0.9)]
    under = plan(RoutingObjective("cost", ["quality"], weights={"cost": 1}))
    assert {names(rank(Pool("m", options), under))[0] for _ in range(4)} == {"b"}


def test_fairness_among_weights_is_even_load() -> None:
    pool = Pool("m", [option("busy"), option("idle")])
    known = snapshot({"k:busy": {"successes": 50}, "k:idle": {"successes": 5}})
    assert names(rank(pool, plan(RoutingObjective(weights={"fairness": 1, "quality": 1})), known))[0] == "idle"


@pytest.mark.parametrize(
    ("constraints", "lanes", "told"),
    [
        ({"min_reliability": 0.95}, {"k:bad": {"successes": 50, "failures": 50}}, ("min_reliability", 0.95, 0.55)),
        ({"min_quality": 0.4}, {}, ("min_quality", 0.4, 0.3)),
        (
            {"max_latency_ms": 200},
            {"k:bad": SLOW},
            ("max_latency_ms", 200, 900),
        ),
    ],
)
def test_a_constraint_excludes_with_its_numbers(
    constraints: dict[str, float], lanes: Any, told: tuple[str, float, float]
) -> None:
    pool = Pool("m", [option("bad", quality=0.3), option("new", quality=0.5)])
    ranked = rank(pool, plan(RoutingObjective("cost", constraints=constraints)), snapshot(lanes))
    assert names(ranked) == ["new"]
    (excluded,) = ranked.ranking.excluded
    assert (excluded.key_id, excluded.constraint, excluded.bound) == ("bad", *told[:2])
    assert excluded.value == pytest.approx(told[2], abs=0.01)
    rest = pool.rest(plan(RoutingObjective("cost", constraints=constraints)), [], snapshot=snapshot(lanes), now=NOW)
    assert [each.key.id for each, _ in rest] == ["new"]


def test_a_key_that_was_excluded_for_its_latency_is_tried_again() -> None:
    pool, under = Pool("m", [option("slow")]), plan(RoutingObjective("cost", constraints={"max_latency_ms": 200}))
    pool.options[0].seen.answered(900_000.0, stream=False, now=NOW)
    known = snapshot()
    assert names(rank(pool, under, known)) == []
    known.take([], now=NOW + 120, now_us=NOW_US)
    again = pool.rank(under, 8, snapshot=known, now=NOW + 120)
    assert names(again) == ["slow"]


def test_a_strategy_ranks_by_its_score_and_may_look_at_what_is_known() -> None:
    strategies = Strategies(lambda name, found: pytest.fail(f"{name}: {found}"))
    looked: list[dict[str, Any]] = []

    def score(candidate: CandidateView) -> float:
        looked.append({name: getattr(candidate, name) for name in dir(CandidateView) if not name.startswith("_")})
        return float(candidate.metadata["level"])

    strategies.register("Levels", score, "by level", overwrite=False)
    options = [option("low"), option("high", priced=price("1", "2"))]
    for each, level in zip(options, (1, 7), strict=True):
        each.key.metadata = {"level": level}
    known = snapshot({"k:low": {"failures": 1, "latency_us": 2000, "in_flight": 3}})
    assert names(rank(Pool("m", options), plan("levels", strategies), known)) == ["high", "low"]
    low, high = looked
    assert (low["key_id"], low["provider_id"], low["model"], low["quota_group"]) == ("low", "p", "m", "g-low")
    assert (low["cost_usd"], high["cost_usd"]) == (None, 0.002)
    assert (low["failure_share"], low["latency_ms"], low["in_flight"]) == (pytest.approx(0.5), 2.0, 3)
    assert (high["failure_share"], high["latency_ms"], high["in_flight"], high["lanes"]) == (0, None, 0, ())
    assert (low["weight"], low["quality"], low["metadata"], low["lanes"][0].id) == (1, 0.5, {"level": 1}, "k:low")


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), "high", None, True, [1.0], 10**400])
def test_a_strategy_that_returns_nonsense_puts_that_candidate_last_and_is_reported(nonsense: Any) -> None:
    reported: list[tuple[str, object]] = []
    strategies = Strategies(lambda name, found: reported.append((name, found)))
    strategies.register("odd", lambda each: nonsense if each.key_id == "a" else -5.0, "", overwrite=True)
    for objective in ("odd", RoutingObjective("cost", ["odd"]), RoutingObjective(weights={"odd": 1, "quality": 1})):
        assert names(rank(Pool("m", [option("a"), option("b")]), plan(objective, strategies))) == ["b", "a"]
    assert {name for name, _ in reported} == {"odd"}
    assert len(reported) == 3


def test_a_strategy_that_raises_costs_nobody_a_request() -> None:
    reported: list[object] = []
    strategies = Strategies(lambda name, found: reported.append(found))
    strategies.register("broken", lambda each: 1 / 0, "", overwrite=True)
    assert sorted(names(rank(Pool("m", [option("a"), option("b")]), plan("broken", strategies)))) == ["a", "b"]
    assert [type(found) for found in reported] == [ZeroDivisionError] * 2


@pytest.mark.parametrize("name", ["", "cost", "Speed", "9lives", "with space", "x" * 65, None, 5, "späth"])
def test_a_name_that_is_none_or_taken_is_refused(name: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Strategies(lambda name, found: None).register(name, lambda each: 1.0, "", overwrite=True)
    assert caught.value.field == "name"


def test_a_strategy_of_another_router_is_known_by_name_and_refused() -> None:
    Strategies(lambda name, found: None).register("elsewhere", lambda each: 1.0, "", overwrite=True)
    for objective in (
        RoutingObjective("elsewhere"),
        RoutingObjective("cost", ["elsewhere"]),
        RoutingObjective(weights={"elsewhere": 1}),
    ):
        with pytest.raises(InvalidRequestError, match="not registered with this router"):
            plan(objective)


def test_strategies_are_listed_after_what_is_built_in_and_replaced_only_when_asked() -> None:
    strategies = Strategies(lambda name, found: None)
    strategies.register("mine", lambda each: 1.0, "mine, first", overwrite=False)
    with pytest.raises(InvalidRequestError, match="overwrite=True"):
        strategies.register("MINE", lambda each: 2.0, "again", overwrite=False)
    with pytest.raises(InvalidRequestError, match="callable"):
        strategies.register("other", "no", "", overwrite=False)  # type: ignore[arg-type]
    strategies.register("mine", lambda each: 2.0, "mine, second", overwrite=True)
    listed = [(each.name, each.builtin) for each in strategies.listed()]
    assert listed == [
        ("cost", True), ("reliability", True), ("fairness", True), ("latency", True), ("quality", True),
        ("mine", False),
    ]  # fmt: skip
    assert all(each.description for each in strategies.listed())


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"weights": {"cost": 0}}, "weights"), ({"weights": {"cost": 0, "quality": 0.0}}, "weights"),
        ({"weights": {"speed": 1, "latency": 2}}, "weights"), ({"weights": {"cost": float("inf")}}, "weights.cost"),
        ({"weights": {"cost": "much"}}, "weights.cost"), ({"weights": {"nobody": 1}}, "weights.nobody"),
        ({"primary": "nobody"}, "primary"), ({"constraints": {"max_latency_ms": -1}}, "constraints.max_latency_ms"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_field(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        RoutingObjective(**fields)
    assert caught.value.field == path


def test_an_objective_survives_as_plain_data() -> None:
    objective = RoutingObjective(
        "cost", ["speed"], {"max_cost_per_request": "0.0100", "min_quality": 0.5}, {"cost": 2, "quality": 1.5}
    )
    assert objective_of(key_of(objective)) == objective
    assert key_of(objective_of(("gone-by-now", (), (), ()))) == ("gone-by-now", (), (), ())


@given(st.data())
def test_an_order_is_best_first_whatever_is_known(data: st.DataObject) -> None:
    """Property: nobody who is offered later is better by more than what counts as equal."""
    count = data.draw(st.integers(1, 12))
    options: list[Option] = []
    lanes: dict[str, dict[str, int]] = {}
    for number in range(count):
        made = option(
            f"k{number}", priced=data.draw(st.sampled_from(PRICES)),
            quality=data.draw(st.floats(0, 1)), weight=data.draw(st.sampled_from([0.5, 1.0, 3.0])),
        )  # fmt: skip
        options.append(made)
        if data.draw(st.booleans()):
            lanes[f"k:k{number}"] = {
                name: data.draw(st.integers(0, 50))
                for name in ("successes", "failures", "latency_us", "in_flight", "requests_total")
            }
    kinds = ["cost", "reliability", "fairness", "latency", "quality"]
    weights = data.draw(st.dictionaries(st.sampled_from(kinds), st.floats(0.01, 10), max_size=4))
    objective = RoutingObjective(data.draw(st.sampled_from(sorted(weights) or kinds)), weights=weights)
    compiled = plan(objective)
    ranked = rank(Pool("m", options), compiled, snapshot(lanes), count=count)
    values = [compiled.value(standing.values) for standing in ranked.ranking.standings]
    assert sorted(names(ranked)) == sorted(each.key.id for each in options)
    assert all(math.isfinite(value) for value in values)
    equals = ranked.ranking.equals
    assert all(value <= compiled.equal_to(min(values)) for value in values[:equals])
    assert values[equals:] == sorted(values[equals:])
    assert all(value > compiled.equal_to(min(values)) for value in values[equals:])


def test_a_new_look_at_lanes_is_taken_into_account_and_an_old_order_kept_without_one() -> None:
    pool, known, under = Pool("m", [option("a"), option("b")]), snapshot(), plan("reliability")
    rank(pool, under, known)
    kept = pool.order(under, known, NOW)
    assert pool.order(under, known, NOW) is kept
    known.take([lane("k:a", successes=1, failures=9)], now=NOW, now_us=NOW_US)
    assert {names(rank(pool, under, known))[0] for _ in range(2)} == {"b"}


def test_an_order_that_lanes_do_not_move_is_kept_while_they_do() -> None:
    pool, known = Pool("m", [option("a"), option("b")]), snapshot()
    orders = [pool.order(plan("cost"), known, NOW) for _ in range(1)]
    under = plan("cost")
    first = pool.order(under, known, NOW)
    known.take([lane("k:a", successes=1, failures=9)], now=NOW, now_us=NOW_US)
    assert pool.order(under, known, NOW) is first
    assert orders[0] is not first
