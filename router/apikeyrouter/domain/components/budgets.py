"""Budgets as people write them and as the ledger counts them: the same thing in two shapes. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from apikeyrouter.domain.components.catalogue import BudgetRule
from apikeyrouter.domain.components.policy_rules import RuleSet
from apikeyrouter.domain.models.accounting import (
    SCOPES_PER_CANDIDATE_MAX,
    SHARED_SCOPES_MAX,
    ScopeConfig,
    UnpricedRule,
)
from apikeyrouter.domain.models.budget import LIMIT_DOLLARS_MAX, Budget, BudgetScope, EnforcementMode, TimeWindow
from apikeyrouter.domain.models.cost_estimate import dollars, nanousd
from apikeyrouter.domain.models.policy import Policy, PolicyEnforcement, PolicyScope
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = [
    "Money",
    "amount_of",
    "budget_id",
    "budget_of",
    "default_unpriced",
    "policy_budgets",
    "refuse_crowds",
    "rule_of",
]

Money = Decimal | int | float | str
_CANDIDATE_KINDS = (BudgetScope.Provider.value, BudgetScope.Key.value, PolicyScope.Model.value)


def amount_of(value: Money, field: str) -> Decimal:
    """An amount of dollars as it was told. Raises InvalidRequestError: it is none, or more than can be counted."""
    try:
        amount = Decimal(str(value)) if not isinstance(value, bool) else Decimal("NaN")
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise InvalidRequestError("must be an amount of dollars, finite and not negative", field=field)
    if amount > LIMIT_DOLLARS_MAX:
        raise InvalidRequestError(f"must be at most {LIMIT_DOLLARS_MAX}", field=field)
    return amount


def budget_id(scope: BudgetScope, scope_id: str | None, name: str) -> str:
    """`<scope>[:<scope id>]:<name>`, e.g. `team:engineering:monthly`. The name has no colon, so that ids are unique."""
    return ":".join(part for part in (scope.value, scope_id, name) if part)


def default_unpriced(mode: EnforcementMode) -> UnpricedRule:
    """What cannot be priced is refused under a hard budget and metered under a soft one, unless said otherwise."""
    return UnpricedRule.DENY if mode is EnforcementMode.Hard else UnpricedRule.METER


def rule_of(budget: Budget, *, source: str) -> BudgetRule:
    """A budget as the catalogue and the ledger take it. Raises InvalidRequestError for one that says half a thing."""
    if (budget.scope is BudgetScope.Global) != (budget.scope_id is None):
        says = "does not go with scope global" if budget.scope_id else f"is required for scope {budget.scope.value}"
        raise InvalidRequestError(says, field="scope_id")
    if (budget.unpriced is UnpricedRule.FLAT) != (budget.flat > 0):
        raise InvalidRequestError("goes with unpriced='flat', and is above 0 then", field="flat")
    scope = ScopeConfig(
        id=budget.id, limit_nanousd=nanousd(budget.limit), hard=budget.enforcement_mode is EnforcementMode.Hard,
        period=budget.period.period, timezone=budget.timezone, unpriced=budget.unpriced,
        flat_nanousd=nanousd(budget.flat), suspense=budget.suspense,
        suspense_after_us=budget.suspense_after_seconds * 1_000_000,
    )  # fmt: skip
    return BudgetRule(
        scope=scope, kind=budget.scope.value, target=budget.scope_id or "", name=budget.name, source=source
    )


def budget_of(rule: BudgetRule) -> Budget:
    """The budget that a rule came from; nothing spent yet."""
    scope = rule.scope
    return Budget(
        id=scope.id, name=rule.name, scope=BudgetScope(rule.kind), scope_id=rule.target or None,
        limit=dollars(scope.limit_nanousd), period=TimeWindow(scope.period.value), timezone=scope.timezone,
        enforcement_mode=EnforcementMode.Hard if scope.hard else EnforcementMode.Soft,
        unpriced=scope.unpriced, flat=dollars(scope.flat_nanousd), suspense=scope.suspense,
        suspense_after_seconds=scope.suspense_after_us // 1_000_000,
    )  # fmt: skip


def refuse_crowds(rules: Iterable[BudgetRule]) -> None:
    """Raises InvalidRequestError when a request could be in more budgets than one script call holds."""
    held = Counter(_holder(rule) for rule in rules)
    most: Counter[str] = Counter()
    for (kind, _), count in held.items():
        most[kind] = max(most[kind], count)
    own = sum(most[kind] for kind in _CANDIDATE_KINDS)
    shared = sum(most.values()) - own
    if shared > SHARED_SCOPES_MAX:
        raise InvalidRequestError(
            f"a request could be in {shared} budgets besides those of its key; at most {SHARED_SCOPES_MAX} are possible"
        )
    if own > SCOPES_PER_CANDIDATE_MAX:
        raise InvalidRequestError(
            f"a key and its provider could have {own} budgets; at most {SCOPES_PER_CANDIDATE_MAX} are possible"
        )


def _holder(rule: BudgetRule) -> tuple[str, str]:
    """Whose requests are in it; those of every policy of a kind together, for they may all apply."""
    if rule.kind != BudgetScope.Policy.value or rule.holder is None:
        return rule.kind, rule.target
    kind, target = rule.holder
    return ("global", "") if kind == "default" else (kind, target)


def policy_budgets(policy: Policy, rules: Iterable[RuleSet]) -> list[BudgetRule]:
    """The budgets that a policy's rules ask for: hard where the policy is, else soft."""
    found: dict[str, BudgetRule] = {}
    for told in rules:
        if told.budget_limit is None:
            continue
        name = told.budget_window.value
        while budget_id(BudgetScope.Policy, policy.id, name) in found:
            name += "-and"
        mode = EnforcementMode.Hard if policy.enforcement is PolicyEnforcement.Hard else EnforcementMode.Soft
        budget = Budget(
            id=budget_id(BudgetScope.Policy, policy.id, name), name=name, scope=BudgetScope.Policy, scope_id=policy.id,
            limit=told.budget_limit, period=told.budget_window, enforcement_mode=mode, unpriced=default_unpriced(mode),
        )  # fmt: skip
        rule = rule_of(budget, source="policy")
        found[budget.id] = replace(rule, holder=(policy.scope.value, policy.scope_id or ""))
    return list(found.values())
