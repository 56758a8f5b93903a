"""Explanations: their numbers suffice to make the choice again, and their words say why each of the others lost."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.explaining import confidence, decision_of, explained, scores, told, told_exclusion
from apikeyrouter.domain.components.objectives import Strategies
from apikeyrouter.domain.components.pool import Pool, Ranked
from apikeyrouter.domain.models.accounting import Loss, Reason, RetryKind
from apikeyrouter.domain.models.call import AttemptFacts, Facts, Refusal
from apikeyrouter.domain.models.ranking import Exclusion
from apikeyrouter.domain.models.routing_decision import RoutingDecision, RoutingObjective
from tests.routing.recomputing import rechosen
from tests.routing.ways import NOW_US, OBJECTIVES, option, plan, price, rank, snapshot

PRICES = [None, price("1", "2"), price("3", "1"), price("0", "0")]


def loss(index: int, reason: Reason = Reason.LIMIT, kind: RetryKind = RetryKind.EXACT) -> Loss:
    """A denial of one candidate."""
    return Loss(index=index, reason=reason, where="g:org:m", limit="rpm", retry_at_us=NOW_US, retry_kind=kind)


def facts_of(ranked: Ranked, denied: int = 0, **fields: Any) -> Facts:
    """The facts of a request whose first so many candidates were denied."""
    chosen = ranked.options[denied]
    attempt = AttemptFacts(
        key_id=chosen.key.id, provider_id="p", model="m", rid=bytes(16), ranking=ranked.ranking, place=denied,
        losses=tuple(loss(index) for index in range(denied)),
    )  # fmt: skip
    plain: dict[str, Any] = {"attempts": [attempt], "objective": ranked.ranking.objective[0]}
    return Facts(
        request_id="req_1", operation="chat", model="m", stream=False, team=None, client=None, at_us=NOW_US,
        **{**plain, **fields},
    )  # fmt: skip


@given(st.data())
def test_the_choice_can_be_made_again_from_the_numbers_of_the_decision(data: st.DataObject) -> None:
    strategies = Strategies(lambda name, found: None)
    strategies.register("length", lambda each: len(each.key_id) * 0.5, "", overwrite=True)
    options, lanes = [], {}
    for number in range(data.draw(st.integers(1, 8))):
        options.append(
            option(
                f"k{'x' * data.draw(st.integers(0, 2))}{number}", priced=data.draw(st.sampled_from(PRICES)),
                quality=data.draw(st.floats(0, 1)), weight=data.draw(st.sampled_from([0.5, 1.0, 3.0])),
                rank=data.draw(st.integers(0, 1)),
            )
        )  # fmt: skip
        lanes[options[-1].lanes[0]] = {
            name: data.draw(st.integers(0, 50))
            for name in ("successes", "failures", "latency_us", "in_flight", "requests_total")
        }
        if data.draw(st.integers(0, 4)) == 0:
            lanes[options[-1].lanes[0]]["blocked_until_us"] = NOW_US + 5_000_000
    kinds = [*OBJECTIVES, "length"]
    objective = RoutingObjective(
        data.draw(st.sampled_from(kinds)), data.draw(st.lists(st.sampled_from(kinds), max_size=3)),
        {"min_quality": 0.2}, data.draw(st.dictionaries(st.sampled_from(kinds), st.floats(0.01, 10), max_size=4)),
    )  # fmt: skip
    ranked = rank(Pool("m", options), plan(objective, strategies), snapshot(lanes))
    if not ranked.options:
        return
    denied = data.draw(st.integers(0, len(ranked.options) - 1))
    decision = decision_of(facts_of(ranked, denied))
    assert rechosen(decision) == decision.selected_key_id == ranked.options[denied].key.id
    again = RoutingDecision.model_validate_json(decision.model_dump_json())
    assert rechosen(again) == decision.selected_key_id


@pytest.mark.parametrize("denied", range(4))
def test_ties_are_broken_among_the_best_and_what_is_behind_them_stands_by_the_primary_measure(denied: int) -> None:
    options = [
        option("a", priced=price("2", "2")), option("b", priced=price("1", "1")), option("c", priced=price("3", "3")),
        option("d", priced=price("1", "1")),
    ]  # fmt: skip
    known = snapshot({f"k:{name}": {"successes": 40, "failures": count} for name, count in (("c", 10), ("d", 11))})
    ranked = rank(Pool("m", options), plan(RoutingObjective("reliability", ["cost"])), known)
    assert [each.key.id for each in ranked.options] == ["b", "a", "c", "d"], (
        "d is as good as c, and cheaper, but not best"
    )
    decision = decision_of(facts_of(ranked, denied))
    assert rechosen(decision) == decision.selected_key_id == "bacd"[denied]


def test_every_loser_is_told_why_with_numbers() -> None:
    options = [
        option("full", priced=price("1", "1")), option("won", priced=price("2", "2")),
        option("dear", priced=price("8", "8")), option("bad", priced=price("0", "0"), quality=0.1),
        option("cooling", priced=price("1", "1")),
    ]  # fmt: skip
    under = plan(RoutingObjective("cost", constraints={"min_quality": 0.4}))
    known = snapshot({"k:cooling": {"blocked_until_us": NOW_US + 1_000_000}})
    decision = decision_of(facts_of(rank(Pool("m", options), under, known), denied=1))
    by_key = {verdict.key_id: verdict for verdict in decision.candidates}
    assert {name: verdict.outcome for name, verdict in by_key.items()} == {
        "won": "chosen", "full": "denied", "dear": "outranked", "bad": "excluded", "cooling": "out",
    }  # fmt: skip
    assert decision.candidates[0].key_id == "won"
    assert [by_key[name].parts.get("cost_nanousd") for name in ("full", "won", "dear")] == [1.5e6, 3e6, 12e6]
    assert [by_key[name].score for name in ("full", "won", "dear", "bad")] == [1, 0.5, 0.125, None]
    full = by_key["full"]
    back = datetime.fromtimestamp(NOW_US / 1e6, UTC)
    assert (full.binding, full.limit, full.retry_at) == ("g:org:m", "rpm", back)
    assert full.reason == f"limit rpm of g:org:m is full until {back.isoformat()}"
    assert by_key["bad"].reason == "min_quality is 0.4, and this would be 0.1"
    assert "is out until 2027-01-15T08:00:01" in by_key["cooling"].reason
    assert by_key["dear"].reason == "scores 0.125"
    assert "k: full" not in decision.explanation
    for words in (decision.explanation, explained(decision)):
        assert all(name in words for name in by_key)
        assert "limit rpm of g:org:m is full" in words
    assert [line.count("scores") for line in explained(decision).splitlines()[1:]] == [1, 1, 1, 1, 0]


def test_an_explanation_names_the_objective_with_all_that_belongs_to_it() -> None:
    objective = RoutingObjective("cost", ["latency"], {"min_quality": 0.4}, {"cost": 2, "quality": 1})
    decision = decision_of(facts_of(rank(Pool("m", [option("a"), option("b")]), plan(objective))))
    assert decision.objective == objective
    first = explained(decision).splitlines()[0]
    assert first == (
        "req_1: model m, objective cost with weights cost 2, quality 1, then latency, held to min_quality 0.4; lanes as"
        " of 0 ms before, confidence 0.50"
    )


def test_a_refusal_is_explained_as_well() -> None:
    ranked = rank(Pool("m", [option("a"), option("b")]), plan("fairness"))
    refusal = Refusal(ranking=ranked.ranking, losses=(loss(0), loss(1, Reason.BREAKER_OPEN)))
    decision = decision_of(facts_of(ranked, attempts=[], refusal=refusal))
    assert (decision.selected_key_id, decision.confidence, decision.attempts) == ("", 0, 0)
    assert [verdict.outcome for verdict in decision.candidates] == ["denied", "denied"]
    assert "nothing was held" in decision.explanation
    assert rechosen(decision) == ""


def test_attempts_before_the_last_are_told_as_failed() -> None:
    ranked = rank(Pool("m", [option("a"), option("b")]), plan("fairness"))
    facts = facts_of(ranked)
    before = AttemptFacts(key_id="z", provider_id="p", model="m", rid=b"1", failure="rate_limit_error")
    facts.attempts.insert(0, before)
    decision = decision_of(facts)
    assert [(verdict.key_id, verdict.outcome) for verdict in decision.candidates][-1] == ("z", "failed")
    assert decision.candidates[-1].reason == "was tried before: rate_limit_error"
    assert (decision.attempts, len(decision.hold_ids)) == (2, 2)


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("kind", list(RetryKind))
def test_every_reason_of_the_ledger_has_words(reason: Reason, kind: RetryKind) -> None:
    words = told(loss(0, reason, kind))
    assert "{" not in words
    assert ("until" in words) == (kind is RetryKind.EXACT)


def test_an_exclusion_without_a_number_says_so() -> None:
    words = told_exclusion(Exclusion("k", "p", "m", "max_cost_per_request", 0.01, None))
    assert words == "max_cost_per_request is 0.01, and this would be unknown"


@pytest.mark.parametrize(
    ("objective", "wanted"),
    [("cost", [1, 0.25, 0]), ("reliability", [1, 1, 0.5]), ("quality", [1, 0.5, 0.25]), ("fairness", [1, 1, 1])],
)
def test_scores_compare_with_the_best(objective: str, wanted: list[float]) -> None:
    options = [
        option("a", priced=price("1", "1"), quality=0.8), option("b", priced=price("4", "4"), quality=0.4),
        option("c", quality=0.2),
    ]  # fmt: skip
    ranking = rank(Pool("m", options), objective, snapshot({"k:c": {"failures": 1}})).ranking
    found = dict(zip([each.key_id for each in ranking.standings], scores(ranking), strict=True))
    assert [found[name] for name in "abc"] == pytest.approx(wanted)


def test_weighted_scores_are_ratios_of_weighted_means() -> None:
    options = [option("a", priced=price("1", "1")), option("b", priced=price("4", "4"))]
    ranking = rank(Pool("m", options), plan(RoutingObjective("cost", weights={"cost": 1, "quality": 1}))).ranking
    assert scores(ranking) == pytest.approx([1, 0.5])


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_confidence_falls_with_age_and_with_a_smaller_margin(
    age: float, older: float, winner: float, one: float, other: float
) -> None:
    near, far = winner * max(one, other), winner * min(one, other)
    assert 0 <= confidence(age, winner, near) <= confidence(age, winner, far) <= 1
    assert confidence(age + older, winner, near) <= confidence(age, winner, near)
    assert confidence(age, winner, None) >= confidence(age, winner, far)


def test_confidence_by_its_formula() -> None:
    assert confidence(0, 1.0, None) == 1
    assert confidence(0, 1.0, 1.0) == 0.5
    assert confidence(10, 1.0, 0.5) == pytest.approx(0.375)
    assert confidence(0, 0.0, 0.0) == 0.5
    assert confidence(-5, None, None) == 1


def test_confidence_of_a_decision_rests_on_its_snapshot_and_its_runner_up() -> None:
    options = [option("a", priced=price("1", "1")), option("b", priced=price("4", "4"))]
    ranked = rank(Pool("m", options), "cost")
    assert decision_of(facts_of(ranked)).confidence == pytest.approx(0.875)
    assert decision_of(facts_of(ranked, snapshot_age_us=10_000_000)).confidence == pytest.approx(0.4375)
    assert decision_of(facts_of(ranked, denied=1)).confidence == 1
