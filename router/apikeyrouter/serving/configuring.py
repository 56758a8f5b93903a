"""Configuration in force: what a file declares and what keys' metadata declare, in the catalogue and in the ledger.

What a file declares is also kept as a document of the store (without secrets), so that every process on it, with the
file or without, meters the same lanes and holds in the same budgets. It is put into the ledger before anybody names it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import msgspec

from apikeyrouter.domain.components.catalogue import (
    BudgetRule,
    Catalogue,
    ClientTerms,
    Key,
    ModelPool,
    key_lane,
    provider_lane,
)
from apikeyrouter.domain.components.circuits import KEY_BREAKER, PROVIDER_BREAKER
from apikeyrouter.domain.components.client_rules import CLIENT
from apikeyrouter.domain.components.quotas import limit_of
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import (
    LIMITS_PER_LANE_MAX,
    Breaker,
    LaneConfig,
    ScopeConfig,
)
from apikeyrouter.domain.models.api_key import APIKey, KeyRouting
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.quota_state import Quota
from apikeyrouter.domain.models.system_error import InvalidRequestError, LedgerConfigError, StateStoreError
from apikeyrouter.infrastructure.config.compiled import BudgetRecord, CompiledConfig, PriceRecord, Target
from apikeyrouter.infrastructure.config.limit_profiles import profile_for, profile_name
from apikeyrouter.infrastructure.config.stated import StatedLimits, StatedProvider
from apikeyrouter.infrastructure.ledger.encoding import lane_entry
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.serving.budgets import DeclaredBudgets
from apikeyrouter.serving.cell_rounds import refuse_move
from apikeyrouter.serving.changing import FileChanges, file_lanes
from apikeyrouter.serving.clients import DeclaredClients
from apikeyrouter.serving.key_limits import Declared, KeyLimits, declared_by, names_of, refuse_crowds
from apikeyrouter.serving.made import MadeEntities
from apikeyrouter.serving.model_names import DeclaredModels

DOCUMENT = ("configuration", "file")
_log = EventLog("apikeyrouter")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedConfig:
    """What every process must know of a configuration file. `keys`: the ids of the keys it names."""

    lanes: tuple[LaneConfig, ...] = ()
    scopes: tuple[ScopeConfig, ...] = ()
    pools: dict[str, list[tuple[str, list[str] | None]]] = field(default_factory=dict)
    aliases: dict[str, tuple[Target, ...]] = field(default_factory=dict)
    prices: tuple[PriceRecord, ...] = ()
    budgets: tuple[BudgetRecord, ...] = ()
    keys: tuple[str, ...] = ()
    policies: tuple[dict[str, Any], ...] = ()
    quality: dict[str, float] = field(default_factory=dict)
    key_breaker: Breaker = KEY_BREAKER
    provider_breaker: Breaker = PROVIDER_BREAKER
    client_weights: dict[str, float] = field(default_factory=dict)
    """Those that are not 1."""
    file: str = ""
    """Which file that is (`digest_of`)."""

    @classmethod
    def of(cls, config: CompiledConfig, digest: str) -> "SharedConfig":
        """The part of a compiled file that is shared."""
        lanes = tuple(lane for lane in config.lanes if not _is_plain(lane, config.routing.key_breaker))
        return cls(
            file=digest,
            lanes=lanes, scopes=config.scopes, aliases=dict(config.aliases), prices=config.prices,
            budgets=config.budgets, keys=tuple(sorted(key.id for key in config.keys)),
            policies=tuple(policy.model_dump(mode="json") for policy in config.policies),
            quality=dict(config.routing.quality), key_breaker=config.routing.key_breaker,
            provider_breaker=config.routing.provider_breaker,
            client_weights={client.name: client.weight for client in config.clients if client.weight != 1},
            pools={
                group: [(lane, None if models is None else sorted(models)) for lane, models in pools]
                for group, pools in config.pools.items()
            },
        )  # fmt: skip


class Configuration:
    """Keeps catalogue and ledger in step with what is declared."""

    def __init__(self, catalogue: Catalogue, ledger: AnyLedger, store: StateStore) -> None:
        self._catalogue, self._ledger, self._store = catalogue, ledger, store
        self.budgets = DeclaredBudgets(catalogue, ledger, store)
        self.models = DeclaredModels(catalogue, store)
        self.clients = DeclaredClients(catalogue, ledger, store)
        self.limits = MadeEntities(store, "limit", lambda: StatedLimits)
        """By lane: limits that were stated while running. Where a file limits the same lane, the file's hold."""
        self.providers = MadeEntities(store, "provider", lambda: StatedProvider)
        self.changes = FileChanges(ledger, store)
        self._file_policies: tuple[Policy, ...] = ()
        self._file = SharedConfig()
        self._file_lanes: dict[str, LaneConfig] = {}
        self._file_keys: frozenset[str] = frozenset()
        self._of_keys = KeyLimits()
        self.file_groups: dict[str, str] = {}
        """The quota groups of a file's keys, by id, also of those that are not registered yet."""
        self._quotas: dict[str, tuple[Quota, ...]] = {}
        """Per key: its own quotas, where it has any."""
        self._lanes_put: Mapping[str, LaneConfig] = {}
        self.file_put = ""
        """Which file this process put into the ledger last, or found there."""

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Those of the file, and those that clients' settings mean."""
        declared = {policy.id for policy in self._file_policies}
        return (*self._file_policies, *(one for one in self.clients.policies() if one.id not in declared))

    # --- a file --------------------------------------------------------------------------------------------------

    async def file_in_force(self) -> str:
        """The digest of the file that the store's processes decide by; "" where there is none."""
        return (await self._read()).file

    async def replace_file(
        self, config: CompiledConfig, digest: str, whole: str, unopened: Iterable[APIKey]
    ) -> tuple[str, ...]:
        """Put a file's lanes and budgets into force; the ids of the keys that it names no longer.

        `whole`: which file the ledger has all lanes of, this one or `file_put`, ""  if neither; what differs is put.
        `unopened`: keys that were not taken over here. A file's lanes must not push out what they count in their own.
        """
        before = await self._read()
        self.file_groups = {key.id: key.quota_group for key in config.keys} if self._catalogue.layout else {}
        new = SharedConfig.of(config, digest)
        self._quotas.update({key.id: key.quotas for key in unopened if key.quotas})
        lanes = {lane.id: lane for lane in config.lanes}
        if whole != digest:
            known = self._lanes_put if whole else {}
            emptied = [LaneConfig(id=lane.id) for lane in before.lanes if lane.id not in lanes]
            news = [lane for lane in (*config.lanes, *emptied) if known.get(lane.id) != lane]
            put = [self._with_quotas(self._with_stated(lane)) for lane in news]
            await self._ledger.put(lanes=put, scopes=new.scopes)
            await self.changes.put_whole(digest)
        self._lanes_put, self.file_put = lanes, digest
        try:
            if before != new:
                await self._store.save_document(*DOCUMENT, msgspec.to_builtins(new))
        except (NotImplementedError, InvalidRequestError) as exc:
            await self._store.delete_document(*DOCUMENT)
            _log.warning("configuration.not_shared", error=str(exc))
        self._take(new)
        return tuple(key_id for key_id in before.keys if key_id not in self._file_keys)

    def check_file(self, config: CompiledConfig) -> None:
        """Raises InvalidRequestError for what only shows beside what was made otherwise."""
        for key in config.keys:
            refuse_move(self._catalogue, key.id, key.quota_group)
        self.budgets.check_file(_rules(config.budgets))

    async def refresh(self) -> bool:
        """Take over what another process has put into force; whether there was anything."""
        told = await self._read()
        changed = await self.budgets.refresh()
        changed |= await self.models.refresh()
        changed |= await self.clients.refresh()
        changed |= await self._refresh_stated()
        if told == self._file:
            return changed
        self._take(told)
        return True

    async def _read(self) -> SharedConfig:
        told = await self._store.get_document(*DOCUMENT)
        if told is None:
            return self._file
        try:
            return msgspec.convert(told, SharedConfig, strict=False)
        except msgspec.ValidationError as exc:
            raise StateStoreError(f"the shared configuration cannot be read: {exc}") from exc

    def _take(self, new: SharedConfig) -> None:
        catalogue = self._catalogue
        for old in self._file.prices:
            catalogue.prices.remove(old.provider_id, old.model)
        for price in new.prices:
            catalogue.prices.add(
                price.provider_id, price.model, tiers=price.tiers, service_tiers=price.service_tiers, **price.rates
            )
        self._file, self._file_lanes = new, {lane.id: lane for lane in new.lanes}
        self._file_keys = frozenset(new.keys)
        for key_id in self._of_keys.keys:
            if key_id in self._file_keys:
                self._of_keys.drop(key_id)
        self._file_policies = tuple(Policy.parse(told) for told in new.policies)
        self.models.take_file(new.aliases)
        catalogue.qualities = dict(new.quality)
        self.clients.take_file(_clients(new))
        self.budgets.take_file(_rules(new.budgets))
        self._index_pools()

    # --- keys and providers --------------------------------------------------------------------------------------

    async def declare_provider(self, provider_id: str) -> None:
        """Put a provider's breaker into the ledger."""
        await self._ledger.put(lanes=[self._provider_lane(provider_id)])

    def check_key(self, key: Key, routing: KeyRouting) -> None:
        """Refuse limits in a key's metadata that are wrong, or more than a request can be held in.

        Raises:
            InvalidRequestError: naming the field.
        """
        refuse_move(self._catalogue, key.id, key.quota_group)
        declared = self._declared_by(key, routing)
        _refuse_uncountable(LaneConfig(id=key_lane(key.id)), "id")
        for lane in declared.lanes:
            _refuse_uncountable(lane, "limits")
        self._of_keys.refuse_crowd_with(declared, key.id)
        own = self._declared(key_lane(key.id)) if key.quotas else None
        if (len(own.limits) if own else 0) + len(key.quotas) > LIMITS_PER_LANE_MAX:
            raise InvalidRequestError(
                f"a key has at most {LIMITS_PER_LANE_MAX} limits of its own, quotas included", field="quotas"
            )

    async def declare_keys(self, keys: Sequence[tuple[Key, KeyRouting]]) -> None:
        """Put keys' own lanes, and their groups' where the metadata states limits, into the ledger.

        A key that a file names has its lanes from there.
        """
        counting: list[str] = []
        groups: dict[str, None] = {}
        changed = False
        for key, routing in keys:
            counted_before = self._quotas.pop(key.id, ())
            if key.quotas:
                self._quotas[key.id] = key.quotas
            if key.quotas != counted_before:
                counting.append(key_lane(key.id))
            declared = self._declared_by(key, routing)
            changed |= self._of_keys.put(key.id, declared)
            if key.id not in self._file_keys:
                groups[key.quota_group] = None
        merged = [lane for group in groups for lane in self._merged(group)]
        await self._ledger.put(lanes=[*(self._own_lane(key.id) for key, _ in keys), *merged])
        if changed:
            self._index_pools()
        for lane_id in counting:
            await self._ledger.record(lane_id)  # the lane takes its configuration over when it is next used

    def forget_key(self, key_id: str) -> None:
        """A key is gone; what it declared for its group goes with it."""
        self._quotas.pop(key_id, None)
        if self._of_keys.drop(key_id):
            self._index_pools()

    async def retire_keys(self, key_ids: Sequence[str]) -> None:
        """Empty the lanes of keys that are gone. That is a new configuration: every process looks at its keys, and so
        learns of it, before it decides again."""
        await self._ledger.put(lanes=[LaneConfig(id=key_lane(key_id)) for key_id in key_ids])

    async def uses(self, key_ids: Sequence[str]) -> dict[str, tuple[int, datetime | None]]:
        """How many requests the fleet made with each key until now, and when it made the last."""
        uses: dict[str, tuple[int, datetime | None]] = dict.fromkeys(key_ids, (0, None))
        by_lane = {key_lane(key_id): key_id for key_id in key_ids}
        for lane in await self._ledger.lanes(list(by_lane)):
            used_at = datetime.fromtimestamp(lane.last_used_us / 1e6, UTC) if lane.last_used_us else None
            uses[by_lane[lane.id]] = (lane.requests_total, used_at)
        return uses

    async def restore(self) -> None:
        """Put everything this process knows into a cell that forgot it, and the file's part into the store."""
        lanes = {lane.id: lane for group in self._of_keys.groups for lane in self._merged(group)}
        lanes.update((key_lane(key_id), self._own_lane(key_id)) for key_id in (*self._catalogue.keys, *self._file_keys))
        lanes.update((provider_lane(id_), self._provider_lane(id_)) for id_ in self._catalogue.providers)
        lanes.update((id_, self.lane_config(id_)) for id_ in (*self._file_lanes, *self.limits.named))
        if self._file.file:
            lanes.update((lane.id, lane) for lane in file_lanes(self._file.file))
        await self._ledger.put(lanes=list(lanes.values()), scopes=self._file.scopes)
        if self._file != SharedConfig() and await self._store.get_document(*DOCUMENT) is None:
            await self._store.save_document(*DOCUMENT, msgspec.to_builtins(self._file))
        await self.budgets.restore()
        await self.clients.restore()
        for made in (self.limits, self.providers):
            async with made.turn():
                await made.restore()

    def lane_config(self, lane_id: str) -> LaneConfig:
        """A lane as it is declared; without limits where nothing is."""
        if lane_id.startswith("k:"):
            return self._own_lane(lane_id[2:])
        if lane_id.startswith("p:"):
            return self._provider_lane(lane_id[2:])
        found = self._declared(lane_id) or self.clients.lane(lane_id)
        merged = (lane for group in self._of_keys.groups for lane in self._merged(group) if lane.id == lane_id)
        return found or next(merged, LaneConfig(id=lane_id))

    # --- what is stated while running ----------------------------------------------------------------------------

    async def state_limits(self, stated: StatedLimits) -> None:
        """Put the limits of a lane into force. What is used of them stays.

        Raises:
            InvalidRequestError: more than a request can be held in.
        """
        if stated.quota_group is not None:
            others = [one.pool for one in self.limits.named.values() if one.quota_group == stated.quota_group]
            of_file = [names_of(models) for _, models in self._file.pools.get(stated.quota_group, ())]
            refuse_crowds({*others, *of_file, stated.pool})
        async with self.limits.turn():
            await self.limits.save(stated.lane_id, stated)
            await self._renew(stated.lane_id)

    async def forget_limits(self, lane_id: str) -> bool:
        """Take what was stated of a lane out of force; whether there was something."""
        async with self.limits.turn():
            found = await self.limits.drop(lane_id)
            await self._renew(lane_id)
            return found

    async def _renew(self, lane_id: str) -> None:
        """A lane is configured otherwise; it takes that over at once, for whoever looks at it."""
        await self._ledger.put(lanes=[self.lane_config(lane_id)])
        await self._ledger.record(lane_id)
        self._index_pools()

    async def state_provider(self, stated: StatedProvider) -> None:
        """Keep a provider for every process on the store. Errors: InvalidRequestError for a breaker without sense."""
        stated.breaker(self._file.provider_breaker)
        async with self.providers.turn():
            await self.providers.save(stated.id, stated)
            await self._ledger.put(lanes=[self._provider_lane(stated.id)])

    async def forget_provider(self, provider_id: str) -> bool:
        """Forget a provider that was kept so; whether there was one."""
        async with self.providers.turn():
            found = await self.providers.drop(provider_id)
            await self._ledger.put(lanes=[self._provider_lane(provider_id)])
            return found

    async def _refresh_stated(self) -> bool:
        async with self.limits.turn():
            limits = await self.limits.refresh()
            if limits:
                self._index_pools()
        async with self.providers.turn():
            return await self.providers.refresh() or limits

    @property
    def bounded_lanes(self) -> list[LaneConfig]:
        """Those of which a part is set aside for when the store is away."""
        return [lane for lane in self._file_lanes.values() if lane.set_aside]

    def bounded_budgets(self) -> list[ScopeConfig]:
        """Hard ones of which a part is held for when the store is away; with several cells they are closed."""
        one_cell = self._catalogue.layout is None
        return [scope for scope in self._catalogue.budgets() if one_cell and scope.set_aside]

    @property
    def has_slabs(self) -> bool:
        """Whether some limit says that workers may hold slabs of it."""
        stated = (lane for lane_id in self.limits.named if (lane := self._declared(lane_id)) is not None)
        lanes = chain(self._file_lanes.values(), stated, self._of_keys.lanes())
        return any(limit.slabs for lane in lanes for limit in lane.limits)

    def is_limited_by_file(self, lane_id: str) -> bool:
        """Whether a file states the limits of a lane."""
        of_file = self._file_lanes.get(lane_id)
        return of_file is not None and bool(of_file.limits)

    def _declared(self, lane_id: str) -> LaneConfig | None:
        """A lane as a file says, with what was stated while running; None where neither says anything."""
        of_file = self._file_lanes.get(lane_id)
        if of_file is None and lane_id not in self.limits.named:
            return None
        return self._with_stated(of_file or LaneConfig(id=lane_id))

    def _with_stated(self, lane: LaneConfig) -> LaneConfig:
        """A lane with what was stated while running. Limits of a file stay."""
        provider = self.providers.named.get(lane.id[2:]) if lane.id.startswith("p:") else None
        if provider is not None:
            return replace(lane, breaker=provider.breaker(lane.breaker or self._file.provider_breaker))
        stated = self.limits.named.get(lane.id)
        return (
            lane
            if stated is None or lane.limits
            else replace(lane, limits=stated.lane().limits, fair=lane.id[0] == "g")
        )

    # --- the rim -------------------------------------------------------------------------------------------------

    def _own_lane(self, key_id: str) -> LaneConfig:
        """A key's own lane: what a file says of it, else its breaker; and its quotas."""
        lane_id = key_lane(key_id)
        declared = self._declared(lane_id) or LaneConfig(id=lane_id)
        breaker = declared.breaker or self._file.key_breaker
        return self._with_quotas(replace(declared, breaker=breaker))

    def _provider_lane(self, provider_id: str) -> LaneConfig:
        """A provider's lane: what a file says of it, else its breaker."""
        lane_id = provider_lane(provider_id)
        of_file = self._file_lanes.get(lane_id)
        return self._with_stated(of_file or LaneConfig(id=lane_id, breaker=self._file.provider_breaker))

    def _with_quotas(self, lane: LaneConfig) -> LaneConfig:
        quotas = self._quotas.get(lane.id.removeprefix("k:")) if lane.id.startswith("k:") else None
        return replace(lane, limits=(*lane.limits, *map(limit_of, quotas))) if quotas else lane

    def _declared_by(self, key: Key, routing: KeyRouting) -> Declared:
        """What a key declares of its group; nothing where a file names it."""
        if key.id in self._file_keys or not routing.limits:
            return Declared(key.quota_group)
        provider = self._catalogue.providers.get(key.provider_id)
        return declared_by(
            key.quota_group, routing, profile_for(profile_name(None if provider is None else provider.wire))
        )

    def _merged(self, group: str) -> list[LaneConfig]:
        """The lanes that the keys of a group declare together, but for those that a file declares."""
        return [
            lane
            for lane in self._of_keys.merged(group)
            if lane.id not in self._file_lanes and lane.id not in self.limits.named
        ]

    def _index_pools(self) -> None:
        pools: dict[str, dict[str, frozenset[str] | None]] = {
            group: {lane: names_of(models) for lane, models in found} for group, found in self._file.pools.items()
        }
        for stated in self.limits.named.values():
            if stated.quota_group is not None:
                pools.setdefault(stated.quota_group, {}).setdefault(stated.lane_id, stated.pool)
        for group, declared in self._of_keys.pools():
            for lane_id, named in declared.items():
                pools.setdefault(group, {}).setdefault(lane_id, named)
        self._catalogue.replace_model_pools(
            {
                group: [ModelPool(lane=lane, models=named) for lane, named in found.items()]
                for group, found in pools.items()
            }
        )


def _refuse_uncountable(lane: LaneConfig, field: str) -> None:
    try:
        lane_entry(lane)
    except LedgerConfigError as exc:
        raise InvalidRequestError(str(exc), field=field) from exc


def _is_plain(lane: LaneConfig, breaker: Breaker) -> bool:
    """Whether a lane is as any key's is of which a file says nothing more: 10,000 of them need not be told."""
    return lane.id.startswith("k:") and lane == LaneConfig(id=lane.id, breaker=breaker)


def _clients(config: SharedConfig) -> dict[str, ClientTerms]:
    """The clients that have limits, or a weight, of their own."""
    lanes = {
        lane.id.removeprefix(CLIENT): (lane.id,) for lane in config.lanes if lane.id.startswith(CLIENT) and lane.limits
    }
    weights = config.client_weights
    return {name: ClientTerms(lanes.get(name, ()), weights.get(name, 1)) for name in {*lanes, *weights}}


def _rules(budgets: Iterable[BudgetRecord]) -> list[BudgetRule]:
    return [
        BudgetRule(scope=budget.config, kind=budget.scope.value, target=budget.scope_id or "", name=budget.name)
        for budget in budgets
    ]


def metadata_of(
    metadata: Mapping[str, object], *, quota_group: str, weight: float, models: frozenset[str] | None
) -> dict[str, object]:
    """A file's key as the metadata that every process reads."""
    told: dict[str, object] = {**metadata, "quota_group": quota_group, "weight": weight}
    if models is not None:
        told["models"] = sorted(models)
    return told
