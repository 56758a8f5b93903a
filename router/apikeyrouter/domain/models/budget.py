"""Budgets as people declare and read them; the ledger's `ScopeConfig` is what enforces them."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

from pydantic import AwareDatetime, ConfigDict, Field, PrivateAttr, ValidationError

from apikeyrouter.domain.models.accounting import SuspenseRule, UnpricedRule
from apikeyrouter.domain.models.case_folding import CaseFolding
from apikeyrouter.domain.models.edge import EdgeModel, invalid
from apikeyrouter.domain.models.money import Dollars, Money
from apikeyrouter.domain.models.request_intent import NAME_LENGTH_MAX
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.time_window import TimeWindow

__all__ = [
    "Budget",
    "BudgetCheckResult",
    "BudgetForecast",
    "BudgetScope",
    "BudgetStatus",
    "EnforcementMode",
    "TimeWindow",
]

LIMIT_DOLLARS_MAX = Decimal(9_007_199)
"""Largest limit that is counted exactly: 2^53 nano-dollars, rounded down to whole dollars."""


class BudgetScope(CaseFolding):
    """Whose spending a budget bounds."""

    Global = "global"
    Provider = "provider"
    Key = "key"
    Team = "team"
    Client = "client"
    Policy = "policy"
    PerProvider = "provider"
    PerKey = "key"
    PerTeam = "team"
    PerClient = "client"


class EnforcementMode(CaseFolding):
    """Hard: nothing is admitted that could break the limit. Soft: served, marked, and told as an event."""

    Hard = "hard"
    Soft = "soft"


class Budget(EdgeModel):
    """A limit on spending in a period. Money is Decimal dollars.

    `limit` and `enforcement_mode` may be assigned; on a budget that came from the router the change takes effect
    before the next request. Everything else is read-only. `current_spending` is as of when the object was read.
    `unpriced`: what becomes of a request whose price is unknown (`flat` dollars each under `flat`). `suspense`: what
    becomes of the money of a request whose end was never told, `suspense_after_seconds` after its lease ran out.
    """

    model_config = ConfigDict(frozen=False, validate_assignment=True)

    id: str = Field(min_length=1, max_length=NAME_LENGTH_MAX)
    name: str = ""
    scope: BudgetScope = BudgetScope.Global
    scope_id: str | None = Field(default=None, min_length=1, max_length=NAME_LENGTH_MAX)
    limit: Money = Field(gt=0, le=LIMIT_DOLLARS_MAX, allow_inf_nan=False)
    period: TimeWindow = TimeWindow.Daily
    enforcement_mode: EnforcementMode = EnforcementMode.Hard
    current_spending: Money = Decimal(0)
    timezone: str = "UTC"
    unpriced: UnpricedRule = UnpricedRule.DENY
    flat: Money = Field(default=Decimal(0), ge=0, allow_inf_nan=False)
    suspense: SuspenseRule = SuspenseRule.CHARGE
    suspense_after_seconds: int = Field(default=3600, ge=60, le=30 * 86_400)
    resets_at: AwareDatetime | None = None

    _on_change: "Callable[[Budget], None] | None" = PrivateAttr(default=None)

    def watch(self, on_change: "Callable[[Budget], None]") -> None:
        """Call `on_change(budget)` after each assignment; what it raises undoes it. One watcher per object."""
        self._on_change = on_change

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
            return
        if name not in ("limit", "enforcement_mode"):
            raise InvalidRequestError("cannot be assigned; use update_budget", field=name)
        before = getattr(self, name)
        try:
            super().__setattr__(name, value)
        except ValidationError as exc:
            raise invalid(exc) from exc
        if self._on_change is not None:
            try:
                self._on_change(self)
            except BaseException:
                super().__setattr__(name, before)
                raise

    @property
    def remaining(self) -> Decimal:
        """The limit minus what is spent; never below 0."""
        return Dollars(max(Decimal(0), self.limit - self.current_spending))


class BudgetForecast(EdgeModel):
    """When a budget will be used up if spending goes on as it did.

    `burn_per_hour` in dollars, of the next hour, with its standard error; it was seen over `observed_seconds`.
    `used_up_at` is as likely too early as too late; `earliest` … `latest` holds the truth in four of five cases. None:
    not before the budget resets (or not within ten years). `lasts`: whether it will probably last until then;
    `confidence` 0 … 1 is the probability of what `lasts` says.
    """

    burn_per_hour: Money
    burn_error: Money
    observed_seconds: float
    used_up_at: datetime | None = None
    earliest: datetime | None = None
    latest: datetime | None = None
    lasts: bool = True
    confidence: float = Field(default=0.5, ge=0, le=1)


class BudgetInCell(EdgeModel):
    """What of a budget is in one cell of the accounting, in dollars. `granted`: what its home set aside for the cell.

    `free`: what this cell can still spend before it asks others; negative where more was used than held.
    """

    cell: str
    granted: Money
    settled: Money
    held: Money
    suspense: Money
    free: Money


class BudgetStatus(EdgeModel):
    """A budget's books at one moment, in dollars. `remaining` = limit − settled − held − suspense, never below 0.

    `held`: of requests under way; `suspense`: of requests whose end was never told. `unpriced`: booked beside the limit
    for `unpriced_requests` requests without a price, as far as it became known. `late`: settled after the period that
    it belongs to was forgotten. `forecast` None: nothing is known of how fast it is spent. `cells`: where the
    accounting has several, those that have booked or were granted something in this period, the home first.
    """

    budget_id: str
    scope: BudgetScope
    scope_id: str | None = None
    limit: Money
    settled: Money
    held: Money
    suspense: Money = Decimal(0)
    unpriced: Money = Decimal(0)
    unpriced_requests: int = 0
    late: Money = Decimal(0)
    enforcement_mode: EnforcementMode
    period: TimeWindow
    resets_at: datetime | None = None
    forecast: BudgetForecast | None = None
    cells: tuple[BudgetInCell, ...] = ()

    @property
    def current_spending(self) -> Decimal:
        """What is settled: the same as `settled`."""
        return self.settled

    @property
    def remaining(self) -> Decimal:
        """What is still free."""
        return Dollars(max(Decimal(0), self.limit - self.settled - self.held - self.suspense))

    @property
    def free(self) -> Decimal:
        """The same as `remaining`."""
        return self.remaining

    @property
    def exceeded(self) -> bool:
        """Whether nothing is free any more."""
        return self.remaining == 0


class BudgetCheckResult(EdgeModel):
    """Advice, not a gate: whether a request of this cost would be admitted now, and which budgets would refuse."""

    allowed: bool
    needed: Money | None = None
    remaining: Money | None = None
    violated: list[str] = Field(default_factory=list)
    soft_exceeded: list[str] = Field(default_factory=list)
    reason: str = ""
