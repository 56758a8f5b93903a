"""What a configuration file means: plain records, secrets resolved, limits as the ledger takes them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from apikeyrouter.domain.components.cells import CellLayout
from apikeyrouter.domain.components.circuits import KEY_BREAKER, PROVIDER_BREAKER
from apikeyrouter.domain.components.correlation_guard import Guard
from apikeyrouter.domain.components.entries import group_lane
from apikeyrouter.domain.components.retry_budget import RETRIES_FLOOR, RETRY_SHARE
from apikeyrouter.domain.components.wait_lines import LENGTH_MAX
from apikeyrouter.domain.models.accounting import Breaker, LaneConfig, ScopeConfig
from apikeyrouter.domain.models.budget import BudgetScope
from apikeyrouter.domain.models.capabilities import ModelCapabilities
from apikeyrouter.domain.models.client import Priority
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.routing_decision import RoutingObjective

__all__ = [
    "BudgetRecord",
    "ClientRecord",
    "CompiledConfig",
    "KeyRecord",
    "PriceRecord",
    "ProviderRecord",
    "RoutingRecord",
    "Target",
    "pool_name",
]
POOL_BYTES_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRecord:
    """A provider to register. `lane` is where its breaker lives. `timeouts`: seconds by phase, where it has its own.

    `connections_max`: most connections of one process to it; None: as many as there are calls.
    """

    id: str
    adapter: str
    base_url: str | None
    lane: str
    options: Mapping[str, Any] = field(default_factory=dict)
    timeouts: Mapping[str, float | None] = field(default_factory=dict)
    connections_max: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it says no more than that there is an adapter of its name, as of those registered from the start."""
        said = self.base_url or self.options or self.timeouts or self.connections_max
        return self.adapter == self.id and not said


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key to register. `lane` is its own; the lanes of its group depend on the model (`CompiledConfig.lanes_of`)."""

    id: str
    provider_id: str
    material: str = field(repr=False)
    quota_group: str
    lane: str
    models: frozenset[str] | None = None
    weight: float = 1.0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One model of one provider. `capabilities`: what was declared of it, None: nothing."""

    provider_id: str
    model: str
    capabilities: ModelCapabilities | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRecord:
    """An override, as `PriceBook.add` takes it. `provider_id` None: at every provider."""

    provider_id: str | None
    model: str
    rates: dict[str, Decimal]
    tiers: tuple[tuple[int, dict[str, Decimal]], ...] = ()
    service_tiers: dict[str, dict[str, Decimal]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRecord:
    """A budget: its name, whom it is for, and the ledger's scope."""

    name: str
    scope: BudgetScope
    scope_id: str | None
    config: ScopeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRecord:
    """A caller. `token_sha256` in hex; `lane` None: it has no limits of its own."""

    name: str
    token_sha256: str = field(repr=False)
    team: str | None = None
    models: frozenset[str] | None = None
    providers: tuple[str, ...] | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    lane: str | None = None
    weight: float = 1.0
    priority: Priority = "interactive"
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingRecord:
    """How requests are routed unless they say otherwise. `timeouts`: seconds by phase, None: not told."""

    objective: RoutingObjective = field(default_factory=RoutingObjective)
    quality: Mapping[str, float] = field(default_factory=dict)
    attempts_max: int = 3
    wait_max_ms: int = 0
    wait_asked_max_ms: int = 60_000
    wait_queue_max: int = LENGTH_MAX
    translate: bool = False
    lease_ms: int = 30_000
    timeouts: Mapping[str, float | None] | None = None
    retry_share: float = RETRY_SHARE
    retry_floor: int = RETRIES_FLOOR
    guard: Guard = field(default_factory=Guard)
    key_breaker: Breaker = KEY_BREAKER
    provider_breaker: Breaker = PROVIDER_BREAKER


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledConfig:
    """Everything the router takes over, all at once or not at all.

    `pools`: per quota group, (pool id, its models or None for all) in the file's order. `files`: where secrets came
    from; when one changes, the configuration is to be compiled again. `warnings` are for the operator.
    """

    lanes: tuple[LaneConfig, ...] = ()
    scopes: tuple[ScopeConfig, ...] = ()
    providers: Mapping[str, ProviderRecord] = field(default_factory=dict)
    keys: tuple[KeyRecord, ...] = ()
    aliases: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    prices: tuple[PriceRecord, ...] = ()
    budgets: tuple[BudgetRecord, ...] = ()
    clients: tuple[ClientRecord, ...] = ()
    policies: tuple[Policy, ...] = ()
    routing: RoutingRecord = field(default_factory=RoutingRecord)
    pools: Mapping[str, tuple[tuple[str, frozenset[str] | None], ...]] = field(default_factory=dict)
    cells: CellLayout | None = None
    """How the accounting is divided; None: the file does not say."""
    files: frozenset[Path] = frozenset()
    warnings: tuple[str, ...] = ()

    def group_lanes(self, quota_group: str, model: str) -> tuple[str, ...]:
        """The lanes that meter a model in a group; where no limit is declared, the unlearned lane of that model.

        The unlearned lane `g:<group>:<model>` has no configuration yet; whoever learns a limit puts it.
        """
        pools = self.pools.get(quota_group, ())
        lanes = tuple(pool for pool, models in pools if models is None or model in models)
        return lanes or (group_lane(quota_group, model),)

    def lanes_of(self, key: KeyRecord, model: str, client: ClientRecord | None = None) -> tuple[str, ...]:
        """All lanes of one candidate: the key's own, its group's for the model, the provider's, the client's."""
        own = () if client is None or client.lane is None else (client.lane,)
        return (key.lane, *self.group_lanes(key.quota_group, model), f"p:{key.provider_id}", *own)

    def shared_scopes(self, *, team: str | None, client: str | None) -> tuple[str, ...]:
        """The budgets that a request of this team and client holds in, whichever key serves it."""
        wanted = {(BudgetScope.Global, None), (BudgetScope.Team, team), (BudgetScope.Client, client)}
        return tuple(budget.config.id for budget in self.budgets if (budget.scope, budget.scope_id) in wanted)


def pool_name(models: frozenset[str] | None) -> str:
    """`*` for all models, the names joined by `+`, or where that is too long the first and a digest of all."""
    if models is None:
        return "*"
    joined = "+".join(sorted(models))
    if len(joined.encode()) <= POOL_BYTES_MAX:
        return joined
    digest = hashlib.blake2b(joined.encode(), digest_size=6).hexdigest()
    return f"{min(models)[:32]}+{len(models) - 1}~{digest}"
