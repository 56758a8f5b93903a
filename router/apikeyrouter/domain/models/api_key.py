"""Keys: what is known of one, the states it can be in, and its material in a type that prints redacted."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any, NoReturn

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field, field_validator

from apikeyrouter.domain.models.case_folding import CaseFolding
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.quota_state import Quota
from apikeyrouter.domain.models.request_intent import NAME_LENGTH_MAX, refuse_bad_model
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = [
    "LEGAL_TRANSITIONS",
    "APIKey",
    "KeyChange",
    "KeyMaterial",
    "KeyProbe",
    "KeyRouting",
    "KeyState",
    "StateTransition",
]


class KeyState(CaseFolding):
    """What may be done with a key now."""

    Available = "available"
    Throttled = "throttled"
    Exhausted = "exhausted"
    Recovering = "recovering"
    Disabled = "disabled"
    Invalid = "invalid"

    @property
    def eligible(self) -> bool:
        """Whether requests may be routed to a key in this state."""
        return self in (KeyState.Available, KeyState.Recovering)


LEGAL_TRANSITIONS: Mapping[KeyState, frozenset[KeyState]] = MappingProxyType(
    {
        KeyState.Available: frozenset(
            {KeyState.Throttled, KeyState.Exhausted, KeyState.Disabled, KeyState.Invalid},
        ),
        KeyState.Throttled: frozenset(
            {KeyState.Available, KeyState.Exhausted, KeyState.Disabled, KeyState.Invalid},
        ),
        KeyState.Exhausted: frozenset(
            {KeyState.Recovering, KeyState.Disabled, KeyState.Invalid},
        ),
        KeyState.Recovering: frozenset(
            {KeyState.Available, KeyState.Throttled, KeyState.Exhausted, KeyState.Disabled, KeyState.Invalid},
        ),
        KeyState.Invalid: frozenset({KeyState.Available, KeyState.Disabled}),
        KeyState.Disabled: frozenset({KeyState.Available}),
    }
)
"""Every change of state there is. Invalid → Available takes new material (rotation), an operator's word, or
the finding that several keys were refused alike, so that the provider was at fault."""


_UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)
COST_PER_1K_MAX = 1000
"""Dearest price of a key's thousand tokens: a dollar a token."""


def _now() -> datetime:
    return datetime.now(UTC)


class APIKey(EdgeModel):
    """A registered key. Never its material: `encrypted_material` is ciphertext, shown by no `repr` and no API.

    `usage_count`, `failure_count` and `last_used_at` are the whole fleet's, at most a second old when the router
    returned the object. `state_until`: when a throttled or exhausted key comes back (aware UTC, None: unknown).
    `generation`: how often its material was rotated. `quotas`: those of `configure_quota`. `organization`: a digest of
    the organisation that the provider's answers name; `merged_group`: the quota group that it was put into for that.
    """

    id: str = Field(min_length=1, max_length=NAME_LENGTH_MAX)
    provider_id: str = Field(min_length=1, max_length=NAME_LENGTH_MAX)
    state: KeyState = KeyState.Available
    state_reason: str = ""
    state_until: AwareDatetime | None = None
    usage_count: int = Field(default=0, ge=0)
    failure_count: int = Field(default=0, ge=0)
    last_used_at: AwareDatetime | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    created_at: AwareDatetime = Field(default_factory=_now)
    updated_at: AwareDatetime = Field(default_factory=_now)
    generation: int = Field(default=0, ge=0)
    quotas: tuple[Quota, ...] = ()
    organization: str = ""
    merged_group: str = ""
    encrypted_material: str = Field(default="", repr=False)
    unreadable: str = Field(default="", exclude=True)
    """Why what is stored of it cannot be read; then its id is all that is known of it. Never stored."""

    @classmethod
    def cannot_be_read(cls, key_id: str, why: str) -> "APIKey":
        """What stands for a stored key that cannot be read, so that it can be told of, revoked and registered again."""
        return cls.made(
            id=key_id, provider_id="", state=KeyState.Invalid, state_reason=f"cannot be read: {why}", unreadable=why,
            created_at=_UNKNOWN_TIME, updated_at=_UNKNOWN_TIME,
        )  # fmt: skip

    def public(self) -> dict[str, Any]:
        """What may be shown to an operator: everything but the ciphertext, in JSON types."""
        return self.model_dump(mode="json", exclude={"encrypted_material"})

    @property
    def routing(self) -> "KeyRouting":
        """What the metadata says about routing. Errors: InvalidRequestError naming the metadata field."""
        return KeyRouting.parse(self.metadata)


class StateTransition(EdgeModel):
    """One entry of the audit trail. `actor` is who asked: "router", or an operator's name.

    `from_state` None: the key was registered; `to_state` None: it was revoked. Both alike: what changed was something
    else, e.g. its material.
    """

    entity_type: str = "APIKey"
    entity_id: str
    from_state: KeyState | None
    to_state: KeyState | None
    reason: str
    actor: str = "router"
    timestamp: AwareDatetime = Field(default_factory=_now)
    until: AwareDatetime | None = None
    context: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """What becomes of a stored key, and what the audit trail says of it. `key` None: it is forgotten."""

    key: APIKey | None
    transitions: tuple[StateTransition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProbe:
    """What the provider's free endpoint said of a key. `works` None: nothing, e.g. it cannot be reached.

    `state`: the key's state after the probe. `latency_ms`: how long the answer took.
    """

    key_id: str
    works: bool | None
    state: KeyState
    checked_at: datetime
    latency_ms: int
    message: str = ""


def _model(value: object) -> object:
    if isinstance(value, str):
        refuse_bad_model(value, "")
    return value


_Model = Annotated[str, BeforeValidator(_model)]
_Quality = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _RoutingFields(EdgeModel):
    model_config = ConfigDict(extra="ignore")

    account_tier: str | None = None
    tier: str | None = None
    region: str | None = None
    team: str | None = None
    cost_per_1k: Decimal | None = Field(default=None, ge=0, le=COST_PER_1K_MAX, allow_inf_nan=False)
    quota_group: str | None = Field(default=None, min_length=1, max_length=NAME_LENGTH_MAX)
    models: list[_Model] | None = None
    weight: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    quality: _Quality | dict[str, _Quality] | None = None
    limits: list[dict[str, Any]] | dict[str, Any] | None = None

    @field_validator("quota_group", mode="after")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise InvalidRequestError("must be printable")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRouting:
    """The metadata that routes, read and checked. `models` None: all. `cost_per_1k` in dollars prices this key.

    `quality`: one for all models, or by model, `*` for the others.
    """

    tier: str | None = None
    region: str | None = None
    team: str | None = None
    cost_per_1k: Decimal | None = None
    quota_group: str | None = None
    models: frozenset[str] | None = None
    weight: float = 1.0
    quality: float | Mapping[str, float] | None = None
    limits: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def parse(cls, metadata: Mapping[str, Any]) -> "KeyRouting":
        """Read a key's metadata; what does not route is left alone. Errors: InvalidRequestError naming the field."""
        read = _RoutingFields.parse(metadata)
        limits = read.limits or ()
        return cls(
            tier=read.account_tier if read.account_tier is not None else read.tier,
            region=read.region,
            team=read.team,
            cost_per_1k=read.cost_per_1k,
            quota_group=read.quota_group,
            models=None if read.models is None else frozenset(read.models),
            weight=read.weight,
            quality=read.quality,
            limits=(limits,) if isinstance(limits, Mapping) else tuple(limits),
        )


class KeyMaterial(str):
    """A key as adapters get it: the material as a `str`, with `.id` and `.metadata`; it prints redacted.

    What sends it works as with any string: `f"Bearer {key}"`, `"Bearer " + key`, header values, `==`, JSON bodies.
    What shows it does not: `print(key)`, `str(key)`, `repr(key)`, `"%s" % key` and logging arguments give
    `<key k1 •••>`; the dots cannot be encoded in a header, so a mistaken `str(key)` fails here and not as a 401 there.
    Formatting into a log message by an f-string is the one way to leak it. What an adapter raises may have been made
    so: it is in no error, log line or traceback of ours. It is not pickled; `copy` gives the same object.
    """

    __slots__ = ("id", "metadata")

    id: str
    metadata: Mapping[str, Any]

    def __new__(cls, material: str, *, key_id: str, metadata: Mapping[str, Any] | None = None) -> "KeyMaterial":
        made = super().__new__(cls, material)
        made.id = key_id
        made.metadata = dict(metadata or {})
        return made

    def __repr__(self) -> str:
        return f"<key {self.id} \N{BULLET}\N{BULLET}\N{BULLET}>"

    def __str__(self) -> str:
        return repr(self)

    def __format__(self, spec: str) -> str:
        return format(str.__str__(self), spec)

    def __copy__(self) -> "KeyMaterial":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "KeyMaterial":
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("key material is never pickled")
