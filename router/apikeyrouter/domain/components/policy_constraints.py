"""Constraints: all that policies demand of one kind of request, compiled once and asked per pool. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

from apikeyrouter.domain.components.policy_rules import TIER_RANKS, RuleSet
from apikeyrouter.domain.components.policy_statements import (
    COST,
    SUCCESS,
    Statement,
    region_of,
    standing,
    tier_of,
)
from apikeyrouter.domain.components.policy_windows import NEVER, in_force, next_change
from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.models.policy import PolicyEnforcement, PolicyScope
from apikeyrouter.domain.models.routing_decision import ObjectiveType, RoutingObjective

__all__ = ["Constraints", "Verdict", "compile_constraints"]

OBJECTIVES_MAX = 64
"""Objectives of requests whose combination with the policies' is remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What policies say of one option: why it may not serve, and what it may cost and must achieve."""

    refused: tuple[tuple[str, str], ...] = ()
    """(policy id, why), the policy that prevails first."""
    cost_max_nanousd: int | None = None
    success_min: float = 0.0


@dataclass(frozen=True, slots=True)
class _Wish:
    """An objective that a policy asks for."""

    objective: RoutingObjective
    hard: bool
    cheapest_breaks_ties: bool


class Constraints:
    """What applies to requests of one client and team, pinned alike, with the same policy of their own.

    Compared by identity: pools are kept by it. `until`: when it is to be compiled anew, in Unix seconds. `relaxed`:
    without what is soft, None where nothing is. `shadows`: a policy each, that only watches.
    """

    def __init__(self, statements: Sequence[Statement], *, preferring: Sequence[Statement], until: float) -> None:
        self.until = until
        self.statements = tuple(one for one in statements if not _is_shadow(one))
        self.policy_ids = tuple(dict.fromkeys(one.policy.id for one in self.statements))
        self.shadows = {
            id_: tuple(one for one in statements if one.policy.id == id_)
            for id_ in dict.fromkeys(one.policy.id for one in statements if _is_shadow(one))
        }
        self.soft = tuple(dict.fromkeys(one.policy.id for one in self.statements if not one.hard and any(one.matters)))
        self.relaxed: Constraints | None = None
        self._spending = [one for one in statements if one.of_options]
        self.budgets = tuple(dict.fromkeys(one.policy.id for one in statements if not one.of_options))
        """The policies whose budgets every such request is in."""
        self._caps_of_options = any(
            one.of_options and (COST in one.matters or SUCCESS in one.matters) for one in self.statements
        )
        self._keys = _named_keys(self.statements)
        self._verdicts: dict[tuple[str | None, ...], Verdict] = {}
        self._preferred: tuple[str, ...] = ()
        self._tiers: dict[str, int] = {}
        self._unknown_tier = 0
        self._fallback = False
        self._wish: _Wish | None = None
        self._objectives: dict[tuple[int, bool], tuple[RoutingObjective, RoutingObjective]] = {}
        self._prefer([one for one in preferring if not _is_shadow(one)])
        if self.soft:
            hard = [one for one in statements if one.hard or _is_shadow(one)]
            self.relaxed = Constraints(hard, preferring=preferring, until=until)
            self.relaxed.policy_ids, self.relaxed.budgets = self.policy_ids, self.budgets
            self.relaxed._spending = self._spending

    # --- options -------------------------------------------------------------------------------------------------

    def verdict(self, option: Option, asked: str) -> Verdict:
        """What holds for an option of a request for the model `asked`. Keys that nobody names are judged once."""
        key_id = option.key.id
        named = key_id if self._keys is None or key_id in self._keys else None
        which = (asked, option.provider.id, option.model, named, tier_of(option), region_of(option))
        known = self._verdicts.get(which)
        if known is None:
            known = self._verdicts[which] = _verdict(self.statements, option, asked, caps=self._caps_of_options)
        return known

    def spending(self, option: Option, asked: str) -> list[str]:
        """The policies of which an option is in the budgets, beside those that every request is in."""
        return list(dict.fromkeys(one.policy.id for one in self._spending if one.concerns(option, asked)))

    def held_in(self, *, provider_id: str | None, key_id: str | None, model: str) -> list[str]:
        """The policies of which a request would be in the budgets, as far as it is known where it goes."""
        targets = {PolicyScope.Provider: provider_id, PolicyScope.Key: key_id, PolicyScope.Model: model}
        own = (one.policy.id for one in self._spending if targets[one.policy.scope] == one.policy.scope_id)
        return list(dict.fromkeys((*self.budgets, *own)))

    def watched(self, option: Option, asked: str) -> tuple[str, ...]:
        """The shadow policies that would refuse an option."""
        return tuple(id_ for id_, own in self.shadows.items() if _verdict(own, option, asked).refused)

    def placed(self, option: Option) -> tuple[int, int, int]:
        """Where an option stands by preference: by model, then by tier, then by its place in the alias."""
        model = self._preferred.index(option.model) if option.model in self._preferred else len(self._preferred)
        tier = self._tiers.get((tier_of(option) or "").casefold(), self._unknown_tier) if self._tiers else 0
        return model, tier, option.rank

    @property
    def places(self) -> bool:
        """Whether options are preferred by anything."""
        return bool(self._preferred or self._tiers)

    # --- requests ------------------------------------------------------------------------------------------------

    def objective(self, asked: RoutingObjective | None, default: RoutingObjective, *, retry: bool) -> RoutingObjective:
        """The objective of a request that asked for one or not, with the limits of the policies.

        `retry`: an attempt has failed; with fallback_to_reliable the most reliable comes next.
        """
        base = asked or default
        key = (id(base), retry and self._fallback)
        known = self._objectives.get(key)
        if known is not None and known[0] is base:
            return known[1]
        made = self._combined(base, stated=asked is not None, reliable=key[1])
        if len(self._objectives) >= OBJECTIVES_MAX:
            self._objectives.clear()
        self._objectives[key] = (base, made)
        return made

    def _combined(self, base: RoutingObjective, *, stated: bool, reliable: bool) -> RoutingObjective:
        wish, found = self._wish, base
        if wish is not None:
            if wish.hard or not stated:
                found = wish.objective
            elif wish.cheapest_breaks_ties:
                found = _then(base, ObjectiveType.Cost)
        if reliable:
            others = [found.primary, *(name for name in found.secondary if name != ObjectiveType.Reliability)]
            found = RoutingObjective(ObjectiveType.Reliability, others, found.constraints)
        limits = _tightest([base.constraints, found.constraints, self._limits()])
        return found.model_copy(update={"constraints": limits})

    def _limits(self) -> dict[str, Decimal | float]:
        """What the policies limit for all options alike; else it is the options' own."""
        if self._caps_of_options:
            return {"min_reliability": 0.0} if any(SUCCESS in one.matters for one in self.statements) else {}
        cost, success = _caps(_alike(self.statements))
        limits: dict[str, Decimal | float] = {}
        if cost is not None:
            limits[COST] = Decimal(cost).scaleb(-9)
        if success:
            limits["min_reliability"] = success
        return limits

    def _prefer(self, statements: Sequence[Statement]) -> None:
        """Preferences: of each kind the first that anybody states."""
        rules = [one.rules for one in statements]
        self._preferred = _first((one.preferred_models for one in rules), ())
        self._fallback = next(
            (one.fallback_to_reliable for one in rules if one.fallback_to_reliable is not None), False
        )
        if next((one.premium_tier for one in rules if one.premium_tier is not None), False):
            ranks = next((one.tier_ranks for one in rules if one.tier_ranks is not None), TIER_RANKS)
            self._tiers = {tier: 2 * place for place, tier in enumerate(ranks)}
            self._unknown_tier = 2 * len(ranks) - 3  # before the last: what nobody ranked is not known to be the worst
        self._wish = next((wish for one in statements if (wish := _wish_of(one)) is not None), None)


T = TypeVar("T")


def _first(told: Iterable[T | None], otherwise: T) -> T:
    return next((one for one in told if one is not None), otherwise)


def _named_keys(statements: Sequence[Statement]) -> frozenset[str] | None:
    """The keys that statements name; None: any, for there are patterns."""
    found = {str(one.policy.scope_id) for one in statements if one.policy.scope is PolicyScope.Key}
    for one in statements:
        for names in (one.rules.allowed.get("keys"), one.rules.denied.get("keys")):
            if names is not None and names.patterns:
                return None
            found |= names.names if names is not None else frozenset()
    return frozenset(found)


def _is_shadow(statement: Statement) -> bool:
    return statement.policy.enforcement is PolicyEnforcement.Shadow


def _verdict(statements: Sequence[Statement], option: Option, asked: str, *, caps: bool = False) -> Verdict:
    refused: dict[str, str] = {}
    capping: list[tuple[Statement, str]] = []
    for statement, matter in standing(statements, option, asked):
        if matter in (COST, SUCCESS):
            capping.append((statement, matter))
            continue
        why = statement.against(matter, option, asked)
        if why:
            refused.setdefault(statement.policy.id, why)
    if not caps:
        return Verdict(refused=tuple(refused.items()))
    cost, success = _caps(capping)
    return Verdict(refused=tuple(refused.items()), cost_max_nanousd=cost, success_min=success)


def _caps(capping: Iterable[tuple[Statement, str]]) -> tuple[int | None, float]:
    """The least cost and the most success that are asked for."""
    costs, successes = [], [0.0]
    for statement, matter in capping:
        rules: RuleSet = statement.rules
        if matter == COST and rules.cost_max_nanousd is not None:
            costs.append(rules.cost_max_nanousd)
        elif matter == SUCCESS and rules.success_min is not None:
            successes.append(rules.success_min)
    return min(costs, default=None), max(successes)


def _alike(statements: Sequence[Statement]) -> Iterable[tuple[Statement, str]]:
    """As `standing`, for statements that do not depend on the option."""
    decided: dict[str, str] = {}
    for statement in statements:
        for matter in statement.matters:
            by = decided.setdefault(matter, statement.policy.id)
            if statement.hard or by == statement.policy.id:
                yield statement, matter


def _wish_of(statement: Statement) -> _Wish | None:
    rules = statement.rules
    if rules.objective is not None:
        objective = _then(rules.objective, ObjectiveType.Cost) if rules.lowest_cost else rules.objective
        return _Wish(objective, statement.hard, bool(rules.lowest_cost))
    if rules.lowest_cost:
        return _Wish(RoutingObjective(ObjectiveType.Cost), statement.hard, True)
    return None


def _then(objective: RoutingObjective, other: ObjectiveType) -> RoutingObjective:
    """The objective, with one more that breaks its ties."""
    if other in (objective.primary, *objective.secondary):
        return objective
    return RoutingObjective(objective.primary, [*objective.secondary, other], objective.constraints, objective.weights)


def _tightest(limits: Iterable[dict[str, Decimal | float]]) -> dict[str, Decimal | float]:
    found: dict[str, Decimal | float] = {}
    for told in limits:
        for name, bound in told.items():
            known = found.get(name)
            if known is None:
                found[name] = bound
            else:
                found[name] = max(known, bound) if name.startswith("min_") else min(known, bound)
    return found


def compile_constraints(statements: Iterable[Statement], *, preferring: Iterable[Statement], now: float) -> Constraints:
    """The constraints of the statements that are in force at `now` (Unix seconds), in whatever order they come."""
    everything = sorted(statements, key=lambda one: one.order)
    active = [one for one in everything if in_force(one.rules.windows, now)]
    wishing = set(map(id, preferring))
    until = min((next_change(one.rules.windows, now) for one in everything), default=NEVER)
    return Constraints(active, preferring=[one for one in active if id(one) in wishing], until=until)
