"""What a router is made of, and its life: it opens what it needs on first use and closes what it opened.

The middle layer of `ApiKeyRouter`, between `background.py` and `registration.py`.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from apikeyrouter.domain.components.capacity import CapacityWatch
from apikeyrouter.domain.components.catalogue import Catalogue, Provider
from apikeyrouter.domain.components.cells import MAIN, CellLayout
from apikeyrouter.domain.components.cost_controller import CostController
from apikeyrouter.domain.components.explaining import decision_of
from apikeyrouter.domain.components.failure_handler import FailureHandler
from apikeyrouter.domain.components.key_manager import KeyManager
from apikeyrouter.domain.components.policy_engine import PolicyEngine
from apikeyrouter.domain.components.pool import Snapshot
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.components.quota_awareness_engine import QuotaAwarenessEngine
from apikeyrouter.domain.components.quota_ends import QuotaEnds
from apikeyrouter.domain.components.recorded_costs import RecordedCosts
from apikeyrouter.domain.components.routing_engine import RoutingEngine
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import RoutingDecision, RoutingObjective
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.adapters.transport import Timeouts, Transport
from apikeyrouter.infrastructure.config.compiled import ProviderRecord
from apikeyrouter.infrastructure.config.settings import RouterSettings
from apikeyrouter.infrastructure.config.stated import StatedProvider
from apikeyrouter.infrastructure.ledger.cell_ledger import CellLedger
from apikeyrouter.infrastructure.ledger.engine import Engine
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger, SpreadLedger
from apikeyrouter.infrastructure.observability.events import EventLog, level_of
from apikeyrouter.infrastructure.observability.manager import Observability
from apikeyrouter.infrastructure.security.addresses import is_public
from apikeyrouter.infrastructure.security.key_vault import KeyVault
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.mongo_store import MongoStateStore
from apikeyrouter.infrastructure.state_store.redis_connection import redacted_url
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.serving.admission import Admissions
from apikeyrouter.serving.attempt import Attempts
from apikeyrouter.serving.belonging import RouterBelonging
from apikeyrouter.serving.bookkeeping import Bookkeeper
from apikeyrouter.serving.claims import Claims
from apikeyrouter.serving.configuring import Configuration
from apikeyrouter.serving.deciding import Deciding
from apikeyrouter.serving.decisions import Decisions
from apikeyrouter.serving.deferred import Deferrals
from apikeyrouter.serving.escrow import Escrow
from apikeyrouter.serving.housekeeping import Housekeeper, cell_now_us
from apikeyrouter.serving.keeping import Keeper
from apikeyrouter.serving.learned import Learned
from apikeyrouter.serving.observing import Observer
from apikeyrouter.serving.outcomes import interpret
from apikeyrouter.serving.patience import Patience
from apikeyrouter.serving.policing import Policing
from apikeyrouter.serving.presence import Presence
from apikeyrouter.serving.quoting import Quotes
from apikeyrouter.serving.requests import call_of, check_wait
from apikeyrouter.serving.retiring import close_adapter
from apikeyrouter.serving.slabs import Slabs
from apikeyrouter.serving.spending import Spending
from apikeyrouter.serving.spread_books import AnyBooks, SpreadBooks
from apikeyrouter.serving.standby import Standby
from apikeyrouter.serving.waiting import WaitQueue

LEASE_US = 30_000_000
ABORT_SECONDS_AT_CLOSE = 1.0
FLUSH_SECONDS_AT_CLOSE = 5.0
CHORES_SECONDS_AT_CLOSE = 1.0
TELL_SECONDS_AT_CLOSE = 1.0
CANCEL_ROUNDS_MAX = 20
CANCEL_SECONDS = 0.1
"""A client library may swallow a cancellation while it connects; then it is cancelled again."""
_log = EventLog("apikeyrouter")


class RouterLife(RouterBelonging):
    """The parts of a router, how they are opened and how they are closed."""

    _file_providers: Mapping[str, ProviderRecord]
    _file_made: dict[str, Provider]
    _stated_taken: Mapping[str, StatedProvider]
    """The providers that were stated while running, as they are registered here."""
    _guarded: Transport | None = None

    def __init__(
        self,
        state_store: StateStore | None = None,
        observability_manager: Any = None,
        config: RouterSettings | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.settings = RouterSettings.read(config)
        self._settings_given = config
        self.state_store = _default_store(self.settings) if state_store is None else _checked_store(state_store)
        self.catalogue = Catalogue(PriceBook.load())
        self.ledger = self._ledgers(self.settings.cells)
        self.estimator = TokenEstimator()
        self.snapshot = Snapshot()
        self.on_finished: list[Callable[[Facts], None]] = []
        self._decisions = Decisions(self.state_store, kept=self.settings.max_decisions)
        self._spending = Spending(self.state_store)
        self.observability = Observability(observability_manager, decide=decision_of, recent=lambda: self.decisions)
        self.observability_manager = self.observability if observability_manager is None else observability_manager
        self._learned = Learned(self.state_store, self.estimator, self.catalogue.observations)
        self.decided = 0
        self.routing_engine = self._routing()
        self.books = self._bookkeeper()
        self._configuration = Configuration(self.catalogue, self.ledger, self.state_store)
        self.key_manager = KeyManager(
            self.state_store, self.catalogue, self._open_vault, lanes=self._configuration, announce=self._announce,
            report=self._report_unreadable, report_conflict=self._report_conflict,
            cooldown_seconds=self.settings.default_cooldown_seconds,
        )  # fmt: skip
        self.failure_handler = self._failures()
        self._admissions = Admissions(self.ledger, self.catalogue, self.estimator, self.snapshot, lease_us=LEASE_US)
        self.policy_engine = PolicyEngine(
            self.catalogue, self.state_store, self._configuration.budgets, choose=self._first_choice,
            recent=self._decisions.everywhere, started=self._started,
        )  # fmt: skip
        self._policing = Policing(self.policy_engine)
        self.cost_controller = CostController(
            self.catalogue, self.ledger, self._configuration.budgets, self.estimator,
            quote=Quotes(self.catalogue, self._admissions, self.estimator, self._policing),
            held_in=self.policy_engine.held_in, find=self._decisions.find_facts, started=self._started,
            recorded=RecordedCosts(self.state_store), defer=lambda work: self._deferrals.add(work),
            emit=self.observability.emit, now_us=lambda: cell_now_us(self.ledger),
        )  # fmt: skip
        self._deciding = Deciding(
            self.ledger, self.catalogue, self.estimator, self.snapshot, self.routing_engine, self._policing,
            self._admissions.sessions,
        )  # fmt: skip
        self._attempts = Attempts(
            _open_transport, self.books, self.estimator, observe=self._observe, judge=self.failure_handler.judge,
            broken=self.failure_handler.learn_broken, finished=self._finished, timeouts=Timeouts(),
        )  # fmt: skip
        self._housekeeper = Housekeeper(
            self.ledger, self.books, self.snapshot, self._quotas_watched(), self._lane_ids, self._restore,
            self._periodic, ends=QuotaEnds(self.catalogue.keys), emit=self.observability.emit,
        )  # fmt: skip
        self._queues()
        self._deferrals = Deferrals()
        self._vault: KeyVault | None = None
        self._file_providers, self._file_made, self._stated_taken, self._timed_by_file = {}, {}, {}, False
        self._take_settings(self.settings)

    def _take_settings(self, settings: RouterSettings) -> None:
        """Put settings into force. A vault with other master keys is opened when it is needed."""
        if settings.cells != self.settings.cells:
            raise ConfigurationError("the cells of a router are decided when it is made")
        if settings.encryption_key != self.settings.encryption_key:
            self._vault = None
        if settings.wait_max_ms != self.settings.wait_max_ms:
            self._patience.wait_max_ms = settings.wait_max_ms
        self.settings = settings
        self.observability.take_level(level_of(settings.log_level))
        caps = getattr(self.state_store, "caps", None)
        if caps is not None:
            caps.follow(max_decisions=settings.max_decisions, max_transitions=settings.max_transitions)
        self._decisions.resize(settings.max_decisions)
        self.key_manager.cooldown_seconds = settings.default_cooldown_seconds
        self.failure_handler.cooldown_seconds = settings.quota_default_cooldown_seconds

    def _stand_by(self) -> None:
        """Who admits from this process's share while the store is away. An accounting in this process never is."""
        self._presence = Presence(self.ledger, self.books, lease_us=LEASE_US)
        self.standby = Standby(
            self.ledger, self.books, self._presence, lanes=lambda: self._configuration.bounded_lanes,
            lane_config=self._configuration.lane_config, scope_config=self.catalogue.budget, snapshot=self.snapshot,
            now_us=lambda: cell_now_us(self.ledger), lease_us=LEASE_US, budgets=self._configuration.bounded_budgets,
        )  # fmt: skip
        if not isinstance(self.ledger.engine, LocalEngine):
            self._admissions.stand_in = self.standby.reserve
            self._housekeeper.standby = self.standby
        self.slabs = Slabs(
            self.ledger.cells[0], self.books.cells[0], self._presence, lane_config=self._configuration.lane_config,
            scope_config=self.catalogue.budget, now_us=lambda: cell_now_us(self.ledger),
        )  # fmt: skip
        self._slabs_seen, self._slabs_wanted = -1, False
        self._housekeeper.slabs = self._look_after_slabs

    async def _look_after_slabs(self) -> None:
        """Slabs stand before the ledger while some limit says so, and the accounting has one cell."""
        version = self._admissions.config_version
        if version != self._slabs_seen:
            self._slabs_seen = version
            one_cell = self.catalogue.layout is None
            self._slabs_wanted = one_cell and self.settings.slabs == "auto" and self._configuration.has_slabs
            self._admissions.ledger = self.slabs if self._slabs_wanted else self.ledger
        if self._slabs_wanted or self.slabs.held:
            await self.slabs.tick(wanted=self._slabs_wanted)

    def _ledgers(self, layout: CellLayout) -> AnyLedger:
        """The ledger, of as many cells as there are."""
        if not layout.text:
            return ScriptLedger(_engine_for(self.state_store))
        cells = [CellLedger(_engine_for(self.state_store, cell.name), layout=layout.text) for cell in layout.cells]
        self.catalogue.layout = layout
        return SpreadLedger(layout, cells, group_of=self._group_of)

    def _group_of(self, key_id: str) -> str | None:
        known = self.catalogue.keys.get(key_id)
        return self._configuration.file_groups.get(key_id) if known is None else known.quota_group

    def _bookkeeper(self) -> AnyBooks:
        """Who books how reservations end, and keeps ends on disk while the store is away."""
        cells = []
        for number, ledger in enumerate(self.ledger.cells):
            books = Bookkeeper(ledger, self._keeper(self.settings.cells.cells[number].name))
            ledger.on_unanswered = books.cancel
            ledger.gate.on_change = self._store_changed
            cells.append(books)
        return cells[0] if len(cells) == 1 else SpreadBooks(cells)

    def _move_money(self) -> None:
        """Who moves the money of budgets that several cells spend."""
        if isinstance(self.ledger, SpreadLedger):
            escrow = Escrow(self.ledger, scopes=self.catalogue.budgets)
            self.ledger.funding = self._housekeeper.escrow = escrow

    def _keeper(self, cell: str) -> Keeper:
        """What keeps them. An accounting in this process is never away."""
        if self.settings.outbox_dir is None or isinstance(self.ledger.engine, LocalEngine):
            return Keeper()
        url, namespace = getattr(self.state_store, "redis_url", None), getattr(self.state_store, "namespace", "")
        of_cell = "" if cell == MAIN else f" cell {cell}"
        return Keeper(Path(self.settings.outbox_dir), f"{namespace} at {redacted_url(url or '')}{of_cell}")

    def _store_changed(self, away: bool, seconds: float, why: str) -> None:
        if away:
            self.observability.emit("store.away", error=why)
        else:
            self.observability.emit("store.back", away_seconds=round(seconds, 3), waiting=self.books.waiting)

    def _queues(self) -> None:
        """Where requests wait for room, and for how long; and who admits them while the store is away."""
        self._stand_by()
        self._move_money()
        self._waiting = WaitQueue()
        self._admissions.denied = Claims(self.ledger, self._chore).note
        self.books.hear(booked=self._waiting.stir, few=self._admissions.few)
        self._patience = Patience(
            self.catalogue, self._policing, deadline=self._attempts.deadline,
            policies=lambda: self.policy_engine.active, wait_max_ms=self.settings.wait_max_ms,
        )  # fmt: skip

    def _judge_answers(self) -> None:
        """Somebody asks for quality: from now on answers are looked at."""
        self._attempts.ends.watch.wanted = True

    def _routing(self) -> RoutingEngine:
        return RoutingEngine(
            self._report_strategy, catalogue=self.catalogue, snapshot=self.snapshot, decide=self._decide,
            facts_of=self._decisions.facts_of, on_judging=self._judge_answers,
        )  # fmt: skip

    def _failures(self) -> FailureHandler:
        return FailureHandler(
            self.ledger, self.catalogue, self.snapshot, self.state_store, self.key_manager,
            interpret=interpret, chore=self._chore, emit=self.observability.emit,
            first_attempts=lambda: self.decided - self.failure_handler.budget.retries,
            cooldown_seconds=self.settings.quota_default_cooldown_seconds,
        )  # fmt: skip

    @property
    def attempts_max(self) -> int:
        """Most attempts of one request."""
        return self.failure_handler.attempts_max

    @attempts_max.setter
    def attempts_max(self, attempts_max: int) -> None:
        self.failure_handler.attempts_max = attempts_max

    @property
    def waiting(self) -> int:
        """How many requests wait for room in this process."""
        return self._waiting.length

    @property
    def waiting_longest_seconds(self) -> float:
        """How long the one has waited that has waited longest."""
        return self._waiting.longest_seconds

    @property
    def clock_suspected(self) -> bool:
        """Whether this process has found that the ledger's clock runs otherwise than its own."""
        return self._housekeeper.clock_suspected

    @property
    def ledger_now_us(self) -> int:
        """The ledger's time now, as far as this process knows: Unix microseconds."""
        return cell_now_us(self.ledger)

    @property
    def wait_max_ms(self) -> int:
        """How long requests wait for room before they are denied, in milliseconds, where they say nothing of it."""
        return self._patience.wait_max_ms

    @wait_max_ms.setter
    def wait_max_ms(self, wait_max_ms: int) -> None:
        self._patience.wait_max_ms = check_wait(wait_max_ms)

    def _quotas_watched(self) -> CapacityWatch:
        """What looks after quotas: who answers for them, who listens to providers, and who watches the lanes."""
        watch = CapacityWatch()
        self.quota_awareness_engine = QuotaAwarenessEngine(
            self.catalogue, self.ledger, self.state_store, self.key_manager, watch, lanes=self._configuration,
            act=self._take_answer, settled=self._chores_done,
        )  # fmt: skip
        self._observer = Observer(
            self.ledger, self.snapshot, chore=self._chore, learned=self.key_manager.learn_organization,
            suspect=self._suspect_one_counter,
        )  # fmt: skip
        return watch

    async def _decide(self, intent: RequestIntent, objective: RoutingObjective | str | None) -> RoutingDecision:
        await self.ready()
        return await self._deciding(call_of(intent, objective, stream=False))

    async def start(self) -> None:
        """Connect, begin background work, finish registrations that were not awaited. Opens a closed router again.

        Raises:
            ConfigurationError: the router belongs to another event loop, or a registration was wrong.
        """
        self._closed = False
        await self.ready()

    async def ready(self) -> None:
        """The same, on first use, but for a router that was closed. Whatever needs it calls it.

        Raises:
            ConfigurationError: as `start`, or the router is closed.
        """
        await self._started()
        await self._deferrals.finish()

    async def _started(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._closed:
            raise ConfigurationError("this router is closed; open it again with `async with router`, or `start()`")
        self._move_in(loop)
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._loop is None:
                await self._open(loop)

    async def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._refresh_lock, self._adopting = asyncio.Lock(), asyncio.Lock()
        self._waiting.begin_anew()
        self.key_manager.begin_anew()
        self.observability.attach(loop)
        await self.ledger.open()
        version = self.ledger.stamp.config_version
        await self._configuration.refresh()
        self._take_stated()
        await self._take_policies()
        await self._share_learned()
        self._admissions.config_version = version
        self._attempts.open()
        self._loop = loop
        self.books.start()
        await self.books.take_over()
        self._housekeeper.start()
        self._watcher = loop.create_task(self._watch(), name="apikeyrouter.watcher")

    def _guarded_transport(self) -> Transport:
        """For providers whose address came over the network: it connects to public addresses only."""
        if self._guarded is None:
            self._guarded = _open_transport(is_public)
        return self._guarded

    async def drain(self, timeout_s: float = 60.0) -> bool:
        """Wait until no call is open and every settlement is booked; whether both came true in time."""
        deadline = time.perf_counter() + timeout_s
        await self._until_idle(timeout_s)
        self.slabs.recall()
        flushed = await self.books.flush(seconds=max(0.1, deadline - time.perf_counter()))
        return flushed and not self.in_flight

    async def close(self) -> None:
        """End what is open, flush settlements, stop background work, let go of connections. Idempotent.

        What was not awaited is finished first. From then on every call is refused, until the router is opened again.

        Raises:
            ConfigurationError: the router belongs to another event loop, which has not ended.
        """
        if self._loop is None or self._forked:
            return
        await self._started()
        error = await self._deferrals.wind_up(FLUSH_SECONDS_AT_CLOSE)
        if error is not None:
            _log.error("registration.failed", error=str(error) or type(error).__name__)
        self._waiting.end()
        self.books.give_up(self.books.open, "the router was closed")
        await self._until_idle(ABORT_SECONDS_AT_CLOSE)
        self.slabs.recall()
        await self.books.flush(seconds=FLUSH_SECONDS_AT_CLOSE)
        await self._end_background()
        with contextlib.suppress(Exception):  # counts and decisions of the last quarter of a second
            async with asyncio.timeout(FLUSH_SECONDS_AT_CLOSE):
                await self.key_manager.flush_tally()
                await self._spending.flush()
                await self.policy_engine.flush_counts()
                await self._decisions.flush()
        with contextlib.suppress(Exception):  # learned ratios are a convenience; losing them costs accuracy only
            await self._share_learned()
        await self._attempts.close()
        if self._guarded is not None:
            await self._guarded.close()
        for provider in (*self.catalogue.providers.values(), *self._retired.unused(0, ())):
            await close_adapter(provider)
        await self.observability.flush(TELL_SECONDS_AT_CLOSE)
        await self.ledger.close()
        await self.state_store.aclose()
        self._loop = None
        self._starting = None
        self._closed = True

    async def _until_idle(self, seconds: float) -> None:
        deadline = time.perf_counter() + seconds
        while self.in_flight and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)

    async def _end_background(self) -> None:
        await self.failure_handler.close()
        if self._chores:
            await asyncio.wait(self._chores, timeout=CHORES_SECONDS_AT_CLOSE)
        pending = {task for task in (self._watcher, *self._chores) if task is not None}
        for _ in range(CANCEL_ROUNDS_MAX):
            if not pending:
                break
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
        await self._housekeeper.close()
        await self.books.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _engine_anew(self, engine: Engine, cell: int) -> Engine:
        name = self.settings.cells.cells[cell].name
        return engine if isinstance(engine, LocalEngine) else _engine_for(self.state_store, name)

    def _open_vault(self) -> KeyVault:
        if self._vault is None:
            private = isinstance(self.state_store, InMemoryStateStore)
            self._vault = KeyVault.open(self.settings.master_keys, private_store=private)
        return self._vault


def _checked_store(store: StateStore) -> StateStore:
    if isinstance(store, type) or not callable(getattr(store, "save_key", None)):
        told = store.__name__ if isinstance(store, type) else type(store).__name__
        raise ConfigurationError(f"state_store must be an instance of a StateStore, not {told}")
    return store


def _default_store(settings: RouterSettings) -> StateStore:
    url = os.environ.get("APIKEYROUTER_REDIS_URL")
    if url:
        return RedisStateStore(url, os.environ.get("APIKEYROUTER_NAMESPACE", "apikeyrouter"))
    return InMemoryStateStore()


def _engine_for(store: StateStore, cell: str = MAIN) -> Engine:
    """The ledger follows the store: the same Redis, or in this process."""
    if isinstance(store, RedisStateStore | MongoStateStore) and store.redis_url is not None:
        return RedisEngine(store.redis_url, namespace=store.namespace, cell=cell)
    if not isinstance(store, InMemoryStateStore):
        _log.warning("ledger.in_process", store=type(store).__name__, reason="a custom store keeps entities only")
    return LocalEngine(cell=cell)


def _open_transport(admits: Callable[[str], bool] | None = None) -> Transport:
    from apikeyrouter.infrastructure.adapters.transports import make_transport

    return make_transport(admits=admits)
