"""From the file as written to what it means. Pure but for reading the secrets it names.

Lanes: `g:<group>:<pool>` for what a provider meters, `k:<key>` for a key's breaker and own caps, `p:<provider>` for a
provider's breaker, `c:<client>` for our own limits on a client. Scopes: `<scope>[:<id>]:<budget name>`.
"""

import hashlib
import ipaddress
import os
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from apikeyrouter.domain.components.client_rules import client_lane, client_policy
from apikeyrouter.domain.components.entries import group_lane
from apikeyrouter.domain.components.key_identity import check_material, derive_key_id
from apikeyrouter.domain.components.limits import LimitProfile, compile_limits, limits_from
from apikeyrouter.domain.components.policy_checks import check_policy
from apikeyrouter.domain.models.accounting import (
    LANES_PER_CANDIDATE_MAX,
    SCOPES_PER_CANDIDATE_MAX,
    SHARED_SCOPES_MAX,
    Breaker,
    LaneConfig,
    Limit,
    Period,
    ScopeConfig,
    UnpricedRule,
)
from apikeyrouter.domain.models.api_key import KeyRouting
from apikeyrouter.domain.models.budget import BudgetScope
from apikeyrouter.domain.models.cost_estimate import nanousd
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.system_error import (
    ConfigurationError,
    InvalidRequestError,
    KeyRegistrationError,
    LedgerConfigError,
)
from apikeyrouter.infrastructure.config.cell_entries import layout_of
from apikeyrouter.infrastructure.config.compiled import (
    BudgetRecord,
    ClientRecord,
    CompiledConfig,
    KeyRecord,
    PriceRecord,
    ProviderRecord,
    Target,
    pool_name,
)
from apikeyrouter.infrastructure.config.config_file import BudgetEntry, ClientEntry, ConfigFile, LimitEntry
from apikeyrouter.infrastructure.config.limit_profiles import KNOWN_PROFILES, profile_for
from apikeyrouter.infrastructure.config.secrets import SecretReader

__all__ = ["BUILTIN_PROVIDERS", "KNOWN_ADAPTERS", "compile_config"]

BUILTIN_PROVIDERS = ("openai", "anthropic")
"""Registered from the start, under the adapter of the same name."""
KNOWN_ADAPTERS = frozenset(
    {
        "openai", "anthropic", "gemini", "azure", "generic", "mistral", "groq", "deepseek", "openrouter", "vllm",
        "ollama", "llamacpp", "compatible",
    }
)  # fmt: skip
"""A test holds them equal to the registry's, which takes longer to import."""
_PLAIN = KeyRouting()
TOKEN_LENGTH_MIN = 16
"""Shorter client tokens can be guessed; they are taken, with a warning."""


def compile_config(
    config: ConfigFile,
    *,
    profiles: Mapping[str, LimitProfile] = KNOWN_PROFILES,
    adapters: frozenset[str] = KNOWN_ADAPTERS,
    environ: Mapping[str, str] | None = None,
    base: str | Path = ".",
) -> CompiledConfig:
    """Resolve secrets, check every reference, and make the records and the ledger's lanes and scopes.

    `profiles`: how the limits of known adapters refill. `adapters`: which there are. `base`: the folder that relative
    `file:` paths start from. Errors: ConfigurationError with every complaint and its path; then nothing is made.
    """
    reader = SecretReader(os.environ if environ is None else environ, Path(base))
    return _Compiler(config, profiles, adapters, reader).compile()


class _Compiler:
    """One run. Complaints are collected, so that a person sees all of them at once."""

    def __init__(
        self,
        config: ConfigFile,
        profiles: Mapping[str, LimitProfile],
        adapters: frozenset[str],
        secrets: SecretReader,
    ) -> None:
        self._config = config
        self._profiles = profiles
        self._adapters = adapters
        self._secrets = secrets
        self._routing_record = config.routing.compiled()
        self._key_breaker = self._routing_record.key_breaker
        self._errors: list[str] = []
        self._warnings: list[str] = []
        self._policies = [*config.policies, *_client_policies(config.clients)]
        self._lanes: dict[str, LaneConfig] = {}
        self._pools: dict[str, list[tuple[str, frozenset[str] | None]]] = defaultdict(list)

    def compile(self) -> CompiledConfig:
        providers = self._providers()
        budgets = self._budgets()
        keys = self._keys(providers, budgets)
        clients = self._clients(providers)
        self._limits(keys, providers)
        self._check_models(providers)
        self._check_repeats("prices", [(entry.provider, entry.model) for entry in self._config.prices])
        self._check_repeats("policies", [policy.id for policy in self._policies])
        self._check_policies(keys, providers)
        self._check_budgets(budgets, keys, clients, providers)
        self._check_lane_counts(any(client.lane for client in clients))
        cells = layout_of(self._config.accounting, clients, self._refuse)
        if self._errors:
            raise ConfigurationError("configuration is not valid:", errors=self._errors)
        return CompiledConfig(
            lanes=tuple(self._lanes.values()),
            scopes=tuple(budget.config for budget in budgets),
            providers=providers,
            keys=tuple(keys),
            aliases=self._aliases(),
            prices=tuple(self._prices()),
            budgets=tuple(budgets),
            clients=tuple(clients),
            policies=tuple(self._policies),
            routing=self._routing_record,
            cells=cells,
            pools={group: tuple(pools) for group, pools in self._pools.items()},
            files=frozenset(self._secrets.files),
            warnings=tuple(self._warnings),
        )

    def _providers(self) -> dict[str, ProviderRecord]:
        made = {
            name: ProviderRecord(id=name, adapter=name, base_url=None, lane=f"p:{name}") for name in BUILTIN_PROVIDERS
        }
        for name, entry in self._config.providers.items():
            if entry.adapter not in self._adapters:
                self._refuse(f"providers.{name}.adapter", f"must be one of {', '.join(sorted(self._adapters))}")
            if doubt := _doubt_about(entry.base_url):
                self._warnings.append(f"providers.{name}.base_url: {doubt}")
            made[name] = ProviderRecord(
                id=name, adapter=entry.adapter, base_url=entry.base_url, lane=f"p:{name}", options=entry.options,
                timeouts=entry.timeouts.seconds(), connections_max=entry.connections_max,
            )  # fmt: skip
        for name in made:
            self._put(f"providers.{name}", LaneConfig(id=f"p:{name}", breaker=self._provider_breaker(name)))
        return made

    def _provider_breaker(self, name: str) -> Breaker:
        entry, base = self._config.providers.get(name), self._routing_record.provider_breaker
        try:
            return base if entry is None else entry.breaker.over(base)
        except InvalidRequestError as exc:
            self._refuse(f"providers.{name}.breaker.{exc.field}", exc.reason)
            return base

    def _keys(self, providers: Mapping[str, ProviderRecord], budgets: list[BudgetRecord]) -> list[KeyRecord]:
        keys: dict[str, KeyRecord] = {}
        materials: dict[tuple[str, str], str] = {}
        for index, entry in enumerate(self._config.keys):
            path = f"keys[{index}]"
            if entry.provider not in providers:
                self._refuse(f"{path}.provider", f"no provider {entry.provider!r}; there are {', '.join(providers)}")
            material = self._material(path, entry.key)
            key_id = entry.id or derive_key_id(material, provider_id=entry.provider)
            told = self._routing(path, entry.metadata)
            models = told.models if entry.models is None else frozenset(entry.models)
            if key_id in keys:
                self._refuse(f"{path}.id", f"{key_id} is taken by another key")
            if material and materials.setdefault((entry.provider, material), key_id) != key_id:
                self._refuse(f"{path}.key", f"is the same key as {materials[entry.provider, material]}")
            self._put(path, LaneConfig(id=f"k:{key_id}", breaker=self._key_breaker))
            keys[key_id] = KeyRecord(
                id=key_id,
                provider_id=entry.provider,
                material=material,
                quota_group=entry.quota_group or told.quota_group or key_id,
                lane=f"k:{key_id}",
                models=models,
                weight=told.weight if entry.weight is None else entry.weight,
                metadata=entry.metadata,
                scopes=_scopes_of(budgets, ((BudgetScope.Provider, entry.provider), (BudgetScope.Key, key_id))),
            )
        return list(keys.values())

    def _material(self, path: str, text: str) -> str:
        try:
            return check_material(self._secrets.read(text))
        except (InvalidRequestError, KeyRegistrationError) as exc:
            self._refuse(f"{path}.key", str(exc))
            return ""

    def _routing(self, path: str, metadata: Mapping[str, object]) -> KeyRouting:
        if not metadata:
            return _PLAIN
        try:
            return KeyRouting.parse(metadata)
        except InvalidRequestError as exc:
            self._refuse(f"{path}.metadata.{exc.field}", exc.reason)
            return KeyRouting()

    def _clients(self, providers: Mapping[str, ProviderRecord]) -> list[ClientRecord]:
        clients: dict[str, ClientRecord] = {}
        tokens: dict[str, str] = {}
        for index, entry in enumerate(self._config.clients):
            path = f"clients[{index}]"
            if entry.name in clients:
                self._refuse(f"{path}.name", f"{entry.name} is taken by another client")
            for unknown in sorted(set(entry.providers or ()).difference(providers)):
                self._refuse(f"{path}.providers", f"no provider {unknown!r}")
            token = self._token(path, entry.token)
            if token and tokens.setdefault(token, entry.name) != entry.name:
                self._refuse(f"{path}.token", f"is the same as that of client {tokens[token]}")
            clients[entry.name] = ClientRecord(
                name=entry.name,
                token_sha256=token,
                team=entry.team,
                models=None if entry.models is None else frozenset(entry.models),
                providers=None if entry.providers is None else tuple(entry.providers),
                rpm=entry.rpm,
                tpm=entry.tpm,
                concurrency=entry.concurrency,
                lane=self._client_lane(path, entry),
                weight=entry.weight,
                priority=entry.priority,
                expires_at=entry.expires_at,
            )
        return list(clients.values())

    def _token(self, path: str, text: str) -> str:
        try:
            token = self._secrets.read(text)
        except InvalidRequestError as exc:
            self._refuse(f"{path}.token", str(exc))
            return ""
        if len(token) < TOKEN_LENGTH_MIN:
            self._warnings.append(f"{path}.token: has fewer than {TOKEN_LENGTH_MIN} characters and can be guessed")
        return hashlib.sha256(token.encode()).hexdigest()

    def _client_lane(self, path: str, entry: ClientEntry) -> str | None:
        lane = client_lane(entry.name, rpm=entry.rpm, tpm=entry.tpm, concurrency=entry.concurrency)
        if not lane.limits:
            return None
        self._put(path, lane)
        return lane.id

    def _limits(self, keys: list[KeyRecord], providers: Mapping[str, ProviderRecord]) -> None:
        members: dict[str, list[KeyRecord]] = defaultdict(list)
        for key in keys:
            members[key.quota_group].append(key)
        self._check_groups(members)
        by_id = {key.id: key for key in keys}
        for key in keys:
            self._metadata_limits(key, providers)
        for index, entry in enumerate(self._config.limits):
            path = f"limits[{index}]"
            if entry.key is not None:
                self._key_limits(path, entry, by_id.get(entry.key), providers)
            else:
                self._group_limits(path, entry, members.get(entry.quota_group or "", []), providers)

    def _metadata_limits(self, key: KeyRecord, providers: Mapping[str, ProviderRecord]) -> None:
        path = f"key {key.id}: metadata.limits"
        for declared in self._routing(path, key.metadata).limits if "limits" in key.metadata else ():
            try:
                self._add(
                    path, key.lane, limits_from(declared, self._profile(key, providers)), breaker=self._key_breaker
                )
            except InvalidRequestError as exc:
                self._refuse(path, str(exc))

    def _check_groups(self, members: Mapping[str, list[KeyRecord]]) -> None:
        for group, keys in members.items():
            named = sorted({key.provider_id for key in keys})
            if len(named) > 1:
                self._refuse("keys", f"quota_group {group} has keys of several providers ({', '.join(named)})")

    def _key_limits(
        self, path: str, entry: LimitEntry, key: KeyRecord | None, providers: Mapping[str, ProviderRecord]
    ) -> None:
        if key is None:
            self._refuse(f"{path}.key", f"no key {entry.key!r}")
            return
        limits = compile_limits(entry, self._profile(key, providers))
        self._add(path, key.lane, limits, breaker=self._key_breaker, set_aside=entry.part_set_aside)

    def _group_limits(
        self, path: str, entry: LimitEntry, keys: list[KeyRecord], providers: Mapping[str, ProviderRecord]
    ) -> None:
        group = entry.quota_group or ""
        if not keys:
            self._warnings.append(f"{path}.quota_group: no key is in group {group}; the limit is of no use")
        models = None if entry.models is None else frozenset(entry.models)
        lane = group_lane(group, pool_name(models))
        if all(lane != known for known, _ in self._pools[group]):
            self._pools[group].append((lane, models))
        profile = self._profile(keys[0], providers) if keys else profile_for("", self._profiles)
        self._add(path, lane, compile_limits(entry, profile), fair=True, set_aside=entry.part_set_aside)

    def _profile(self, key: KeyRecord, providers: Mapping[str, ProviderRecord]) -> LimitProfile:
        provider = providers.get(key.provider_id)
        return profile_for("" if provider is None else provider.adapter, self._profiles)

    def _add(
        self,
        path: str,
        lane_id: str,
        limits: tuple[Limit, ...],
        *,
        breaker: Breaker | None = None,
        fair: bool = False,
        set_aside: float = 0.0,
    ) -> None:
        known = self._lanes.get(lane_id, LaneConfig(id=lane_id))
        before = known.limits
        if before and known.set_aside != set_aside:
            self._refuse(path, f"on_store_loss of lane {lane_id} is declared otherwise in another row")
            return
        twice = {limit.name for limit in before} & {limit.name for limit in limits}
        if twice:
            self._refuse(path, f"{', '.join(sorted(twice))} of lane {lane_id} is declared in another row already")
            return
        lane = LaneConfig(id=lane_id, limits=(*before, *limits), breaker=breaker, fair=fair, set_aside=set_aside)
        self._put(path, lane)

    def _put(self, path: str, lane: LaneConfig) -> None:
        self._countable(path, lambda: _encode_lane(lane))
        self._lanes[lane.id] = lane

    def _countable(self, path: str, encode: Callable[[], object]) -> None:
        try:
            encode()
        except LedgerConfigError as exc:
            self._refuse(path, str(exc))

    def _budgets(self) -> list[BudgetRecord]:
        made: dict[str, BudgetRecord] = {}
        for index, entry in enumerate(self._config.budgets):
            path = f"budgets[{index}]"
            if entry.name in made:
                self._refuse(f"{path}.name", f"{entry.name} is taken by another budget")
            config = _scope_config(entry)
            self._countable(path, lambda config=config: _encode_scope(config))  # type: ignore[misc]
            made[entry.name] = BudgetRecord(name=entry.name, scope=entry.scope, scope_id=entry.scope_id, config=config)
        return list(made.values())

    def _check_budgets(
        self,
        budgets: list[BudgetRecord],
        keys: list[KeyRecord],
        clients: list[ClientRecord],
        providers: Mapping[str, ProviderRecord],
    ) -> None:
        known: dict[BudgetScope, set[str]] = {
            BudgetScope.Provider: set(providers),
            BudgetScope.Key: {key.id for key in keys},
            BudgetScope.Client: {client.name for client in clients},
        }
        for index, budget in enumerate(budgets):
            if budget.scope in known and budget.scope_id not in known[budget.scope]:
                self._refuse(f"budgets[{index}].scope_id", f"no {budget.scope.value} {budget.scope_id!r}")
        self._check_scope_counts(budgets, keys)

    def _check_scope_counts(self, budgets: list[BudgetRecord], keys: list[KeyRecord]) -> None:
        def most(scope: BudgetScope) -> int:
            ids = [budget.scope_id for budget in budgets if budget.scope is scope]
            return max((ids.count(scope_id) for scope_id in ids), default=0)

        shared = most(BudgetScope.Global) + most(BudgetScope.Team) + most(BudgetScope.Client)
        if shared > SHARED_SCOPES_MAX:
            self._refuse("budgets", f"a request could be in {shared} budgets; at most {SHARED_SCOPES_MAX} are possible")
        own = max((len(key.scopes) for key in keys), default=0)
        if own > SCOPES_PER_CANDIDATE_MAX:
            self._refuse("budgets", f"a key is in {own} budgets; at most {SCOPES_PER_CANDIDATE_MAX} are possible")

    def _check_lane_counts(self, client_lanes: bool) -> None:
        spare = LANES_PER_CANDIDATE_MAX - 2 - int(client_lanes)
        for group, pools in self._pools.items():
            everywhere = sum(models is None for _, models in pools)
            named = [models for _, models in pools if models is not None]
            crowded = {model for models in named for model in models if _count(named, model) + everywhere > spare}
            for model in sorted(crowded):
                self._refuse("limits", _crowded(group, model, spare, client_lanes))

    def _check_models(self, providers: Mapping[str, ProviderRecord]) -> None:
        for alias, targets in self._config.models.items():
            if not targets:
                self._refuse(f"models.{alias}", "must have at least one model")
            for index, target in enumerate(targets):
                if target.provider not in providers:
                    self._refuse(f"models.{alias}[{index}].provider", f"no provider {target.provider!r}")

    def _check_policies(self, keys: list[KeyRecord], providers: Mapping[str, ProviderRecord]) -> None:
        for index, policy in enumerate(self._policies):
            errors, warnings = check_policy(policy, providers=providers, keys={key.id for key in keys})
            self._errors += [f"policies[{index}].{error}" for error in errors]
            self._warnings += [f"policies[{index}].{warning}" for warning in warnings]

    def _check_repeats(self, section: str, names: Sequence[object]) -> None:
        for index, name in enumerate(names):
            if name in names[:index]:
                self._refuse(f"{section}[{index}]", f"says again what {section}[{names.index(name)}] says")

    def _aliases(self) -> dict[str, tuple[Target, ...]]:
        return {alias: tuple(target.compiled() for target in targets) for alias, targets in self._config.models.items()}

    def _prices(self) -> Iterator[PriceRecord]:
        for entry in self._config.prices:
            yield PriceRecord(
                provider_id=entry.provider,
                model=entry.model,
                rates=entry.rates,
                tiers=tuple((tier.above, tier.rates) for tier in entry.tiers),
                service_tiers={name: tier.rates for name, tier in entry.service_tiers.items()},
            )

    def _refuse(self, path: str, reason: str) -> None:
        self._errors.append(f"{path}: {reason}")


def _client_policies(clients: Sequence[ClientEntry]) -> list[Policy]:
    """What keeps the file's clients to their providers."""
    return [client_policy(entry.name, entry.providers) for entry in clients if entry.providers is not None]


def _scope_config(entry: BudgetEntry) -> ScopeConfig:
    unpriced = entry.unpriced or ("deny" if entry.enforcement == "hard" else "meter")
    return ScopeConfig(
        id=":".join(part for part in (entry.scope.value, entry.scope_id, entry.name) if part),
        limit_nanousd=nanousd(entry.limit_usd),
        hard=entry.enforcement == "hard",
        period=Period(entry.period),
        timezone=entry.timezone,
        unpriced=UnpricedRule(unpriced),
        flat_nanousd=0 if entry.flat_usd is None else nanousd(entry.flat_usd),
        suspense=entry.suspense.rule,
        suspense_after_us=entry.suspense.after_us,
        bounded=entry.on_store_loss == "bounded",
        set_aside=entry.part_set_aside,
    )


def _scopes_of(budgets: list[BudgetRecord], wanted: Container[tuple[BudgetScope, str | None]]) -> tuple[str, ...]:
    return tuple(budget.config.id for budget in budgets if (budget.scope, budget.scope_id) in wanted)


def _count(pools: list[frozenset[str]], model: str) -> int:
    return sum(model in models for models in pools)


def _crowded(group: str, model: str, spare: int, client_lanes: bool) -> str:
    why = " beside the limits of a client" if client_lanes else ""
    return (
        f"model {model} of quota_group {group} is in more than {spare} pool(s), the most that one request can be held "
        f"in{why}; limits for all models and for some count as two"
    )


def _encode_lane(lane: LaneConfig) -> object:
    from apikeyrouter.infrastructure.ledger.encoding import lane_entry

    return lane_entry(lane)


def _encode_scope(scope: ScopeConfig) -> object:
    from apikeyrouter.infrastructure.ledger.encoding import scope_entry

    return scope_entry(scope)


def _doubt_about(base_url: str | None) -> str:
    """What an operator should think about twice. Whoever writes the file is trusted: it is no error."""
    parts = urlsplit(base_url or "")
    host = parts.hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        loopback = host == "localhost"
    else:
        if address.is_link_local or str(address) == "fd00:ec2::254":
            return "a link-local address; clouds answer there with credentials"
        loopback = address.is_loopback
    if parts.scheme == "http" and not loopback:
        return "keys and prompts go there unencrypted; https:// would not"
    return ""
