"""What is left of a key's quota, and how long it will last."""

from datetime import UTC, datetime

from pydantic import AwareDatetime, Field

from apikeyrouter.domain.models.case_folding import CaseFolding
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.time_window import TimeWindow

__all__ = ["CapacityEstimate", "CapacityState", "ExhaustionPrediction", "QuotaState", "TimeWindow"]


class CapacityState(CaseFolding):
    """How much is left, in the order in which routing turns away."""

    Abundant = "abundant"
    Constrained = "constrained"
    Critical = "critical"
    Exhausted = "exhausted"


def _now() -> datetime:
    return datetime.now(UTC)


class QuotaState(EdgeModel):
    """A key's quota in one window. `total_capacity` None: not known yet. Amounts in `unit`, `reset_at` aware UTC."""

    key_id: str = Field(min_length=1)
    time_window: TimeWindow = TimeWindow.Daily
    capacity_state: CapacityState = CapacityState.Abundant
    total_capacity: int | None = Field(default=None, ge=0)
    used_capacity: int = Field(default=0, ge=0)
    held_capacity: int = Field(default=0, ge=0)
    unit: str = "tokens"
    reset_at: AwareDatetime | None = None
    updated_at: AwareDatetime = Field(default_factory=_now)

    @property
    def remaining_capacity(self) -> int | None:
        """What is neither used nor held; None when the total is not known. Never below 0."""
        if self.total_capacity is None:
            return None
        return max(0, self.total_capacity - self.used_capacity - self.held_capacity)


class ExhaustionPrediction(EdgeModel):
    """When a quota will run out at the present rate: `expected_at` between `earliest_at` and `latest_at`.

    None in `expected_at`: it resets first. `burn_rate_per_hour` in the quota's unit; `confidence` 0 … 1.
    """

    key_id: str
    time_window: TimeWindow
    expected_at: AwareDatetime | None = None
    earliest_at: AwareDatetime | None = None
    latest_at: AwareDatetime | None = None
    reset_at: AwareDatetime | None = None
    burn_rate_per_hour: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    confidence: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)


class CapacityEstimate(EdgeModel):
    """What is left with its uncertainty: `remaining` between `lower` and `upper`; None: unlimited or not known."""

    key_id: str
    unit: str = "tokens"
    remaining: int | None = None
    lower: int | None = None
    upper: int | None = None
    confidence: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    method: str = ""
