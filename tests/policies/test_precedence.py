"""Precedence: whatever the policies, in whatever order they come."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.policy_conflicts import conflicts_among, resolved
from apikeyrouter.domain.models.policy import Policy, PolicyEnforcement
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError
from tests.policies.made import (
    MATTERS,
    OPTIONS,
    allowed_by,
    concerns,
    constraints_of,
    lawful,
    option,
    policies,
    speaks_against,
)


@given(policies())
def test_what_is_left_is_what_the_law_says_word_for_word(found: list[Policy]) -> None:
    assert allowed_by(constraints_of(found)) == lawful(found)


@given(policies(), st.randoms(use_true_random=False))
def test_the_order_of_registration_means_nothing(found: list[Policy], order: random.Random) -> None:
    shuffled = found[:]
    order.shuffle(shuffled)
    one, other = constraints_of(found), constraints_of(shuffled)
    assert one.policy_ids == other.policy_ids
    for each in OPTIONS:
        assert one.verdict(each, "m") == other.verdict(each, "m")
        assert one.watched(each, "m") == other.watched(each, "m")
    told = [conflict.explanation for conflict in conflicts_among(found)]
    assert told == [conflict.explanation for conflict in conflicts_among(shuffled)]


@given(policies())
def test_what_a_hard_policy_denies_no_other_allows(found: list[Policy]) -> None:
    constraints = constraints_of(found)
    for policy in found:
        if policy.enforcement is not PolicyEnforcement.Hard:
            continue
        for each in OPTIONS:
            denied = any(speaks_against(rules, matter, each) for rules in policy.rule_list for matter in MATTERS)
            if denied and concerns(policy, each):
                assert policy.id in dict(constraints.verdict(each, "m").refused)


@given(policies(), policies(count=1))
def test_one_more_hard_policy_never_lets_more_serve(found: list[Policy], more: list[Policy]) -> None:
    hard = [one.model_copy(update={"id": "more", "enforcement": PolicyEnforcement.Hard}) for one in more]
    only_hard = [one for one in found if one.enforcement is not PolicyEnforcement.Soft]
    assert allowed_by(constraints_of([*only_hard, *hard])) <= allowed_by(constraints_of(only_hard))


@given(policies())
def test_without_what_is_soft_at_least_as_much_may_serve_as_hard_policies_allow(found: list[Policy]) -> None:
    relaxed = constraints_of(found).relaxed
    hard = [one for one in found if one.enforcement is PolicyEnforcement.Hard]
    assert allowed_by(relaxed or constraints_of(found)) == lawful(hard)


@given(policies())
def test_shadow_policies_bind_nobody_and_see_what_they_would_refuse(found: list[Policy]) -> None:
    binding = [one for one in found if one.enforcement is not PolicyEnforcement.Shadow]
    constraints = constraints_of(found)
    assert allowed_by(constraints) == allowed_by(constraints_of(binding))
    for shadow in (one for one in found if one.enforcement is PolicyEnforcement.Shadow):
        alone = lawful([shadow.model_copy(update={"enforcement": PolicyEnforcement.Hard})])
        assert {one.key.id for one in OPTIONS if shadow.id not in constraints.watched(one, "m")} == alone


@given(policies())
def test_a_resolved_policy_says_what_its_parts_say_together(found: list[Policy]) -> None:
    parts = [
        one for one in found
        if one.scope.value not in ("provider", "model", "key") and one.enforcement is not PolicyEnforcement.Shadow
    ]  # fmt: skip
    if not parts:
        with pytest.raises(InvalidRequestError):
            resolved([])
        return
    assert allowed_by(constraints_of([resolved(parts)])) == lawful(parts)


@given(policies())
def test_a_conflict_names_both_ids_in_words(found: list[Policy]) -> None:
    for conflict in conflicts_among(found):
        assert len(set(conflict.policy_ids)) == 2
        assert all(repr(policy_id) in conflict.explanation for policy_id in conflict.policy_ids)
        assert conflict.holds in (None, *conflict.policy_ids)


def made(rules: dict[str, Any], **fields: Any) -> Policy:
    """A hard global policy, unless said otherwise."""
    return Policy(**{"name": "p", "rules": rules, **fields})


def test_contradictions_are_explained() -> None:
    wide = made({"allowed_providers": ["p0"], "objective": "cost"}, id="wide")
    team = made({"allowed_providers": ["p1"], "objective": "latency"}, id="team", scope="team", scope_id="t")
    by_matter = {conflict.matter: conflict for conflict in conflicts_among([wide, team])}
    limits = by_matter["providers"]
    assert (limits.policy_ids, limits.holds) == (("team", "wide"), None)
    assert "never loosened" in limits.explanation
    assert "nothing is left" in limits.explanation
    wishes = by_matter["objective"]
    assert wishes.holds == "team"
    assert "narrower" in wishes.explanation
    soft = wide.model_copy(update={"enforcement": PolicyEnforcement.Soft})
    (replaced,) = [conflict for conflict in conflicts_among([soft, team]) if conflict.matter == "providers"]
    assert replaced.holds == "team"
    equals = [made({"max_cost_per_request": n}, id=f"c{n}", enforcement="soft") for n in (1, 2)]
    (tied,) = conflicts_among(equals)
    assert tied.holds == "c1"
    assert "smaller id" in tied.explanation
    first = equals[1].model_copy(update={"priority": 1})
    (decided,) = conflicts_among([equals[0], first])
    assert decided.holds == "c2"
    assert "priority 1" in decided.explanation
    assert conflicts_among([team, made({"allowed_providers": ["p0"]}, id="o", scope="team", scope_id="other")]) == []


def test_the_tightest_amount_holds_under_hard_policies_and_the_narrowest_under_soft_ones() -> None:
    wide = made({"max_cost_per_request": "0.02", "min_success_rate": 0.9}, id="wide")
    team = made({"max_cost_per_request": "0.05", "min_success_rate": 0.95}, id="team", scope="team", scope_id="t")
    default = RoutingObjective()
    limits = constraints_of([wide, team]).objective(None, default, retry=False).constraints
    assert (str(limits["max_cost_per_request"]), limits["min_reliability"]) == ("0.020000000", 0.95)
    soft = wide.model_copy(update={"enforcement": PolicyEnforcement.Soft})
    limits = constraints_of([soft, team]).objective(None, default, retry=False).constraints
    assert (str(limits["max_cost_per_request"]), limits["min_reliability"]) == ("0.050000000", 0.95)
    asked = RoutingObjective("cost", constraints={"max_cost_per_request": "0.01", "min_quality": 0.5})
    limits = constraints_of([wide, team]).objective(asked, default, retry=False).constraints
    assert (str(limits["max_cost_per_request"]), limits["min_quality"]) == ("0.01", 0.5)


def test_caps_of_one_provider_go_to_its_options_alone() -> None:
    one = made({"max_cost_per_request": "0.01", "min_success_rate": 0.9}, scope="provider", scope_id="p0")
    wide = made({"max_cost_per_request": "0.05"}, id="wide")
    constraints = constraints_of([one, wide])
    caps = [constraints.verdict(each, "m") for each in OPTIONS[:2]]
    assert [(cap.cost_max_nanousd, cap.success_min) for cap in caps] == [(10_000_000, 0.9), (50_000_000, 0.0)]
    limits = constraints.objective(None, RoutingObjective(), retry=False).constraints
    assert limits == {"min_reliability": 0.0}  # so that the measure is looked at


def test_preferences_place_by_model_then_tier_then_alias() -> None:
    rules = {"preferred_models": ["n", "m"], "prefer_premium_tier": True, "tier_ranks": ["pro", "basic", "free"]}
    constraints = constraints_of([made(rules)])
    options = [
        option(0, model="m", rank=0), option(1, model="n", tier="free", rank=1), option(2, model="n", rank=2),
        option(3, model="n", tier="unheard-of", rank=1), option(0, model="o", rank=0),
    ]  # fmt: skip
    ordered = sorted(options, key=constraints.placed)
    assert [(each.model, each.key.metadata["tier"]) for each in ordered] == [
        ("n", "pro"), ("n", "unheard-of"), ("n", "free"), ("m", "pro"), ("o", "pro"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "stated", "retry", "primary", "secondary"),
    [
        ({"objective": "latency"}, None, False, "latency", []),
        ({"objective": {"primary": "cost", "secondary": "quality"}}, None, False, "cost", ["quality"]),
        ({"prefer_lowest_cost": True}, None, False, "cost", []),
        ({"prefer_lowest_cost": True, "objective": "quality"}, None, False, "quality", ["cost"]),
        ({"action": "fallback_to_reliable"}, "cost", False, "cost", []),
        ({"action": "fallback_to_reliable"}, "cost", True, "reliability", ["cost"]),
        ({"action": ["prefer_lowest_cost", "fallback_to_reliable"]}, None, True, "reliability", ["cost"]),
        ({"denied_keys": ["k0"]}, "quality", True, "quality", []),
    ],
)
def test_objectives_follow_from_rules(
    rules: dict[str, Any], stated: str | None, retry: bool, primary: str, secondary: list[str]
) -> None:
    asked = None if stated is None else RoutingObjective(stated)
    found = constraints_of([made(rules)]).objective(asked, RoutingObjective(), retry=retry)
    assert (found.primary, list(found.secondary)) == (primary, secondary)


def test_a_soft_wish_for_the_lowest_cost_breaks_the_ties_of_what_was_asked_for() -> None:
    soft = made({"prefer_lowest_cost": True}, enforcement="soft")
    found = constraints_of([soft]).objective(RoutingObjective("quality"), RoutingObjective(), retry=False)
    assert (found.primary, list(found.secondary)) == ("quality", ["cost"])
