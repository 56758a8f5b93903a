"""What somebody states while the router runs: the limits of one lane, and providers. Kept in the store."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError, field_serializer, model_validator

from apikeyrouter.domain.components.entries import group_lane, key_lane, provider_lane
from apikeyrouter.domain.components.limits import SAFE_PROFILE, LimitRow, compile_limits
from apikeyrouter.domain.models.accounting import LIMITS_PER_LANE_MAX, Breaker, LaneConfig
from apikeyrouter.domain.models.edge import EdgeModel, invalid
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.config.compiled import ProviderRecord, pool_name
from apikeyrouter.infrastructure.config.fields import BaseUrl, ConnectionsMax, ModelName, Name
from apikeyrouter.infrastructure.config.limit_profiles import profile_for

__all__ = ["RowName", "StatedLimits", "StatedProvider"]

MODELS_MAX = 256
OPTIONS_MAX = 32
RowName = Literal[
    "rpm", "tpm", "input_tpm", "output_tpm", "rpd", "tpd", "concurrency", "spend_usd", "kind", "burst", "headroom",
    "timezone", "spend_period",
]  # fmt: skip


def _now() -> datetime:
    return datetime.now(UTC)


def _is_none(value: object) -> bool:
    """What was not said is not stored: workers of an older version read the record, too."""
    return value is None


class StatedLimits(EdgeModel):
    """The limits of one lane: what a provider meters for a quota group (`models`: for these; None: for all), or our
    own cap on one key. `profile`: the adapter whose limits refill the same way; "": nobody's that is known.
    """

    quota_group: Name | None = None
    key: Name | None = None
    models: Annotated[list[ModelName], Field(min_length=1, max_length=MODELS_MAX)] | None = None
    rows: Annotated[list[LimitRow], Field(min_length=1, max_length=LIMITS_PER_LANE_MAX)]
    profile: str = ""
    created_at: AwareDatetime = Field(default_factory=_now)

    @model_validator(mode="after")
    def _names_one_lane(self) -> "StatedLimits":
        if (self.quota_group is None) == (self.key is None):
            raise InvalidRequestError("needs a quota_group or a key, and not both")
        if self.key is not None and self.models is not None:
            raise InvalidRequestError(
                "goes with a quota_group; limits of one key are for all its models", field="models"
            )
        self.lane()
        return self

    @field_serializer("rows")
    def told_rows(self, rows: list[LimitRow]) -> list[dict[RowName, int | float | str]]:
        """The rows as they were stated: what was left out is left out, and dollars are numbers."""
        told: list[dict[Any, Any]] = [row.model_dump(exclude_none=True) for row in rows]
        return [
            {name: float(value) if isinstance(value, Decimal) else value for name, value in row.items()} for row in told
        ]

    @property
    def pool(self) -> frozenset[str] | None:
        """The models that share the lane; None: all."""
        return None if self.models is None else frozenset(self.models)

    @property
    def lane_id(self) -> str:
        """The lane that is limited: `g:<group>:<pool>` or `k:<key>`."""
        return key_lane(self.key) if self.key is not None else group_lane(str(self.quota_group), pool_name(self.pool))

    def lane(self) -> LaneConfig:
        """The lane as the ledger takes it. Errors: InvalidRequestError where two rows limit the same."""
        profile = profile_for(self.profile) if self.profile else SAFE_PROFILE
        limits = tuple(limit for row in self.rows for limit in compile_limits(row, profile))
        names = [limit.name for limit in limits]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidRequestError(f"{', '.join(twice)} is limited twice", field="rows")
        if len(limits) > LIMITS_PER_LANE_MAX:
            raise InvalidRequestError(f"a lane has at most {LIMITS_PER_LANE_MAX} limits", field="rows")
        return LaneConfig(id=self.lane_id, limits=limits, fair=self.key is None)


def _phases(told: dict[str, Any]) -> dict[str, Any]:
    from apikeyrouter.infrastructure.config.failure_entries import PhasesEntry

    _checked(PhasesEntry, told)
    return told


def _breaker(told: dict[str, Any]) -> dict[str, Any]:
    from apikeyrouter.infrastructure.config.failure_entries import BreakerEntry

    _checked(BreakerEntry, told)
    return told


def _checked(entry: Any, told: Mapping[str, Any]) -> None:
    try:
        entry(**told)
    except ValidationError as exc:
        raise invalid(exc) from exc


class StatedProvider(EdgeModel):
    """A provider: which adapter talks to it, and where. `options` are the adapter's own; `timeouts` and
    `breaker_settings` as a configuration file has them under `timeouts` and `breaker`.
    """

    id: Name
    adapter: Name
    base_url: BaseUrl | None = None
    options: Annotated[dict[str, Any], Field(max_length=OPTIONS_MAX)] = Field(default_factory=dict)
    timeouts: Annotated[dict[str, Any], AfterValidator(_phases)] = Field(default_factory=dict)
    breaker_settings: Annotated[dict[str, Any], AfterValidator(_breaker)] = Field(default_factory=dict)
    connections_max: Annotated[ConnectionsMax | None, Field(exclude_if=_is_none)] = None
    created_at: AwareDatetime = Field(default_factory=_now)

    def record(self) -> ProviderRecord:
        """As a configuration file's."""
        from apikeyrouter.infrastructure.config.failure_entries import PhasesEntry

        return ProviderRecord(
            id=self.id, adapter=self.adapter, base_url=self.base_url, lane=provider_lane(self.id),
            options=self.options, timeouts=PhasesEntry(**self.timeouts).seconds(), connections_max=self.connections_max,
        )  # fmt: skip

    def breaker(self, base: Breaker) -> Breaker:
        """When its circuit opens. Errors: InvalidRequestError where that makes no sense over `base`."""
        from apikeyrouter.infrastructure.config.failure_entries import BreakerEntry

        try:
            return BreakerEntry(**self.breaker_settings).over(base)
        except InvalidRequestError as exc:
            raise InvalidRequestError(exc.reason, field=f"breaker_settings.{exc.field}") from None
