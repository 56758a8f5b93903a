"""The state of the whole deployment in a few numbers."""

from decimal import Decimal

from pydantic import AwareDatetime, Field

from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.money import Money

__all__ = ["CostSummary", "KeySummary", "QuotaSummary", "SlabSummary", "StateSummary"]


class KeySummary(EdgeModel):
    """Keys by state."""

    total: int = 0
    available: int = 0
    throttled: int = 0
    exhausted: int = 0
    recovering: int = 0
    disabled: int = 0
    invalid: int = 0


class QuotaSummary(EdgeModel):
    """Keys by what is left of their quota. A key without a known quota counts as abundant."""

    abundant_keys: int = 0
    constrained_keys: int = 0
    critical_keys: int = 0
    exhausted_keys: int = 0


class CostSummary(EdgeModel):
    """Money in dollars, of all processes on the store; `total_spent` since the store was made.

    `held` and `suspense` as budgets see them. `unpriced_requests` are those whose price is unknown: in no sum.
    """

    total_spent: Money = Decimal(0)
    held: Money = Decimal(0)
    suspense: Money = Decimal(0)
    unpriced_requests: int = 0


class SlabSummary(EdgeModel):
    """What the process that answers holds for many calls at once: so many slabs, and what of them no call has."""

    held: int = 0
    admitted: int = 0
    stranded_calls: int = 0
    stranded: Money = Decimal(0)


class StateSummary(EdgeModel):
    """What `get_state_summary()` returns, at most a second old. `providers`, and keys of them: those known here."""

    keys: KeySummary = Field(default_factory=KeySummary)
    quotas: QuotaSummary = Field(default_factory=QuotaSummary)
    costs: CostSummary = Field(default_factory=CostSummary)
    slabs: SlabSummary = Field(default_factory=SlabSummary)
    providers: int = 0
    as_of: AwareDatetime | None = None
