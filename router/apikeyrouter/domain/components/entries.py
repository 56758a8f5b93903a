"""What a catalogue has entries of: providers, keys, pools of models, budgets, clients. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any, NamedTuple

from apikeyrouter.domain.models.accounting import ID_BYTES_MAX, ScopeConfig
from apikeyrouter.domain.models.api_key import KeyMaterial, KeyState
from apikeyrouter.domain.models.quota_state import Quota
from apikeyrouter.domain.models.request_intent import Operation
from apikeyrouter.domain.models.timeouts import Timeouts

SHOWN_MAX = 64
"""Of a long name, so many letters are shown beside its digest."""


@dataclass(slots=True, kw_only=True)
class Provider:
    """A registered provider. `wire` None: a custom adapter that only takes intents."""

    id: str
    adapter: Any
    wire: Any = None
    models: frozenset[str] | None = None
    """Its catalogue; None: any model may be asked for."""
    takes: frozenset[Operation] = frozenset({Operation.Chat})
    """What an intent may ask of its adapter."""
    tools: bool | None = None
    """Whether it calls tools, where its adapter says so."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """By model, as its adapter declares it, 0 … 1."""
    timeouts: Timeouts | None = None
    """Its own; None: those of all."""
    transport: Any = None
    """Its own; None: that of all."""
    timeouts_told: Mapping[str, float | None] = field(default_factory=dict)
    """What was said of its own, seconds by phase."""
    owns_transport: bool = False
    """Whether `transport` is nobody else's, and is closed with its adapter."""
    made_here: bool = False
    """Whether its adapter was made by the router, which then closes it once nobody uses it any more."""
    answered_at: float = 0.0
    """When the latest request was sent that it answered well here (`time.perf_counter()`)."""

    def speaks(self, dialect: str, operation: str = "") -> bool:
        """Whether it takes bodies of that dialect, and has the operation ("": whichever)."""
        wire = self.wire
        return wire is not None and wire.dialect == dialect and (not operation or operation in wire.operations)


@dataclass(slots=True, kw_only=True)
class Key:
    """A key as routing sees it. `models` None: whatever its provider serves. `under_way`: this process's own calls."""

    id: str
    provider_id: str
    material: KeyMaterial
    quota_group: str
    models: frozenset[str] | None = None
    weight: float = 1.0
    quality: float | Mapping[str, float] | None = None
    """Declared, 0 … 1: for all models, or by model, `*` for the others."""
    state: KeyState = KeyState.Available
    state_reason: str = ""
    state_until: datetime | None = None
    cost_per_1k: Decimal | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0
    """How often its material was rotated."""
    team: str | None = None
    """Whose key it is; None: anybody's."""
    quotas: tuple[Quota, ...] = ()
    organization: str = ""
    """A digest of the organisation that its provider named; "": it named none."""
    under_way: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPool:
    """Models of a quota group that share one lane. `models` None: all that no other pool of the group names."""

    lane: str
    models: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRule:
    """Which requests a scope applies to: `kind` global, provider, key, team, client or policy, and the id of that.

    `name`: what people call it. `source`: who declared it: `file`, `code` or `policy`. `holder`: of a policy's budget,
    the policy's own scope and the id of that.
    """

    scope: ScopeConfig
    kind: str
    target: str = ""
    name: str = ""
    source: str = "file"
    holder: tuple[str, str] | None = None


class ClientTerms(NamedTuple):
    """What a client's calls go by: its own limits, and its share among clients where capacity is scarce."""

    lanes: tuple[str, ...] = ()
    weight: float = 1


ANY_CLIENT = ClientTerms()


class SharedScopes(NamedTuple):
    """Ids of the budgets that a request is in whichever key serves it, and whether one of them is hard."""

    ids: tuple[str, ...]
    hard: bool


def key_lane(key_id: str) -> str:
    """A key's own lane: its breaker, its own caps."""
    return f"k:{key_id}"


def group_lane(group: str, models: str) -> str:
    """The lane in which a quota group is metered for a model, or for a pool of them by its name.

    Whatever they are called, the ledger takes it: where that is too long, or no line, a digest stands for the rest.
    """
    plain = f"g:{group}:{models}"
    if plain.isprintable() and (len(plain) <= ID_BYTES_MAX // 4 or len(plain.encode()) <= ID_BYTES_MAX):
        return plain
    told = f"{len(group)}:{plain}".encode("utf-8", "surrogatepass")
    digest = blake2b(told, digest_size=8, person=b"akr.grouplane").hexdigest()
    return f"g:{_shown(group)}:{_shown(models)}~{digest}"


def _shown(name: str) -> str:
    return ascii(name)[1:-1][:SHOWN_MAX]


def provider_lane(provider_id: str) -> str:
    """A provider's lane: its breaker."""
    return f"p:{provider_id}"


def key_price_name(key_id: str) -> str:
    """The provider name under which a key's own price (`cost_per_1k`) is kept in the price book."""
    return f"key:{key_id}"
