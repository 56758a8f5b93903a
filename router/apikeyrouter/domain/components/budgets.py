"""Budgets as people write them and as the ledger counts them: the same thing in two shapes. Pure."""

from collections import Counter
from collections.abc import Iterable

from apikeyrouter.domain.components.catalogue import BudgetRule
from apikeyrouter.domain.models.accounting import (
    SCOPES_PER_CANDIDATE_MAX,
    SHARED_SCOPES_MAX,
    ScopeConfig,
    UnpricedRule,
)
from apikeyrouter.domain.models.budget import Budget, BudgetScope, EnforcementMode, TimeWindow
from apikeyrouter.domain.models.cost_estimate import dollars, nanousd
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["budget_id", "budget_of", "default_unpriced", "refuse_crowds", "rule_of"]

_CANDIDATE_KINDS = (BudgetScope.Provider.value, BudgetScope.Key.value)


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
    most: Counter[str] = Counter()
    for (kind, _), count in Counter((rule.kind, rule.target) for rule in rules).items():
        most[kind] = max(most[kind], count)
    own = sum(most[kind] for kind in _CANDIDATE_KINDS)
    shared = sum(most[kind] for kind in ("global", "team", "client"))
    if shared > SHARED_SCOPES_MAX:
        raise InvalidRequestError(
            f"a request could be in {shared} budgets besides those of its key; at most {SHARED_SCOPES_MAX} are possible"
        )
    if own > SCOPES_PER_CANDIDATE_MAX:
        raise InvalidRequestError(
            f"a key and its provider could have {own} budgets; at most {SCOPES_PER_CANDIDATE_MAX} are possible"
        )
