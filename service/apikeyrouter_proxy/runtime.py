"""What a worker process consists of, and its life: settings, store, router, clients, counts, logs. Started once."""

import asyncio
import gc
import time
from collections.abc import Coroutine, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from pydantic import SecretStr

from apikeyrouter.domain.components.key_identity import derive_key_id
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.system_error import ApiKeyRouterError, StateStoreError, StateStoreUnavailableError
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.config.config_file import ConfigFile, load_config
from apikeyrouter.infrastructure.config.environment import PREFIX, environment, provider_keys
from apikeyrouter.infrastructure.config.settings import RouterSettings, ServiceSettings
from apikeyrouter.infrastructure.embedded_valkey import EmbeddedServer, default_data_dir, open_embedded
from apikeyrouter.infrastructure.observability import metric_names
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.mongo_store import MongoStateStore
from apikeyrouter.infrastructure.state_store.records import records_for
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.serving.changing import digest_of
from apikeyrouter_proxy import admin_keys, reloading, webhooks
from apikeyrouter_proxy.access_log import AccessLog
from apikeyrouter_proxy.admin_keys import AdminKeys
from apikeyrouter_proxy.arrivals import open_arrivals
from apikeyrouter_proxy.audit_log import Author, changes_of, note
from apikeyrouter_proxy.clients import Clients
from apikeyrouter_proxy.data_plane import DataPlane
from apikeyrouter_proxy.fleet_gauges import fleet_gauges, money_gauges
from apikeyrouter_proxy.following import Follower
from apikeyrouter_proxy.logs import configure_logs
from apikeyrouter_proxy.metrics import Counters, Metrics
from apikeyrouter_proxy.metrics_sharing import SharedMetrics
from apikeyrouter_proxy.options import ProxyOptions
from apikeyrouter_proxy.outbound import Outbound
from apikeyrouter_proxy.prometheus import render
from apikeyrouter_proxy.reloading import PROCESS, Reloads
from apikeyrouter_proxy.tracing import Serve, open_tracing
from apikeyrouter_proxy.usage import UsageCounts
from apikeyrouter_proxy.webhooks import Webhooks
from apikeyrouter_proxy.workers import Fleet, Mode, WorkerWatch

if TYPE_CHECKING:
    from apikeyrouter_proxy.doctor.standing import StandingDoctor

__all__ = ["Runtime", "settle_garbage_collector"]

HEALTH_SECONDS = 1.0
"""How long an answer about the store's health is believed, and how long one may take."""
SCRAPE_SECONDS, STEP_SECONDS = 0.9, 0.4
"""How long a scrape waits for that, and each of two steps of somebody else who looks."""
RELOAD_NOTED_SECONDS = 10
"""How long workers that hear the same signal may be apart."""
FOUND_IN = "env:"
"""How the metadata of a key that was found in the environment says so."""
_log = structlog.get_logger("apikeyrouter")
_T = TypeVar("_T")


class Runtime:
    """One running service. Made by `open`; `close` drains and flushes everything.

    `leaving`: it will drain soon, and says so to whoever asks whether to send requests here.
    """

    def __init__(
        self,
        *,
        settings: ServiceSettings,
        options: ProxyOptions,
        router: ApiKeyRouter,
        redis_url: str | None,
        environ: Mapping[str, str],
        embedded: EmbeddedServer | None = None,
    ) -> None:
        self.settings = settings
        self.options = options
        self.router = router
        self.router.private_urls = options.private_urls
        self.draining = False
        self.leaving = False
        self.redis_url = redis_url
        self._environ = environ
        self._embedded = embedded
        self._metrics = Metrics()
        self._access_log = AccessLog(options.access_log_file, enabled=options.access_log, peers=options.access_log_peer)
        self.plane = DataPlane(
            router, Clients(), self._metrics, self._access_log, body_bytes_max=options.body_bytes_max,
            hsts=settings.enable_hsts, first_byte_hold_seconds=options.first_byte_hold_seconds,
        )  # fmt: skip
        self.arrivals = open_arrivals(options)
        self.tracing = open_tracing(environ, router)
        self.serve: Serve = self.plane.serve if self.tracing is None else self.tracing.around(self.plane.serve)
        self._shared = SharedMetrics(
            redis_url if settings.metrics_enabled else None,
            namespace=settings.namespace,
            counters=self._counters,
            gauges=self._gauges,
        )
        watch = WorkerWatch(router, mode=self._mode, open_requests=lambda: len(self.plane.open))
        self.fleet = Fleet(redis_url, settings.namespace, watch)
        self._healthy = (0.0, False)
        self.records = records_for(router.state_store)
        self.usage = UsageCounts(self.records)
        self.admin_keys = AdminKeys(router.state_store, settings.management_api_key)
        self.config = CompiledConfig()
        """The configuration file as it is in force here."""
        self.webhooks = Webhooks(
            router, router.state_store, self.records, router.vault, Outbound(private=options.private_urls)
        )
        self._reloads = Reloads(
            router.state_store, settings.config, read=self._read_again, take=self._take_over, note=self._note_reload
        )
        self._follower = Follower(
            router.state_store,
            {
                admin_keys.KIND: self.admin_keys.refresh,
                reloading.KIND: self._reloads.follow,
                webhooks.KIND: self.webhooks.refresh,
            },
        )

    @classmethod
    async def open(cls, environ: Mapping[str, str] | None = None) -> "Runtime":
        """Read settings, connect, take over the configuration file and the environment's provider keys.

        `environ` None: the process's own, over what a `.env` file says. Errors: ConfigurationError and whatever says
        that the store cannot be used.
        """
        environ = environment() if environ is None else environ
        settings = ServiceSettings.load(environ=environ)
        configure_logs(settings.log_level)
        compiled = _compiled(settings, environ)
        options = ProxyOptions.read(environ)
        router_settings = RouterSettings.from_environment(environ).model_copy(update={"log_level": settings.log_level})
        if f"{PREFIX}OUTBOX_DIR" not in environ:
            data = Path(settings.data_dir) if settings.data_dir else default_data_dir()
            router_settings = router_settings.model_copy(update={"outbox_dir": str(data / "outbox")})
        if compiled.cells is not None and f"{PREFIX}CELLS" not in environ:
            router_settings = router_settings.model_copy(update={"cells": compiled.cells})
        embedded, redis_url = await _server(settings)
        if embedded is not None and router_settings.encryption_key is None:
            router_settings = router_settings.model_copy(update={"encryption_key": SecretStr(embedded.encryption_key)})
        runtime = cls(
            settings=settings,
            options=options,
            router=ApiKeyRouter(state_store=_store(redis_url, settings, router_settings), config=router_settings),
            redis_url=redis_url,
            environ=environ,
            embedded=embedded,
        )
        try:
            await runtime._start(compiled)
        except BaseException:
            await runtime.close()
            raise
        return runtime

    async def _start(self, compiled: CompiledConfig) -> None:
        self._access_log.start()
        await self.router.start()
        self.router.on_clients_changed.append(self._index_clients)
        await self._take_over(compiled)
        self._reloads.took(compiled)
        self.router.follow_file = self._reloads.follow_file
        await self._register_found_keys({(key.provider_id, key.material) for key in compiled.keys})
        self.router.on_finished += [self.plane.finished, self.usage.add]
        self.usage.start()
        self._shared.start()
        self.fleet.start()
        await self._follower.start()
        self._reloads.start()
        await self.webhooks.start()
        settle_garbage_collector()

    async def _take_over(self, compiled: CompiledConfig) -> None:
        await self.router.apply(compiled)
        self.plane.translate = compiled.routing.translate
        self.config = compiled
        self._index_clients()
        for warning in compiled.warnings:
            _log.warning("configuration.warned", warning=warning)

    def _index_clients(self) -> None:
        """Who may call has changed."""
        made = self.router.clients.values()
        self.plane.clients = Clients(self.config.clients, made, open_to_all=self.settings.proxy_open)

    async def _register_found_keys(self, configured: set[tuple[str, str]]) -> None:
        """The environment's provider keys, but for those that the configuration file names: one key twice would be
        limited twice over."""
        manager = self.router.key_manager
        for found in provider_keys(self._environ):
            if (found.provider_id, found.material) not in configured:
                source = f"{FOUND_IN}{found.variable}"
                await manager.register_key(found.material, found.provider_id, {"source": source})
                continue
            known = await manager.get_key(derive_key_id(found.material, provider_id=found.provider_id))
            if known is not None and str(known.metadata.get("source", "")).startswith(FOUND_IN):
                await manager.revoke_key(known.id)

    async def reload(self, author: Author) -> CompiledConfig:
        """Read the configuration file again and take it over, here and in every worker that has it.

        Errors: ConfigurationError; then nothing changed.
        """
        return await self._reloads.reload(author)

    async def _note_reload(self, author: Author, before: CompiledConfig) -> None:
        """Tell the audit log what another file changed. All workers hear the same signal: the first of them tells."""
        after = self.config
        changes = await asyncio.to_thread(changes_of, before, after)
        told = {"file": self.settings.config, "changes": changes}
        try:
            if author[1] == PROCESS:
                name = f"reload:{digest_of(before)}:{digest_of(after)}"
                if not changes or not await self.records.claim(name, seconds=RELOAD_NOTED_SECONDS):
                    return
            await note(self.records, author, kind="config", id="file", action="reloaded", details=told)
        except StateStoreError as exc:  # the file is in force all the same
            _log.warning("audit.not_written", error=str(exc))

    async def _read_again(self) -> CompiledConfig:
        return await asyncio.to_thread(_compiled, self.settings, self._environ)

    async def reload_quietly(self) -> None:
        """As `reload`, for a signal: what is wrong goes to the log."""
        try:
            await self.reload(("SIGHUP", PROCESS))
            _log.info("configuration.reloaded")
        except ApiKeyRouterError as exc:
            _log.error("configuration.refused", error=str(exc))

    async def drain(self) -> None:
        """Say that this process is stopping, and wait for requests under way, at most the configured time."""
        if not self.draining:
            self.draining = self.leaving = True
            late = await self.plane.open.drain(self.options.drain_seconds)
            if late:
                _log.warning("requests.cut_off", count=late, after_seconds=self.options.drain_seconds)

    async def close(self) -> None:
        """Drain, then flush settlements, access lines and counts, in this order. Idempotent."""
        await self.drain()
        await self.plane.open.close()
        await self.plane.client_limits.close()
        await self.webhooks.close()
        await self._reloads.close()
        await self._follower.close()
        if not await self.router.drain(self.options.drain_seconds):
            _log.error("settlements.unconfirmed", count=self.router.books.waiting)
        await self.router.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        await self.usage.close()
        await self._access_log.close()
        await self._shared.close()
        await self.fleet.close()
        await self.records.close()
        if self._embedded is not None:
            self._embedded.close()

    async def is_healthy(self) -> bool:
        """Whether the store answers, as of at most a second ago."""
        at, healthy = self._healthy
        if time.monotonic() - at < HEALTH_SECONDS:
            return healthy
        if self.router.ledger.gate.away:
            return False
        trouble = ""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await self.router.state_store.health_check()
        except (ApiKeyRouterError, TimeoutError) as exc:
            trouble = str(exc) or "no answer in time"
        if trouble and (healthy or not at):
            _log.warning("store.unhealthy", error=trouble)
        self._healthy = (time.monotonic(), not trouble)
        return not trouble

    async def _healthy_within(self, seconds: float) -> bool:
        """`is_healthy`, for who cannot wait: a store that takes longer to say so is not."""
        try:
            async with asyncio.timeout(seconds):
                return await self.is_healthy()
        except TimeoutError:
            return False

    async def unless_away(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What asks the store, unless that does not answer meanwhile. Errors: StateStoreUnavailableError."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait([task], timeout=STEP_SECONDS))[0]:
                self._healthy = (0.0, self._healthy[1])
                if not await self._healthy_within(STEP_SECONDS):
                    raise StateStoreUnavailableError("the store does not answer")
            return task.result()
        finally:
            task.cancel()

    @cached_property
    def doctor(self) -> "StandingDoctor":
        """Who knows what is wrong with this deployment. Few workers are ever asked."""
        from apikeyrouter_proxy.doctor.standing import StandingDoctor

        return StandingDoctor(self, self._environ, self.redis_url)

    def _mode(self) -> Mode:
        if self.leaving:
            return "draining"
        if self.router.ledger.gate.away:
            return "bounded" if self.router.standby.stands else "store_away"
        return "normal"

    async def metrics_text(self) -> str:
        """The host's counts in Prometheus' format, this worker's as of now."""
        host, healthy, money = await asyncio.gather(
            self._shared.totals(), self._healthy_within(SCRAPE_SECONDS), money_gauges(self.router)
        )
        gauges: dict[str, Mapping[tuple[str, ...], int]] = {name: {(): value} for name, value in host.gauges.items()}
        gauges[metric_names.WORKERS.name] = {(): host.workers}
        gauges |= fleet_gauges(self.router, healthy=healthy) | money
        return render(host.counters, gauges)

    def connection_refused(self, reason: str) -> None:
        """Count a connection that was ended, by its reason, among the denials."""
        self._metrics.denied(reason)

    def _counters(self) -> Counters:
        return self._metrics.counters(
            {
                metric_names.SETTLEMENTS.name: self.router.books.settled,
                metric_names.STANDBY.name: self.router.standby.admitted,
                metric_names.SLAB_ADMITTED.name: self.router.slabs.admitted,
                metric_names.STORE_AWAY.name: self.router.ledger.gate.times_away,
                metric_names.LOG_LINES.name: self._access_log.written,
                metric_names.LOG_LOST.name: self._access_log.lost,
            }
        )

    def _gauges(self) -> dict[str, int]:
        calls, money = self.router.slabs.stranded
        return {
            metric_names.SLABS.name: self.router.slabs.held,
            metric_names.SLAB_CALLS.name: calls,
            metric_names.SLAB_MONEY.name: money,
            metric_names.IN_FLIGHT.name: len(self.plane.open),
            metric_names.WAITING.name: self.router.waiting,
            metric_names.UNSETTLED.name: self.router.books.waiting,
            metric_names.STANDBY_SHARE.name: self.router.standby.units,
            metric_names.UNSETTLED_ON_DISK.name: self.router.books.keeper.kept,
        }


def _compiled(settings: ServiceSettings, environ: Mapping[str, str]) -> CompiledConfig:
    if settings.config is None:
        return compile_config(ConfigFile(), environ=environ)
    path = Path(settings.config)
    return compile_config(load_config(path), environ=environ, base=path.parent)


async def _server(settings: ServiceSettings) -> tuple[EmbeddedServer | None, str | None]:
    """Where state lives: the named Redis, else the embedded server that all workers of this machine share."""
    if settings.redis_url:
        return None, settings.redis_url
    if not settings.embedded:
        _log.warning(
            "store.private", reason="APIKEYROUTER_EMBEDDED=false and no REDIS_URL: state is this process's own"
        )
        return None, None
    embedded = await open_embedded(Path(settings.data_dir) if settings.data_dir else default_data_dir())
    return embedded, embedded.url


def _store(redis_url: str | None, settings: ServiceSettings, router_settings: RouterSettings) -> StateStore:
    kept = {"max_decisions": router_settings.max_decisions, "max_transitions": router_settings.max_transitions}
    if redis_url is None:
        return InMemoryStateStore(**kept)
    if settings.mongodb_url:
        return MongoStateStore(
            settings.mongodb_url, settings.mongodb_database, settings.namespace, redis_url=redis_url, **kept
        )
    return RedisStateStore(redis_url, settings.namespace, **kept)


GC_THRESHOLDS = (20_000, 10, 50)
"""Containers made before each generation is looked through. The freeze saves; these were not seen to add to it."""


def settle_garbage_collector() -> None:
    """What is loaded by now stays; walking it again and again took a sixth of a request's CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
