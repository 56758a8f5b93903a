"""Contradictions between policies, explained; and several policies as one. Pure."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from apikeyrouter.domain.components.policy_constraints import Constraints
from apikeyrouter.domain.components.policy_rules import MATTERS, Names, read_policy
from apikeyrouter.domain.components.policy_statements import (
    COST,
    OPTION_SCOPES,
    SUCCESS,
    Statement,
    made_of,
    told,
)
from apikeyrouter.domain.components.policy_windows import NEVER
from apikeyrouter.domain.models.cost_estimate import dollars
from apikeyrouter.domain.models.policy import Policy, PolicyConflict, PolicyScope
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["conflicts_among", "resolved"]

_PREFERENCES = ("preferred_models", "objective", "lowest_cost", "premium_tier", "tier_ranks", "fallback_to_reliable")
_RULE_NAMES = {"lowest_cost": "prefer_lowest_cost", "premium_tier": "prefer_premium_tier"}


def _statements(policies: Iterable[Policy]) -> list[Statement]:
    found = [one for policy in policies if policy.enabled for one in made_of(policy, read_policy(policy))]
    return sorted(found, key=lambda one: one.order)


def conflicts_among(policies: Collection[Policy]) -> list[PolicyConflict]:
    """Every pair of policies that may apply to one request and want different things, in order of precedence."""
    found: dict[tuple[tuple[str, str], str], PolicyConflict] = {}
    for first, second in itertools.combinations(_statements(policies), 2):
        if first.policy.id == second.policy.id or not _meet(first.policy, second.policy):
            continue
        for conflict in itertools.chain(_limits(first, second), _preferences(first, second)):
            found.setdefault((conflict.policy_ids, conflict.matter), conflict)
    return list(found.values())


def _meet(one: Policy, other: Policy) -> bool:
    """Whether one request, or one option, may be in both scopes."""
    return one.scope is not other.scope or one.scope_id == other.scope_id


def _limits(first: Statement, second: Statement) -> Iterator[PolicyConflict]:
    """`first` precedes. A hard limit of either holds beside the other's; a soft one of the second yields."""
    for matter in set(first.matters) & set(second.matters):
        wants, others = _wants(first, matter), _wants(second, matter)
        if wants == others:
            continue
        pair = (first.policy.id, second.policy.id)
        if not second.hard:
            why = f"{_why(first, second)}, and {told(second.policy)} is soft: {wants} holds, {others} does not"
            yield PolicyConflict(policy_ids=pair, matter=matter, holds=first.policy.id, explanation=why)
            continue
        left = _left(first, second, matter)
        why = (
            f"{told(first.policy)} wants {wants}, and {told(second.policy)} is hard and wants {others}: "
            f"a hard limit can be tightened, never loosened, so both hold{left}"
        )
        yield PolicyConflict(policy_ids=pair, matter=matter, holds=None, explanation=why)


def _left(first: Statement, second: Statement, matter: str) -> str:
    """What is left when both hold, where that can be said."""
    if matter == COST:
        least = min(rules for one in (first, second) if (rules := one.rules.cost_max_nanousd) is not None)
        return f": at most {dollars(least)} dollars"
    if matter == SUCCESS:
        return f": at least {max(first.rules.success_min or 0, second.rules.success_min or 0)}"
    one, other = first.rules.allowed.get(matter), second.rules.allowed.get(matter)
    if one is None or other is None or one.patterns or other.patterns:
        return ""
    denied = {name for rules in (first.rules, second.rules) for name in _names(rules.denied.get(matter))}
    both = sorted((one.names & other.names) - denied)
    return f": {', '.join(both)} is left" if both else ": nothing is left, and every request is refused"


def _names(names: Names | None) -> frozenset[str]:
    return frozenset() if names is None else names.names


def _wants(statement: Statement, matter: str) -> str:
    rules = statement.rules
    if matter == COST:
        return f"at most {dollars(rules.cost_max_nanousd or 0)} dollars a request"
    if matter == SUCCESS:
        return f"a success rate of at least {rules.success_min}"
    allowed, denied = rules.allowed.get(matter), rules.denied.get(matter)
    parts = [f"{matter} {allowed}"] if allowed is not None else []
    parts += [f"no {matter} {denied}"] if denied is not None else []
    return " and ".join(parts)


def _preferences(first: Statement, second: Statement) -> Iterator[PolicyConflict]:
    if (first.policy.scope in OPTION_SCOPES) != (second.policy.scope in OPTION_SCOPES):
        return
    for name in _PREFERENCES:
        wants, others = getattr(first.rules, name), getattr(second.rules, name)
        if wants is not None and others is not None and wants != others:
            rule = _RULE_NAMES.get(name, name)
            why = f"{_why(first, second)}: its {rule} holds, that of {told(second.policy)} does not"
            pair = (first.policy.id, second.policy.id)
            yield PolicyConflict(policy_ids=pair, matter=rule, holds=first.policy.id, explanation=why)


def _why(first: Statement, second: Statement) -> str:
    """Why the first precedes the second."""
    if first.rank != second.rank:
        return f"{told(first.policy)} is narrower than {told(second.policy)}"
    one, other = first.policy.priority, second.policy.priority
    if one != other:
        return f"{told(first.policy)} has priority {one}, and {told(second.policy)} {other}"
    return f"{told(first.policy)} and {told(second.policy)} are of one scope and priority, and the smaller id wins"


def resolved(policies: Collection[Policy]) -> Policy:
    """One policy that says what these say together, as if all applied to one request at any time.

    Limits are the tightest that hold, preferences those that prevail. Raises InvalidRequestError for no policy at all,
    for an invalid one, and for a set with different rules for different providers, models or keys.
    """
    if not policies:
        raise InvalidRequestError("must have at least one policy", field="policies")
    statements = _statements(policies)
    targets = {(one.policy.scope, one.policy.scope_id) for one in statements if one.of_options}
    if len(targets) > 1:
        raise InvalidRequestError("speak of different options, and cannot be said as one", field="policies")
    constraints = Constraints(statements, preferring=statements, until=NEVER)
    ids = ", ".join(dict.fromkeys(one.policy.id for one in statements))
    narrowest = next(iter(targets), (PolicyScope.Global, None))
    return Policy(
        id="resolved", name=f"resolved from {ids}"[:256], rules=_rules(constraints, statements), scope=narrowest[0],
        scope_id=narrowest[1],
    )  # fmt: skip


def _rules(constraints: Constraints, statements: Sequence[Statement]) -> dict[str, Any]:
    rules: dict[str, Any] = {}
    decided: dict[str, str] = {}
    for statement in constraints.statements:
        for matter in statement.matters:
            by = decided.setdefault(matter, statement.policy.id)
            if statement.hard or by == statement.policy.id:
                _tighten(rules, statement, matter)
    for name in _PREFERENCES:
        value = next((told for one in statements if (told := getattr(one.rules, name)) is not None), None)
        if value is not None:
            rules[_RULE_NAMES.get(name, name)] = list(value) if isinstance(value, tuple) else value
    budget = next((one.rules for one in statements if one.rules.budget_limit is not None), None)
    if budget is not None:
        rules.update(budget_limit=budget.budget_limit, budget_window=budget.budget_window.value)
    if "objective" in rules:
        rules["objective"] = rules["objective"].model_dump(mode="json")
    return rules


def _tighten(rules: dict[str, Any], statement: Statement, matter: str) -> None:
    told_ = statement.rules
    if matter == COST and told_.cost_max_nanousd is not None:
        mine = dollars(told_.cost_max_nanousd)
        rules[COST] = min(rules.get(COST, mine), mine)
    elif matter == SUCCESS and told_.success_min is not None:
        rules[SUCCESS] = max(rules.get(SUCCESS, 0.0), told_.success_min)
    elif matter in MATTERS:
        denied, allowed = told_.denied.get(matter), told_.allowed.get(matter)
        if denied is not None:
            rules[f"denied_{matter}"] = sorted({*rules.get(f"denied_{matter}", ()), *denied.names, *denied.patterns})
        if allowed is not None:
            names = [*sorted(allowed.names), *allowed.patterns]
            before = rules.get(f"allowed_{matter}")
            rules[f"allowed_{matter}"] = names if before is None else _common(before, names)


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """What two lists of names and patterns both mean."""
    first, second = Names.of(one, folds=False), Names.of(other, folds=False)
    both = {name for name in first.names if second.has(name)} | {name for name in second.names if first.has(name)}
    return sorted(both | (set(first.patterns) & set(second.patterns)))
