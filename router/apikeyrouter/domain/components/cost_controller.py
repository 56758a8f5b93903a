"""Estimates costs, keeps budgets, books what was spent elsewhere. The gate is `reserve`; this is the desk beside it."""

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from apikeyrouter.domain.components.arguments import checking
from apikeyrouter.domain.components.budget_books import BudgetBooks
from apikeyrouter.domain.components.budgets import Money, amount_of, budget_id, budget_of, default_unpriced, rule_of
from apikeyrouter.domain.components.catalogue import BudgetRule, Catalogue
from apikeyrouter.domain.components.recorded_costs import RecordedCosts
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.interfaces.ledger import Ledger
from apikeyrouter.domain.models.accounting import (
    ScopeConfig,
    SuspenseRule,
    UnpricedRule,
)
from apikeyrouter.domain.models.budget import (
    Budget,
    BudgetCheckResult,
    BudgetScope,
    BudgetStatus,
    EnforcementMode,
    TimeWindow,
)
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.cost_estimate import CostEstimate, dollars, nanousd
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import BudgetExceededError, InvalidRequestError

__all__ = ["BudgetExceededError", "Budgets", "CostController", "Quote"]

THRESHOLDS = (50, 80, 90, 100)
"""Percent of a budget's limit at which an event is told, once a period."""
E = TypeVar("E", bound=StrEnum)
Intent = RequestIntent | Mapping[str, Any]


class Budgets(Protocol):
    """Puts budgets into force, here and in every other process."""

    async def declare(self, rule: BudgetRule) -> None:
        """Add or change one. Raises InvalidRequestError for what is declared elsewhere or cannot be counted."""
        ...

    async def withdraw(self, budget_id: str) -> bool:
        """Forget one; whether there was one."""
        ...

    async def refresh(self) -> bool:
        """Take over what other processes have changed; whether there was anything."""
        ...

    def period(self, scope: ScopeConfig, now_us: int) -> tuple[int, int | None]:
        """Start and end of the period that contains `now_us`, in microseconds; the end None: never."""
        ...


class Quote(Protocol):
    """What a request would take."""

    async def __call__(self, intent: RequestIntent, provider_id: str | None, key_id: str | None) -> CostEstimate | None:
        """The estimate for the key, or for the cheapest option there is; None: no price is known."""
        ...


class HeldIn(Protocol):
    """Which policies' budgets a request is in."""

    def __call__(
        self, *, client: str | None, team: str | None, provider_id: str | None, key_id: str | None, model: str
    ) -> Collection[str]:
        """Their ids."""
        ...


@checking(
    "create_budget", "get_budget", "update_budget", "delete_budget", "get_budget_status", "update_spending",
    "check_budget", "reconcile_estimate", "record_actual_cost", "enforce_budget", "estimate_request_cost",
)  # fmt: skip
class CostController:
    """The budgets of this deployment and the cost of its requests. Money is Decimal dollars, exact to nano-dollars."""

    def __init__(
        self,
        catalogue: Catalogue,
        ledger: Ledger,
        budgets: Budgets,
        estimator: TokenEstimator,
        *,
        quote: Quote,
        held_in: HeldIn,
        find: Callable[[str], Awaitable[Facts | None]],
        recorded: RecordedCosts,
        started: Callable[[], Awaitable[None]],
        defer: Callable[[Callable[[], Awaitable[None]]], object],
        emit: Callable[..., None],
        now_us: Callable[[], int],
    ) -> None:
        self._catalogue, self._budgets, self._estimator = catalogue, budgets, estimator
        self._quote, self._held_in, self._started, self._defer = quote, held_in, started, defer
        self._find, self._recorded = find, recorded
        self._emit = emit
        self._passed: dict[str, tuple[int, int]] = {}
        """Per budget: the start of its period, and the largest threshold that was told in it."""
        self._books = BudgetBooks(ledger, period=budgets.period, now_us=now_us)

    # --- budgets -------------------------------------------------------------------------------------------------

    async def create_budget(
        self,
        scope: BudgetScope | str,
        limit: Money,
        period: TimeWindow | str = TimeWindow.Daily,
        enforcement_mode: EnforcementMode | str = EnforcementMode.Hard,
        scope_id: str | None = None,
        *,
        name: str | None = None,
        timezone: str = "UTC",
        unpriced: UnpricedRule | str | None = None,
        flat: Money = 0,
        suspense: SuspenseRule | str = SuspenseRule.CHARGE,
        suspense_after_seconds: int = 3600,
    ) -> Budget:
        """Put a budget into force: here at once, in every process on the store within a second. Idempotent.

        Its id is `<scope>[:<scope_id>]:<name>`, the name that of the period unless given: creating it again with
        another limit or mode changes it, and what was spent stays. What is spent already in this period by requests of
        before is not in it.

        Raises:
            InvalidRequestError: naming the field; also for more budgets than a request can be held in.
        """
        await self._started()
        told = _known(BudgetScope, scope, "scope")
        window = _known(TimeWindow, period, "period")
        mode = _known(EnforcementMode, enforcement_mode, "enforcement_mode")
        named = window.value if name is None else _plain(name)
        return await self._put(
            Budget(
                id=budget_id(told, scope_id, named), name=named, scope=told, scope_id=scope_id,
                limit=amount_of(limit, "limit"), period=window, enforcement_mode=mode, timezone=timezone,
                unpriced=default_unpriced(mode) if unpriced is None else _known(UnpricedRule, unpriced, "unpriced"),
                flat=amount_of(flat, "flat"), suspense=_known(SuspenseRule, suspense, "suspense"),
                suspense_after_seconds=suspense_after_seconds,
            )
        )  # fmt: skip

    async def get_budget(self, budget_id: str) -> Budget:
        """A budget, with what is spent in this period. Assigning its `limit` or `enforcement_mode` takes effect.

        Raises:
            InvalidRequestError: there is none with that id.
        """
        await self._started()
        rule = await self._rule(budget_id)
        return (await self._read([rule]))[0]

    async def list_budgets(self) -> list[Budget]:
        """Every budget: of the configuration file, of policies, and made in code."""
        await self._started()
        await self._budgets.refresh()
        return await self._read(list(self._catalogue.budget_rules().values()))

    async def update_budget(self, budget_id: str, **changes: Any) -> Budget:
        """Change a budget: limit, enforcement_mode, period, timezone, unpriced, flat, suspense and its seconds.

        What is spent stays. A changed period goes on with what was counted where the two overlap.

        Raises:
            InvalidRequestError: unknown id or field, a wrong value, or the budget is a file's or a policy's.
        """
        await self._started()
        rule = await self._rule(budget_id)
        _refuse_foreign(rule)
        fixed = sorted(changes.keys() - _CHANGEABLE)
        if fixed:
            raise InvalidRequestError(f"cannot be changed; there are {', '.join(sorted(_CHANGEABLE))}", field=fixed[0])
        for field in {"limit", "flat"} & changes.keys():
            changes[field] = amount_of(changes[field], field)
        mode = changes.get("enforcement_mode")
        if mode is not None and "unpriced" not in changes and rule.scope.unpriced is not UnpricedRule.FLAT:
            changes["unpriced"] = default_unpriced(_known(EnforcementMode, mode, "enforcement_mode"))
        if "unpriced" in changes and str(changes["unpriced"]).lower() != UnpricedRule.FLAT:
            changes.setdefault("flat", 0)
        told = budget_of(rule).model_dump(exclude={"resets_at"})
        return await self._put(Budget(**{**told, **changes}))

    async def delete_budget(self, budget_id: str) -> None:
        """Forget a budget made in code. What is held in it ends as it does.

        Raises:
            InvalidRequestError: there is none with that id, or it is a file's or a policy's.
        """
        await self._started()
        _refuse_foreign(await self._rule(budget_id))
        if not await self._budgets.withdraw(budget_id):
            raise InvalidRequestError(f"no budget {budget_id!r}", field="budget_id")
        self._books.forget(budget_id)

    async def enforce_budget(
        self, scope: BudgetScope | str, mode: EnforcementMode | str, scope_id: str | None = None
    ) -> None:
        """Make the budgets of a scope (all of them, or one id's), or the budget with that id, hard or soft.

        Raises:
            InvalidRequestError: there is none, or one that would change is a file's or a policy's; nothing was changed.
        """
        await self._started()
        hard = _known(EnforcementMode, mode, "mode") is EnforcementMode.Hard
        rules = [rule for rule in await self._rules(scope, scope_id) if rule.scope.hard is not hard]
        for rule in rules:
            _refuse_foreign(rule)
        for rule in rules:
            await self.update_budget(rule.scope.id, enforcement_mode=mode)

    async def get_budget_status(self, scope: BudgetScope | str, scope_id: str | None = None) -> BudgetStatus:
        """The books of the budget with that id; given a scope, of its budget with the least share free.

        Raises:
            InvalidRequestError: there is no such budget.
        """
        await self._started()
        rules = await self._rules(scope, scope_id)
        statuses = await self._books.statuses(rules)
        return min(statuses, key=lambda status: status.remaining / status.limit)

    async def sample(self) -> None:
        """Note what every budget has spent by now, for forecasts, and tell of each that passed a threshold.

        Called now and then.
        """
        rules = self._catalogue.budget_rules()
        for id_, state in (await self._books.sample(list(rules.values()))).items():
            spent, limit = state.settled + state.held + state.suspense, rules[id_].scope.limit_nanousd
            passed = max((percent for percent in THRESHOLDS if spent * 100 >= limit * percent), default=0)
            start, told = self._passed.get(id_, (-1, 0))
            if passed > (told if start == state.starts_at_us else 0):
                resets_at = self._books.resets_at(rules[id_].scope)
                self._emit(
                    "budget.threshold", scope=id_, percent=passed, limit_nanousd=limit, spent_nanousd=spent,
                    resets_at_us=None if resets_at is None else int(resets_at.timestamp() * 1e6),
                )  # fmt: skip
            self._passed[id_] = (state.starts_at_us, max(passed, told if start == state.starts_at_us else 0))

    async def _put(self, budget: Budget) -> Budget:
        rule = rule_of(budget, source="code")
        _refuse_foreign(self._catalogue.budget_rules().get(rule.scope.id, rule))
        await self._budgets.declare(rule)
        return (await self._read([rule]))[0]

    async def _rule(self, id_: str) -> BudgetRule:
        rule = self._catalogue.budget_rules().get(id_)
        if rule is None:
            await self._budgets.refresh()
            rule = self._catalogue.budget_rules().get(id_)
        if rule is None:
            raise InvalidRequestError(f"no budget {id_!r}", field="budget_id")
        return rule

    async def _rules(self, scope: BudgetScope | str, scope_id: str | None) -> list[BudgetRule]:
        kind = scope if isinstance(scope, BudgetScope) else BudgetScope.lookup(scope)
        if kind is None or (not isinstance(scope, BudgetScope) and scope in self._catalogue.budget_rules()):
            return [await self._rule(scope)]
        await self._budgets.refresh()
        found = [
            rule
            for rule in self._catalogue.budget_rules().values()
            if rule.kind == kind.value and scope_id in (None, rule.target)
        ]
        if not found:
            of = f" of {scope_id!r}" if scope_id else ""
            raise InvalidRequestError(f"there is no budget with scope {kind.value}{of}", field="scope")
        return found

    async def _read(self, rules: Sequence[BudgetRule]) -> list[Budget]:
        states = await self._books.states(rules)
        budgets = []
        for rule in rules:
            state = states[rule.scope.id]
            budget = budget_of(rule).model_copy(
                update={"current_spending": dollars(state.settled), "resets_at": self._books.resets_at(rule.scope)}
            )
            budget.watch(self._reassign)
            budgets.append(budget)
        return budgets

    def _reassign(self, budget: Budget) -> None:
        """An assigned limit or mode, in force before the next request."""
        rule = self._catalogue.budget_rules().get(budget.id)
        if rule is None:
            raise InvalidRequestError(f"budget {budget.id!r} is gone", field="budget_id")
        _refuse_foreign(rule)
        changes = {"limit": budget.limit, "enforcement_mode": budget.enforcement_mode}

        async def change() -> None:
            await self.update_budget(budget.id, **changes)

        self._defer(change)

    # --- one request ---------------------------------------------------------------------------------------------

    async def estimate_request_cost(
        self, request: Intent, provider_id: str | None = None, key_id: str | None = None
    ) -> CostEstimate | None:
        """What a request is expected to cost, with the bound that a hard budget would hold; None: no known price.

        For `key_id`, else for the cheapest option of `provider_id` (or of any provider).

        Raises:
            InvalidRequestError: the request is wrong, or nothing there serves its model.
        """
        await self._started()
        return await self._quote(RequestIntent.parse(request), provider_id, key_id)

    async def check_budget(
        self,
        request: Intent,
        estimated_cost: CostEstimate | None,
        provider_id: str | None = None,
        key_id: str | None = None,
    ) -> BudgetCheckResult:
        """Advice: whether the budgets have room for a request of that cost now. Nothing is held; the gate is `route`.

        The budgets are those of everybody, of the request's team, client and policies, and of the provider and key if
        named. A hard one needs the bound, where the estimate has one.
        """
        await self._started()
        intent = RequestIntent.parse(request)
        rules = self._applying(intent.team, intent.client, provider_id or intent.provider_id, key_id, intent.model)
        refusing: list[str] = []
        exceeded: list[str] = []
        unbounded: list[str] = []
        least: Decimal | None = None
        for status in await self._books.statuses(rules):
            least = status.remaining if least is None else min(least, status.remaining)
            scope = next(rule.scope for rule in rules if rule.scope.id == status.budget_id)
            needed = _needed(scope, estimated_cost)
            if needed is None:
                unbounded.append(scope.id)
            if needed is None or status.settled + status.held + status.suspense + needed > status.limit:
                (refusing if scope.hard else exceeded).append(scope.id)
        bound = None if estimated_cost is None else estimated_cost.bound
        amount = None if estimated_cost is None else estimated_cost.amount
        return BudgetCheckResult(
            allowed=not refusing, needed=amount if bound is None else bound, remaining=least, violated=refusing,
            soft_exceeded=exceeded,
            reason=_why_not(refusing, unbounded),
        )  # fmt: skip

    async def update_spending(
        self, budget_id: str, amount: Money, *, idempotency_key: str | None = None
    ) -> BudgetStatus:
        """Book money that was spent elsewhere in one budget, and only there; the books after it.

        It is booked whatever the limit: it is spent. With an `idempotency_key` a repeat within a day books nothing.

        Raises:
            InvalidRequestError: there is no such budget, or the amount is none that can be counted.
        """
        await self._started()
        rule = await self._rule(budget_id)
        spent = nanousd(amount_of(amount, "amount"))
        await self._books.book(
            [rule.scope.id], spent, None if idempotency_key is None else f"{budget_id}\n{idempotency_key}"
        )
        return (await self._books.statuses([rule]))[0]

    async def record_actual_cost(
        self,
        request_id: str,
        actual_cost: Money,
        *,
        provider_id: str | None = None,
        key_id: str | None = None,
        team: str | None = None,
        client: str | None = None,
        model: str | None = None,
    ) -> Decimal:
        """Book what a request really cost in every budget that applies to it; the dollars that this call added.

        `request_id` is the idempotency key, and the cost is its total: a repeat within a day books nothing, a higher
        total what it is more, exactly, also where processes tell theirs in the same instant. A request that a router
        on the store served lately is booked already, and whoever it was for is known. Of a request that no router
        served, and of no other, say whose it was; its id is any but one of ours. A hard budget that has booked the
        bound of a request, for nobody told what it used, has no more to book for it.

        Raises:
            InvalidRequestError: the amount is none that can be counted; the store remembers no such request, and nobody
                says whose it was, or its id is one of ours (`req_…`); or the amount is less than what is booked for
                the request: the books are sums of what was settled, and only grow. To give money back, raise the
                budget's limit.
        """
        await self._started()
        total = nanousd(amount_of(actual_cost, "actual_cost"))
        facts = await self._find(request_id)
        served = facts is not None and bool(facts.attempts)
        if facts is not None and served:
            team, client, provider_id, key_id = facts.team, facts.client, facts.provider_id, facts.key_id
            model = facts.model
        bounded = facts is not None and facts.cost_estimated
        rules = self._applying(team, client, provider_id, key_id, model or "")
        scopes = [rule.scope.id for rule in rules if not (bounded and rule.scope.hard)]

        async def book(idempotency_key: str, spent: int) -> None:
            await self._books.book(scopes, spent, idempotency_key)

        booked = (facts.cost_nanousd or 0) if facts is not None and served else 0
        foreign = any((team, client, provider_id, key_id)) and not _ROUTED.fullmatch(request_id)
        if facts is None and not foreign:
            return dollars(await self._recorded.raise_to(request_id, total, booked=None, book=book))
        if not scopes and total >= booked:
            return Decimal(0)
        return dollars(await self._recorded.raise_to(request_id, total, booked=booked, book=book))

    async def reconcile_estimate(self, request_id: str, estimated: CostEstimate, actual: Money) -> None:
        """Learn from what a request really cost: the next estimates for its provider and model come closer to it.

        Raises:
            InvalidRequestError: the request is none of the latest on this store, or an amount is no number.
        """
        spent = nanousd(amount_of(actual, "actual"))
        facts = await self._find(request_id)
        if facts is None or not facts.attempts:
            raise InvalidRequestError(f"no request {request_id!r} among the latest", field="request_id")
        self._estimator.learn_cost(
            facts.provider_id, facts.attempts[-1].model, estimated=nanousd(estimated.amount), actual=spent
        )

    def _applying(
        self, team: str | None, client: str | None, provider_id: str | None, key_id: str | None, model: str
    ) -> list[BudgetRule]:
        key = self._catalogue.keys.get(key_id) if key_id is not None else None
        if key is not None and provider_id is None:
            provider_id = key.provider_id
        policies = self._held_in(client=client, team=team, provider_id=provider_id, key_id=key_id, model=model)
        wanted = {("global", ""), ("team", team), ("client", client), ("provider", provider_id), ("key", key_id)}
        wanted.update(("policy", policy_id) for policy_id in policies)
        return [rule for rule in self._catalogue.budget_rules().values() if (rule.kind, rule.target) in wanted]


_ROUTED = re.compile(r"req_(?:[0-9a-f]{27}|[0-9a-f]{32})")
"""The ids of requests that a router has named."""
_CHANGEABLE = frozenset({
    "limit", "enforcement_mode", "period", "timezone", "unpriced", "flat", "suspense", "suspense_after_seconds",
})  # fmt: skip


def _refuse_foreign(rule: BudgetRule) -> None:
    if rule.source != "code":
        where = "in the configuration file" if rule.source == "file" else f"by policy {rule.target!r}"
        raise InvalidRequestError(f"budget {rule.scope.id!r} is declared {where}; change it there", field="budget_id")


def _why_not(refusing: Sequence[str], unbounded: Collection[str]) -> str:
    """The budgets that refuse, and why."""
    full = [id_ for id_ in refusing if id_ not in unbounded]
    told = [f"no room in budget {', '.join(full)}"] if full else []
    if unbounded:
        told.append(
            f"budget {', '.join(unbounded)} refuses what has no price or no upper bound; an estimate that is made while"
            " it is in force has one"
        )
    return "; ".join(told)


def _needed(scope: ScopeConfig, cost: CostEstimate | None) -> Decimal | None:
    """What a scope would hold; None: it refuses what cannot be priced."""
    if cost is not None and (cost.bound is not None or not scope.hard):
        return cost.bound if scope.hard else cost.amount
    if scope.unpriced is UnpricedRule.FLAT:
        return dollars(scope.flat_nanousd)
    return Decimal(0) if scope.unpriced is UnpricedRule.METER or not scope.hard else None


def _plain(name: str) -> str:
    if not name or ":" in name or not name.isprintable():
        raise InvalidRequestError("must be printable text without colons", field="name")
    return name


def _known(kind: type[E], value: E | str, field: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise InvalidRequestError(f"must be one of {', '.join(kind)}", field=field) from None
