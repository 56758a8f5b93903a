"""What is left of a key's quota, and how long it will last."""

from datetime import UTC, datetime

from pydantic import AwareDatetime, Field

from apikeyrouter.domain.models.case_folding import CaseFolding
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.time_window import TimeWindow

__all__ = [
    "CapacityEstimate",
    "CapacityState",
    "ExhaustionPrediction",
    "LimitForecast",
    "Quota",
    "QuotaState",
    "QuotaUnit",
    "TimeWindow",
]


class CapacityState(CaseFolding):
    """How much is left, in the order in which routing turns away."""

    Abundant = "abundant"
    Constrained = "constrained"
    Critical = "critical"
    Exhausted = "exhausted"


class QuotaUnit(CaseFolding):
    """What a quota counts."""

    Tokens = "tokens"
    Requests = "requests"
    InputTokens = "input_tokens"
    OutputTokens = "output_tokens"


class Quota(EdgeModel):
    """A key's own quota. `total_capacity` None: only counted, never refused.

    It begins anew at the calendar's boundaries in `timezone`. Where `anchor_at` is given it begins anew then and every
    window after it, next at `resets_at`. `resets`: how often it was set back.
    """

    time_window: TimeWindow
    unit: QuotaUnit = QuotaUnit.Tokens
    total_capacity: int | None = Field(default=None, ge=0, le=2**53 - 1)
    timezone: str = "UTC"
    anchor_at: AwareDatetime | None = None
    resets_at: AwareDatetime | None = None
    resets: int = Field(default=0, ge=0)


def _now() -> datetime:
    return datetime.now(UTC)


class QuotaState(EdgeModel):
    """A key's quota in one window. `total_capacity` None: not known yet. Amounts in `unit`, `reset_at` aware UTC.

    `time_window` None: shorter than an hour. `limit`: the limit that it is about, as errors call it; "" where none is
    known. `used_capacity` has what requests under way were admitted for.
    """

    key_id: str = Field(min_length=1)
    time_window: TimeWindow | None = TimeWindow.Daily
    limit: str = ""
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
    """When a quota will run out at the present rate: `expected_at`; with `confidence`, `earliest_at` to `latest_at`.

    None: not before it resets. `probability`: that it runs out before it resets. `burn_rate_per_hour` in `unit`.
    """

    key_id: str
    time_window: TimeWindow | None
    limit: str = ""
    unit: str = "tokens"
    probability: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    expected_at: AwareDatetime | None = None
    earliest_at: AwareDatetime | None = None
    latest_at: AwareDatetime | None = None
    reset_at: AwareDatetime | None = None
    burn_rate_per_hour: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    confidence: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)


class LimitForecast(EdgeModel):
    """When a limit will be used up at the present rate, as `ExhaustionPrediction` has it; None: not before it resets.

    `probability`: that it is used up before then. `per_hour`: what is used, in the limit's unit.
    """

    probability: float = Field(ge=0, le=1, allow_inf_nan=False)
    expected_at: AwareDatetime | None = None
    earliest_at: AwareDatetime | None = None
    latest_at: AwareDatetime | None = None
    per_hour: float = Field(ge=0, allow_inf_nan=False)
    confidence: float = Field(ge=0, le=1, allow_inf_nan=False)


class CapacityEstimate(EdgeModel):
    """What is left with its uncertainty: `remaining` between `lower` and `upper`; None: unlimited or not known."""

    key_id: str
    unit: str = "tokens"
    remaining: int | None = None
    lower: int | None = None
    upper: int | None = None
    confidence: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    method: str = ""
