"""What a router is told: providers, keys, whole configuration files. The layer right below `ApiKeyRouter`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from apikeyrouter.domain.components.arguments import checking
from apikeyrouter.domain.components.catalogue import Provider
from apikeyrouter.domain.components.key_registration import NewKey
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.models.accounting import LaneConfig
from apikeyrouter.domain.models.api_key import APIKey
from apikeyrouter.domain.models.client import Client
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.quota_state import QuotaState, QuotaUnit, TimeWindow
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError, KeyRegistrationError
from apikeyrouter.infrastructure.adapters.transport import Timeouts
from apikeyrouter.infrastructure.config.compiled import CompiledConfig, KeyRecord, ProviderRecord, RoutingRecord
from apikeyrouter.infrastructure.config.limit_profiles import profile_name
from apikeyrouter.infrastructure.config.stated import StatedLimits, StatedProvider
from apikeyrouter.infrastructure.ledger.spread_ledger import SpreadLedger
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.infrastructure.security.key_vault import KeyVault
from apikeyrouter.serving.changing import digest_of
from apikeyrouter.serving.configuring import metadata_of
from apikeyrouter.serving.life import RouterLife
from apikeyrouter.serving.providers import adapters_of, provider_of

if TYPE_CHECKING:
    from apikeyrouter.infrastructure.config.config_file import ModelTarget

ROWS_AT_ONCE = 512
"""Of a file, so many keys are looked at before requests get their turn."""
ERRORS_TOLD_MAX = 50
_log = EventLog("apikeyrouter")


@checking(
    "configure_client", "configure_limits", "configure_provider", "forget_limits", "forget_provider",
    "is_limited_by_file", "lane_config", "revoke_client",
)  # fmt: skip
class RouterRegistration(RouterLife):
    """The part of a router that takes over what it is told, while requests run."""

    def register_provider(self, provider_id: Any, adapter: ProviderAdapter, overwrite: bool = False) -> Awaitable[None]:
        """Register a provider's adapter under an id. Starts at once; awaiting it is optional.

        Raises:
            ConfigurationError: the id is taken and `overwrite` is not given, or the adapter is none.
        """
        return self._deferrals.add(lambda: self._register_provider(provider_id, adapter, overwrite))

    async def _register_provider(self, provider_id: Any, adapter: ProviderAdapter, overwrite: bool) -> None:
        id_ = getattr(provider_id, "id", provider_id)
        if not isinstance(id_, str) or not id_:
            raise ConfigurationError(f"provider_id must be a non-empty str, not {provider_id!r}")
        if isinstance(adapter, type):
            raise ConfigurationError(f"the adapter of provider {id_!r}: pass an instance of {adapter.__name__}")
        if not callable(getattr(adapter, "execute_request", None)):
            raise ConfigurationError(f"the adapter of provider {id_!r} has no execute_request")
        known = self.catalogue.providers.get(id_)
        if known is not None and known.adapter is not adapter and not overwrite:
            raise ConfigurationError(f"provider {id_!r} is registered already; pass overwrite=True to replace it")
        await self._started()
        made = provider_of(id_, adapter)
        await self._configuration.declare_provider(id_)
        self._put_providers([made])
        self.observability.emit("provider.registered", provider_id=id_)
        await self._refresh()

    def register_key(
        self, key_material: str, provider_id: str, metadata: dict[str, Any] | None = None
    ) -> Awaitable[APIKey]:
        """Register a key; the same material and provider give the same key. Starts at once.

        Raises:
            KeyRegistrationError: see `KeyManager.register_key`.
        """
        return self._deferrals.add(lambda: self._register_key(key_material, provider_id, metadata))

    async def _register_key(self, key_material: str, provider_id: str, metadata: dict[str, Any] | None) -> APIKey:
        await self._started()
        return await self.key_manager.register_key(key_material, provider_id, metadata)

    def configure_policy(self, policy: Policy | Mapping[str, Any]) -> Awaitable[Policy]:
        """Put a policy into force, in every process on the store; the same id replaces what had it. Starts at once.

        Raises:
            InvalidRequestError: it is not valid (`policy_engine.validate_policy` tells all of it), or declared in the
                configuration file.
        """
        return self._deferrals.add(lambda: self._configure_policy(policy))

    async def _configure_policy(self, policy: Policy | Mapping[str, Any]) -> Policy:
        await self._started()
        return await self.policy_engine.configure(policy)

    async def _own_policy(self, policy: Policy | Mapping[str, Any]) -> Policy:
        """The policy that a request brings along, ready."""
        await self.ready()
        return await self.policy_engine.own(policy)

    def configure_quota(
        self,
        key_id: str,
        time_window: TimeWindow | str,
        total_capacity: int | None,
        reset_at: datetime | None = None,
        unit: QuotaUnit | str = QuotaUnit.Tokens,
    ) -> Awaitable[QuotaState]:
        """Give a key a quota of its own, e.g. a million tokens a month. Starts at once; awaiting it is optional.

        Raises:
            InvalidRequestError: see `QuotaAwarenessEngine.configure_quota`.
        """
        return self._deferrals.add(lambda: self._configure_quota(key_id, time_window, total_capacity, reset_at, unit))

    async def _configure_quota(
        self,
        key_id: str,
        time_window: TimeWindow | str,
        total_capacity: int | None,
        reset_at: datetime | None,
        unit: QuotaUnit | str,
    ) -> QuotaState:
        await self._started()
        engine = self.quota_awareness_engine
        return await engine.configure_quota(key_id, time_window, total_capacity, reset_at, unit)

    def configure_models(self, models: Mapping[str, Sequence["ModelTarget | Mapping[str, Any]"]]) -> Awaitable[None]:
        """Let names stand for models: aliases, and equivalents of a model at several providers, in order.

        Each name maps to its targets, the first that can serve the request and has room does: `{"provider": …,
        "model": …}`, with what the model can do where that is known (`context_tokens`, `vision`, `tools`,
        `structured_output`). A name without targets is forgotten; other names stay. A name of the same spelling in a
        configuration file comes second. Starts at once; every process on the store knows it within a second.

        Raises:
            InvalidRequestError: a target is wrong, naming the field, or its provider is not registered.
        """
        return self._deferrals.add(lambda: self._configure_models(models))

    async def _configure_models(self, models: Mapping[str, Sequence["ModelTarget | Mapping[str, Any]"]]) -> None:
        from apikeyrouter.infrastructure.config.config_file import read_models

        await self._started()
        read = read_models(models)
        for name, targets in read.items():
            for place, target in enumerate(targets):
                if target.provider_id not in self.catalogue.providers:
                    raise InvalidRequestError(
                        f"provider {target.provider_id!r} is not registered", field=f"models.{name}[{place}].provider"
                    )
        for name, targets in read.items():
            await self._configuration.models.declare(name, targets)

    def vault(self) -> KeyVault:
        """What seals secrets that are kept in the store. Errors: EncryptionError for master keys that are none."""
        return self._open_vault()

    def lane_config(self, lane_id: str) -> LaneConfig:
        """A lane as it is declared; without limits where nothing is."""
        return self._configuration.lane_config(lane_id)

    # --- what is stated while running ----------------------------------------------------------------------------

    @property
    def stated_limits(self) -> Mapping[str, StatedLimits]:
        """The limits that were stated while running, by lane."""
        return self._configuration.limits.named

    @property
    def stated_providers(self) -> Mapping[str, StatedProvider]:
        """The providers that were stated while running, by id; those of files and of code are not among them."""
        return self._configuration.providers.named

    async def configure_limits(self, limits: StatedLimits) -> None:
        """State the limits of a quota group or a key: in force with the next request of any process on the store.

        What is used of them stays counted. Amounts refill as the group's provider is known to.

        Raises:
            InvalidRequestError: a file states them, the key is not known, or a request cannot be held in so many.
        """
        await self.ready()
        if self._configuration.is_limited_by_file(limits.lane_id):
            raise InvalidRequestError("is limited by the configuration file; change it there", field="quota_group")
        if limits.key is not None and limits.key not in self.catalogue.keys:
            raise InvalidRequestError(f"no key {limits.key!r}", field="key")
        await self._configuration.state_limits(limits.model_copy(update={"profile": self._profile_of(limits)}))
        await self._refresh()

    def _profile_of(self, limits: StatedLimits) -> str:
        keys = self.catalogue.keys.values()
        mine = (key for key in keys if key.id == limits.key or key.quota_group == limits.quota_group)
        provider = next((self.catalogue.providers.get(key.provider_id) for key in mine), None)
        return profile_name(None if provider is None else provider.wire)

    def cell_of_lane(self, lane_id: str) -> str | None:
        """The name of the cell that counts a lane; None: there is one cell, or each has a lane of this name."""
        if not isinstance(self.ledger, SpreadLedger):
            return None
        number = self.ledger.of_lane(lane_id)
        return None if number is None else self.ledger.layout.cells[number].name

    def is_limited_by_file(self, lane_id: str) -> bool:
        """Whether a configuration file states the limits of a lane."""
        return self._configuration.is_limited_by_file(lane_id)

    async def forget_limits(self, lane_id: str) -> bool:
        """Take stated limits out of force; whether there were any. What keys' metadata say of the lane holds again."""
        await self.ready()
        found = await self._configuration.forget_limits(lane_id)
        await self._refresh()
        return found

    async def configure_provider(self, provider: StatedProvider) -> None:
        """Register a provider by the name of its adapter: here at once, in every process on the store within a second.

        One of a configuration file or of code that has the same id goes before it.

        Raises:
            ConfigurationError: there is no such adapter, or it refuses its options.
            InvalidRequestError: its breaker makes no sense.
        """
        await self.ready()
        adapters_of({provider.id: provider.record()})
        await self._configuration.state_provider(provider)
        self._take_stated()
        self.observability.emit("provider.registered", provider_id=provider.id)
        await self._refresh()

    async def forget_provider(self, provider_id: str) -> bool:
        """Forget a provider that was stated; whether there was one. Its requests under way end as they do."""
        await self.ready()
        found = await self._configuration.forget_provider(provider_id)
        self._take_stated()
        await self._refresh()
        return found

    def _take_stated(self) -> None:
        """Take over the providers that were stated, here or elsewhere, and drop those that are no longer."""
        wanted = {id_: one for id_, one in self.stated_providers.items() if not self._is_registered_otherwise(id_)}
        gone = self._stated_taken.keys() - wanted.keys()
        for provider_id in gone:
            self._drop_provider(provider_id)
        again = [(record, None) for id_, record in self._file_providers.items() if id_ in gone]
        guarded = None if self.private_urls else self._guarded_transport()
        news = [(one.record(), guarded) for id_, one in wanted.items() if self._stated_taken.get(id_) != one]
        self._stated_taken = wanted
        for record, transport in (*again, *news):
            try:
                made = adapters_of({record.id: record}, transport, is_guarded=transport is not None)
                self._put_providers(made.values())
            except ConfigurationError as exc:  # of another version, perhaps: the others must not suffer
                _log.error("provider.unusable", provider_id=record.id, error=str(exc))
        if gone or news:
            self.catalogue.changed()
            self._time_providers()

    def _put_providers(self, providers: Iterable[Provider]) -> None:
        """Add or replace providers. Calls under way end with the adapter that they chose."""
        new = list(providers)
        for provider in new:
            self._retired.put(self.catalogue.providers.get(provider.id))
        if new:
            self.catalogue.put_providers(new)

    def _is_served_as(self, record: ProviderRecord) -> bool:
        """Whether a provider of a file is in use as the file says, so that it can stay."""
        known = self._file_providers.get(record.id)
        return known == record and self.catalogue.providers.get(record.id) is self._file_made.get(record.id)

    def _drop_provider(self, provider_id: str) -> None:
        self._retired.put(self.catalogue.providers.pop(provider_id, None))

    def _is_registered_otherwise(self, provider_id: str) -> bool:
        of_file = self._file_providers.get(provider_id)
        if of_file is not None:
            return not of_file.is_plain
        return provider_id in self.catalogue.providers and provider_id not in self._stated_taken

    @property
    def clients(self) -> Mapping[str, Client]:
        """The clients that were made while running, by name; those of a configuration file are the service's."""
        return self._configuration.clients.made

    @property
    def on_clients_changed(self) -> list[Callable[[], None]]:
        """Called whenever `clients` has changed, here or in another process."""
        return self._configuration.clients.on_changed

    def client_policies(self) -> list[Policy]:
        """The policies that clients' settings mean."""
        return self._configuration.clients.policies()

    async def list_clients(self) -> Mapping[str, Client]:
        """`clients`, as the store has them now."""
        await self.ready()
        if await self._configuration.clients.refresh():
            await self.policy_engine.take_file(self._configuration.policies)
        return self.clients

    async def configure_client(self, client: Client) -> None:
        """Add or change a client: in force here at once, in every process on the store within a second.

        Its limits, its weight and its providers hold for calls in Python that name it, too. Its models, team, expiry
        and `enabled` hold where its token is shown: at the service's door.

        Raises:
            InvalidRequestError: `providers` names one that is not registered.
        """
        await self.ready()
        for provider_id in client.providers or ():
            if provider_id not in self.catalogue.providers:
                raise InvalidRequestError(f"provider {provider_id!r} is not registered", field="providers")
        await self._configuration.clients.declare(client)
        await self.policy_engine.take_file(self._configuration.policies)

    async def revoke_client(self, name: str) -> bool:
        """Forget a client; whether there was one. Its requests under way end as they do."""
        await self.ready()
        known = await self._configuration.clients.withdraw(name)
        await self.policy_engine.take_file(self._configuration.policies)
        return known

    async def apply(self, config: CompiledConfig) -> None:
        """Take over a compiled configuration file, while requests run. What can be wrong is found before any change.

        What the file of before named and this one does not is dropped: keys, budgets, limits, aliases, prices.
        After an outage in the middle, applying it again completes it.

        Raises:
            ConfigurationError: an adapter refuses its options; nothing was changed.
            LedgerUnavailableError, StateStoreUnavailableError: the store went away.
        """
        await self.ready()
        await self._take_file(config)

    async def _take_file(self, config: CompiledConfig) -> None:
        if config.cells is not None and config.cells.text != self.settings.cells.text:
            raise ConfigurationError(
                "the file's accounting.cells differ from those that this process was made with; they are decided when"
                " a namespace is first used (docs/topologies.md), and take a restart"
            )
        await self._started()
        adapters = adapters_of({id_: one for id_, one in config.providers.items() if not self._is_served_as(one)})
        self._configuration.check_file(config)
        if config.keys:
            self._open_vault()
        digest = digest_of(config)
        async with self._configuration.changes.under_way(digest, self._configuration.file_put) as whole:
            await self._put_file(config, adapters, digest, whole)
        self._file_digest = digest
        await self._adopt()

    async def _put_file(
        self, config: CompiledConfig, adapters: Mapping[str, Provider], digest: str, whole: str
    ) -> None:
        for provider_id in self._file_providers.keys() - config.providers.keys():
            self._drop_provider(provider_id)
        self._file_providers = config.providers
        self._put_providers(adapters.values())
        self._file_made = {id_: self.catalogue.providers[id_] for id_ in config.providers}
        self._stated_taken = {}
        self._take_stated()
        await self.key_manager.refresh()  # what other processes have registered is taken over, all at once
        dropped = await self._configuration.replace_file(config, digest, whole, self.key_manager.unopened.values())
        await self.policy_engine.take_file(self._configuration.policies)
        self.routing_engine.default = config.routing.objective
        self.attempts_max = config.routing.attempts_max
        self._admissions.lease_us = self._housekeeper.lease_us = config.routing.lease_ms * 1000
        self._meet_failures(config.routing)
        self._patience.wait_max_ms = config.routing.wait_max_ms or self.settings.wait_max_ms
        self._patience.asked_max_ms = config.routing.wait_asked_max_ms
        self._waiting.lines.length_max = config.routing.wait_queue_max
        await self._register_file(config.keys)
        await self.key_manager.revoke_keys(dropped)

    async def _register_file(self, records: Sequence[KeyRecord]) -> None:
        """Register the keys of a file that are not known as it says."""
        news: list[NewKey] = []
        for at, record in enumerate(records):
            told = _new_key(record)
            if not self.key_manager.says_nothing_new(told):
                news.append(told)
            if at % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        found = await self.key_manager.register_keys(news)
        errors = [
            f"key {told.key_id}: {key}" for told, key in zip(news, found, strict=True) if isinstance(key, Exception)
        ]
        if errors:
            raise KeyRegistrationError("; ".join(errors[:ERRORS_TOLD_MAX]))

    @property
    def timeouts(self) -> Timeouts:
        """Seconds that each phase of an exchange with a provider may take."""
        return self._attempts.default_timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        self._attempts.default_timeouts = timeouts
        self._time_providers()

    def _meet_failures(self, told: RoutingRecord) -> None:
        """Take over what a file says of time limits, retries and failures alike."""
        budget = self.failure_handler.budget
        budget.share, budget.floor = told.retry_share, told.retry_floor
        self.failure_handler.refusals.guard = told.guard
        if told.timeouts is not None or self._timed_by_file:
            self.timeouts = Timeouts(**(told.timeouts or {}))
        else:
            self._time_providers()
        self._timed_by_file = told.timeouts is not None

    def _time_providers(self) -> None:
        """The time limits of providers that have some of their own."""
        for provider in self.catalogue.providers.values():
            told = provider.timeouts_told
            provider.timeouts = msgspec.structs.replace(self.timeouts, **told) if told else None


def _new_key(record: KeyRecord) -> NewKey:
    metadata = metadata_of(record.metadata, quota_group=record.quota_group, weight=record.weight, models=record.models)
    return NewKey(material=record.material, provider_id=record.provider_id, metadata=metadata, key_id=record.id)
