"""ApiKeyRouter: the way of one request, from what the caller wants to what it cost.

    admit → attempt → (fail → learn → admit elsewhere)* → answer → settle

`serve` is that way; `route` and `route_stream` dress it for Python callers, the HTTP service for SDKs.
"""

import asyncio
import contextlib
import os
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from apikeyrouter.domain.components.catalogue import (
    BudgetRule,
    Catalogue,
    Key,
    ModelPool,
    Provider,
    key_lane,
    provider_lane,
)
from apikeyrouter.domain.components.failure_handler import consequences
from apikeyrouter.domain.components.key_manager import KeyManager
from apikeyrouter.domain.components.limits import LimitRow, compile_limits
from apikeyrouter.domain.components.pool import Option, Pool, Snapshot
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.interfaces.wire import ParsedRequest
from apikeyrouter.domain.models.accounting import Breaker, LaneConfig, Reason
from apikeyrouter.domain.models.api_key import APIKey, KeyRouting, KeyState, StateTransition
from apikeyrouter.domain.models.call import AttemptFacts, Call, Exchange, Facts
from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.state_summary import StateSummary
from apikeyrouter.domain.models.system_error import (
    ConfigurationError,
    InvalidRequestError,
    LedgerError,
    NoEligibleKeysError,
    ProviderError,
)
from apikeyrouter.domain.models.system_response import StreamChunk, SystemResponse, TokenUsage
from apikeyrouter.infrastructure.adapters.transport import Response, Timeouts, Transport
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.config.limit_profiles import profile_for
from apikeyrouter.infrastructure.config.settings import RouterSettings
from apikeyrouter.infrastructure.ledger.engine import Engine
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.infrastructure.security.key_vault import KeyVault
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.serving.admission import Admissions, Admitted, ParsedFor, Refused
from apikeyrouter.serving.attempt import Attempt, Attempts
from apikeyrouter.serving.bookkeeping import Bookkeeper
from apikeyrouter.serving.deferred import Deferrals
from apikeyrouter.serving.housekeeping import Housekeeper
from apikeyrouter.serving.reporting import budget_exceeded, decision_of, no_eligible_keys, summarise

ATTEMPTS_MAX = 3
LEASE_US = 30_000_000
FLUSH_SECONDS_AT_CLOSE = 5.0
OBSERVE_EVERY_SECONDS = 0.5
"""A lane is re-synced with its provider's headers at most this often."""
RATIOS_DOCUMENT = ("token_ratios", "learned")
KEY_BREAKER = Breaker()
PROVIDER_BREAKER = Breaker(failures=20)
"""A provider opens only when far more fails in a row than one key's worth."""
_log = EventLog("apikeyrouter")


class ApiKeyRouter:
    """Routes requests over keys, with limits and budgets that are held exactly by every process on the same store.

    Args:
        state_store: where entities live; the ledger follows it (in process, or the same Redis). None:
            `APIKEYROUTER_REDIS_URL` if set, else in memory.
        observability_manager: anything with the documented methods.
        config: RouterSettings, or a dict of its fields.

    An async context manager; `close` flushes every settlement. Bound to the event loop that first uses it.

    Raises:
        ConfigurationError: settings that are unknown or wrong.
    """

    def __init__(
        self,
        state_store: StateStore | None = None,
        observability_manager: Any = None,
        config: RouterSettings | Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = RouterSettings.read(config)
        self.state_store = state_store or _default_store(self.settings)
        self.observability_manager = observability_manager
        self.ledger = ScriptLedger(_engine_for(self.state_store))
        self.catalogue = Catalogue(PriceBook.load())
        self.estimator = TokenEstimator()
        self.snapshot = Snapshot()
        self.on_finished: list[Callable[[Facts], None]] = []
        self.decisions: deque[Facts] = deque(maxlen=self.settings.max_decisions)
        self.decided = 0
        self.in_flight = 0
        self.spent_nanousd = 0
        self.unpriced_requests = 0
        self.objective = "fairness"
        self.attempts_max = ATTEMPTS_MAX
        self.books = Bookkeeper(self.ledger)
        self.key_manager = KeyManager(
            self.state_store, self.catalogue, self._open_vault, declare=self._declare_key,
            announce=self._announce, cooldown_seconds=self.settings.default_cooldown_seconds,
        )  # fmt: skip
        self._admissions = Admissions(
            self.ledger, self.catalogue, self.estimator, self.snapshot, lease_us=LEASE_US, refresh=self._refresh
        )
        self._attempts = Attempts(
            _open_transport, self.books, self.estimator, observe=self._observe, finished=self._finished,
            timeouts=Timeouts(),
        )  # fmt: skip
        self._housekeeper = Housekeeper(
            self.ledger, self.books, self.snapshot, self._lane_ids, self._restore_configuration
        )
        self._configured: dict[str, LaneConfig] = {}
        self._deferrals = Deferrals()
        self._vault: KeyVault | None = None
        self._observed: dict[str, float] = {}
        self._starting: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[Any]] = set()
        self._draining = False

    # --- the way of one request ------------------------------------------------------------------------------------

    async def serve(self, call: Call) -> Exchange:
        """The answer to one call. See `domain/models/call.py` for what goes in and comes out.

        Raises:
            InvalidRequestError: the request is wrong; nothing was held.
            NoEligibleKeysError: no key has room now, or ever.
            BudgetExceededError: a hard budget has no room.
            ProviderError: every attempt failed; `details["failure"]` says how the last one did.
            LedgerUnavailableError: the store cannot be reached.
        """
        if self._loop is None or self._deferrals.pending:
            await self.start()
        objective = call.objective.primary if call.objective is not None else self.objective
        facts = self._facts(call, objective)
        self.in_flight += 1
        streaming = False
        try:
            pool = self.catalogue.pool(call.model, call.provider_id, call.dialect)
            tried: list[Option] = []
            while True:
                admitted = await self._admit(call, pool, facts, tried)
                answer = await self._attempt(call, facts, admitted)
                if not isinstance(answer, Failure):
                    streaming = answer.chunks is not None
                    return answer
                self._learn(answer, admitted.option, pool, tried)
                if not answer.retry_elsewhere or len(tried) == len(pool.options) or self._is_over(call, facts):
                    raise _provider_error(answer, facts)
        except BaseException as exc:
            facts.outcome = _outcome_of(exc)
            raise
        finally:
            if not streaming:
                self._finished(call, facts)

    async def _admit(self, call: Call, pool: Pool, facts: Facts, tried: list[Option]) -> Admitted:
        started = time.perf_counter()
        admitted = await self._admissions.admit(call, pool, _parsed_of(call), objective=facts.objective, skip=tried)
        if isinstance(admitted, Refused):
            raise await self._refusal(admitted, facts)
        option = admitted.option
        facts.token_cap = admitted.token_cap
        facts.soft_exceeded = admitted.admission.soft_exceeded
        facts.attempts.append(
            AttemptFacts(
                key_id=option.key.id, provider_id=option.provider.id, model=option.model, rid=admitted.request.rid,
                losses=admitted.admission.losses, candidates=tuple(other.key.id for other in admitted.offered),
                probe=admitted.admission.probe, reserve_us=int((time.perf_counter() - started) * 1e6),
            )
        )  # fmt: skip
        self.decided += 1
        return admitted

    async def _attempt(self, call: Call, facts: Facts, admitted: Admitted) -> Exchange | Failure:
        hold = self.books.held(admitted.request, admitted.admission.index)
        task = asyncio.current_task()
        if task is not None:
            hold.abort = task.cancel
        timeouts = self._attempts.timeouts(call)
        provider = admitted.option.provider
        attempt = Attempt(
            call=call, facts=facts, own=facts.attempts[-1], admitted=admitted, wire=provider.wire, timeouts=timeouts
        )
        if provider.wire is None:
            return await self._attempts.run_adapter(attempt, provider.adapter)
        return await self._attempts.run(attempt)

    def _learn(self, failure: Failure, option: Option, pool: Pool, tried: list[Option]) -> None:
        """Act on a failure at the scope it speaks for; what this request need not try again goes to `tried`."""
        found = consequences(
            failure, option, pool.options, now_us=time.time_ns() // 1000,
            default_seconds=self.settings.quota_default_cooldown_seconds,
        )  # fmt: skip
        tried.extend(other for other in found.skip if other not in tried)
        until = time.perf_counter() + found.seconds
        for lane in found.cool:
            self.snapshot.blocked[lane] = max(until, self.snapshot.blocked.get(lane, 0.0))
            self._chore(self.ledger.record(lane, blocked_for_us=int(found.seconds * 1e6)))
        if found.key_state is not None:
            self._chore(self._key_out(option.key, found.key_state, failure, found.seconds))

    async def _key_out(self, key: Key, state: KeyState, failure: Failure, seconds: float) -> None:
        if key.state is state:
            return
        for_seconds = seconds if state is KeyState.Exhausted else None
        with contextlib.suppress(InvalidRequestError):  # another attempt was first
            await self.key_manager.update_key_state(
                key.id, state, failure.message, actor="router", for_seconds=for_seconds
            )

    async def _refusal(self, refused: Refused, facts: Facts) -> Exception:
        now_us = self.ledger.stamp.now_us
        binding = refused.binding
        facts.denial = binding
        if binding.reason in (Reason.BUDGET, Reason.UNPRICED):
            states = await self.ledger.scopes([binding.where])
            if states:
                needed = -1 if binding.reason is Reason.UNPRICED else refused.needed_nanousd
                return budget_exceeded(binding, states[0], needed, now_us=now_us)
        return no_eligible_keys(refused.losses, binding, now_us=now_us)

    def _finished(self, call: Call, facts: Facts) -> None:
        self.in_flight -= 1
        facts.total_us = int((time.perf_counter() - call.started) * 1e6)
        facts.overhead_us = max(0, facts.total_us - facts.upstream_us)
        if facts.cost_nanousd is None:
            self.unpriced_requests += facts.outcome == "ok"
        else:
            self.spent_nanousd += facts.cost_nanousd
        self.decisions.append(facts)
        for told in self.on_finished:
            told(facts)

    def _is_over(self, call: Call, facts: Facts) -> bool:
        late = call.deadline is not None and time.perf_counter() >= call.deadline
        return late or len(facts.attempts) >= self.attempts_max

    def _facts(self, call: Call, objective: str) -> Facts:
        return Facts(
            request_id=call.request_id, operation=call.operation, model=call.model, stream=call.stream,
            objective=objective, team=call.team, client=call.client, at_us=time.time_ns() // 1000,
            snapshot_age_us=int((call.started - self.snapshot.taken) * 1e6) if self.snapshot.taken else 0,
        )  # fmt: skip

    # --- Python callers ------------------------------------------------------------------------------------------

    async def route(
        self, request_intent: RequestIntent | Mapping[str, Any], objective: RoutingObjective | str | None = None
    ) -> SystemResponse:
        """Route one request and return its answer. Raises as `serve`; wrong input is a ValueError."""
        call = _call_of(RequestIntent.parse(request_intent), objective, stream=False)
        exchange = await self.serve(call)
        response = self._decoded(call, exchange)
        await self._keep_decision(exchange.facts)
        return response

    async def route_stream(
        self, request_intent: RequestIntent | Mapping[str, Any], objective: RoutingObjective | str | None = None
    ) -> AsyncIterator[StreamChunk]:
        """Yield the answer in pieces; printing a piece prints its text. The last one has usage, cost and key_used."""
        call = _call_of(RequestIntent.parse(request_intent), objective, stream=True)
        exchange = await self.serve(call)
        assert exchange.chunks is not None
        received: list[str] = []
        try:
            async for piece in exchange.chunks:
                for chunk in self._pieces(exchange.facts, piece):
                    received.append(chunk.text)
                    yield chunk
        except ProviderError as exc:
            exc.details["partial"] = "".join(received)
            raise
        finally:
            await exchange.chunks.aclose()
            await self._keep_decision(exchange.facts)
        yield _last_chunk(exchange.facts)

    def _pieces(self, facts: Facts, piece: bytes | StreamChunk) -> list[StreamChunk]:
        if isinstance(piece, StreamChunk):
            return [piece]
        provider = self.catalogue.providers[facts.provider_id]
        return [provider.adapter.decode_delta(delta) for delta in provider.wire.read_deltas(piece)]

    def _decoded(self, call: Call, exchange: Exchange) -> SystemResponse:
        facts = exchange.facts
        adapter = self.catalogue.providers[facts.provider_id].adapter
        answer: SystemResponse = exchange.response or adapter.decode_response(exchange.body, call.intent)
        cost = _cost_of(facts)
        metadata = answer.metadata.model_copy(
            update={
                "provider_id": facts.provider_id, "response_time_ms": facts.total_us // 1000,
                "request_id": call.request_id, "correlation_id": call.request_id, "key_used": facts.key_id,
                "model_used": answer.metadata.model_used or call.model,
                "cost": cost.amount if cost else None, "cost_actual": cost.amount if cost else None,
                "tokens_used": TokenUsage.from_usage(facts.usage) if facts.usage else answer.metadata.tokens_used,
            }
        )  # fmt: skip
        return answer.model_copy(
            update={"metadata": metadata, "cost": cost, "key_used": facts.key_id, "request_id": call.request_id}
        )

    # --- registration --------------------------------------------------------------------------------------------

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
        if not callable(getattr(adapter, "execute_request", None)):
            raise ConfigurationError(f"the adapter of provider {id_!r} has no execute_request")
        if id_ in self.catalogue.providers and not overwrite:
            raise ConfigurationError(f"provider {id_!r} is registered already; pass overwrite=True to replace it")
        await self._started()
        await self.ledger.put(lanes=[LaneConfig(id=provider_lane(id_), breaker=PROVIDER_BREAKER)])
        models = adapter.get_capabilities().models
        self.catalogue.providers[id_] = Provider(
            id=id_, adapter=adapter, wire=getattr(adapter, "wire", None), models=models
        )
        self.catalogue.changed()
        await self.key_manager.refresh()

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

    async def apply(self, config: CompiledConfig) -> None:
        """Take over a compiled configuration file, all of it."""
        await self.start()
        from apikeyrouter.infrastructure.adapters.registry import make_adapter

        for provider in config.providers.values():
            adapter = make_adapter(provider)
            self.catalogue.providers[provider.id] = Provider(
                id=provider.id, adapter=adapter, wire=getattr(adapter, "wire", None),
                models=adapter.get_capabilities().models,
            )  # fmt: skip
        for group, pools in config.pools.items():
            self.catalogue.set_model_pools(group, [ModelPool(lane=lane, models=models) for lane, models in pools])
        self.catalogue.aliases = {
            alias: tuple((target.provider_id, target.model) for target in targets)
            for alias, targets in config.aliases.items()
        }
        for price in config.prices:
            self.catalogue.prices.add(
                price.provider_id, price.model, input=price.input, output=price.output,
                cached_input=price.cached_input, cache_write=price.cache_write,
                cache_write_long=price.cache_write_long, request=price.request,
            )  # fmt: skip
        self.catalogue.set_budgets(
            BudgetRule(scope=budget.config, kind=budget.scope.value, target=budget.scope_id or "")
            for budget in config.budgets
        )
        self._configured = {lane.id: lane for lane in config.lanes}
        await self.ledger.put(lanes=config.lanes, scopes=config.scopes)
        self.objective = config.routing.objective
        self.attempts_max = config.routing.attempts_max
        self._admissions.lease_us = config.routing.lease_ms * 1000
        for record in config.keys:
            metadata = {**record.metadata, "quota_group": record.quota_group, "weight": record.weight}
            if record.models is not None:
                metadata["models"] = sorted(record.models)
            await self.key_manager.register_key(record.material, record.provider_id, metadata, key_id=record.id)
        self._admissions.config_version = self.ledger.stamp.config_version

    async def _declare_key(self, key: Key, routing: KeyRouting) -> None:
        """Put a key's lanes, and its group's when the metadata states limits, into the ledger."""
        provider = self.catalogue.providers.get(key.provider_id)
        profile = profile_for(provider.wire.dialect if provider is not None and provider.wire is not None else "")
        lanes = [self._configured.get(key_lane(key.id)) or LaneConfig(id=key_lane(key.id), breaker=KEY_BREAKER)]
        pools: list[ModelPool] = []
        for row in routing.limits:
            fields = dict(row)
            models = fields.pop("models", None)
            named = None if models is None else frozenset(models)
            lane = f"g:{key.quota_group}:{'*' if named is None else '+'.join(sorted(named))}"
            lanes.append(LaneConfig(id=lane, limits=compile_limits(LimitRow.parse(fields), profile), fair=True))
            pools.append(ModelPool(lane=lane, models=named))
        if pools:
            self.catalogue.set_model_pools(key.quota_group, pools)
        await self.ledger.put(lanes=lanes)
        self._admissions.config_version = self.ledger.stamp.config_version

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, begin background work, finish registrations that were not awaited. Called by itself on first use."""
        await self._started()
        await self._deferrals.finish()

    async def _started(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None:
            raise ConfigurationError("this router belongs to another event loop; make one router per loop")
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            await self._open_once(loop)

    async def _open_once(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is None:
            stamp = await self.ledger.open()
            self._admissions.config_version = stamp.config_version
            learned = await self.state_store.get_document(*RATIOS_DOCUMENT)
            if learned:
                self.estimator.merge(learned)
            self._attempts.open()
            self._loop = loop
            self.books.start()
            self._housekeeper.start()
            self._watcher = loop.create_task(self._watch(), name="apikeyrouter.watcher")

    async def drain(self, timeout_s: float = 60.0) -> bool:
        """Wait until no call is open and every settlement is booked; whether both came true in time."""
        self._draining = True
        deadline = time.perf_counter() + timeout_s
        while self.in_flight and time.perf_counter() < deadline:
            await asyncio.sleep(0.02)
        flushed = await self.books.flush(seconds=max(0.1, deadline - time.perf_counter()))
        return flushed and not self.in_flight

    async def close(self) -> None:
        """Flush settlements and decisions, stop background work, let go of connections. Idempotent."""
        if self._loop is None:
            return
        await self.books.flush(seconds=FLUSH_SECONDS_AT_CLOSE)
        for task in (self._watcher, *self._chores):
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in (self._watcher, *self._chores) if task), return_exceptions=True)
        await self._housekeeper.close()
        await self.books.close()
        with contextlib.suppress(Exception):  # learned ratios are a convenience; losing them costs accuracy only
            await self.state_store.save_document(*RATIOS_DOCUMENT, self.estimator.export())
        await self._attempts.close()
        for provider in self.catalogue.providers.values():
            closing = getattr(provider.adapter, "close", None)
            if closing is not None:
                await closing()
        await self.ledger.close()
        await self.state_store.aclose()
        self._loop = None
        self._starting = None

    async def __aenter__(self) -> "ApiKeyRouter":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get_state_summary(self) -> StateSummary:
        """Keys, quotas and costs in a few numbers."""
        await self.start()
        scopes = await self.ledger.scopes([scope.id for scope in self.catalogue.budgets()])
        return summarise(self.catalogue, scopes, spent=self.spent_nanousd, unpriced=self.unpriced_requests)

    # --- background ----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Take over what other processes change, within a second."""
        while True:
            try:
                async for _ in self.state_store.watch():
                    await self.key_manager.refresh()
                return
            except asyncio.CancelledError:
                raise
            except Exception as exc:  # the watcher must outlive every outage
                _log.warning("watch.failed", error=str(exc))
                await asyncio.sleep(1.0)

    async def _refresh(self) -> None:
        await self.key_manager.refresh()

    async def _restore_configuration(self) -> None:
        """Put every lane and budget this process knows back into a cell that forgot them."""
        await self.ledger.put(lanes=list(self._configured.values()), scopes=self.catalogue.budgets())
        for key in list(self.catalogue.keys.values()):
            await self._declare_key(key, KeyRouting.parse(key.metadata))
        self._admissions.config_version = self.ledger.stamp.config_version

    def _lane_ids(self) -> list[str]:
        lanes = {key_lane(key_id) for key_id in self.catalogue.keys}
        lanes.update(provider_lane(provider_id) for provider_id in self.catalogue.providers)
        for key in self.catalogue.keys.values():
            lanes.update(self.catalogue.lanes_of_group(key.quota_group))
        return sorted(lanes)

    def _observe(self, admitted: Admitted, response: Response) -> None:
        """Re-sync the lane that meters this model with what the provider's headers say, now and then."""
        lane = admitted.option.lanes[1]
        now = time.perf_counter()
        if now < self._observed.get(lane, 0.0):
            return
        self._observed[lane] = now + OBSERVE_EVERY_SECONDS
        seen = admitted.option.provider.wire.observe(response.headers)
        if seen:
            self._chore(self.ledger.record(lane, observations=seen))

    def _announce(self, transition: StateTransition) -> None:
        _log.info(
            "key.state_changed", key_id=transition.entity_id, state=transition.to_state.value, reason=transition.reason
        )

    async def _keep_decision(self, facts: Facts) -> None:
        if facts.attempts:
            await self.state_store.save_routing_decision(decision_of(facts))

    def _open_vault(self) -> KeyVault:
        if self._vault is None:
            private = isinstance(self.state_store, InMemoryStateStore)
            self._vault = KeyVault.open(self.settings.encryption_key, private_store=private)
        return self._vault

    def _chore(self, work: Any) -> None:
        async def quietly() -> None:
            try:
                await work
            except LedgerError as exc:
                _log.warning("chore.failed", error=str(exc))

        task = asyncio.get_running_loop().create_task(quietly())
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)


def _default_store(settings: RouterSettings) -> StateStore:
    url = os.environ.get("APIKEYROUTER_REDIS_URL")
    if url:
        return RedisStateStore(url, os.environ.get("APIKEYROUTER_NAMESPACE", "apikeyrouter"))
    return InMemoryStateStore(max_decisions=settings.max_decisions, max_transitions=settings.max_transitions)


def _engine_for(store: StateStore) -> Engine:
    """The ledger follows the store: the same Redis, or in this process."""
    if isinstance(store, RedisStateStore):
        return RedisEngine(store.redis_url, namespace=store.namespace)
    if not isinstance(store, InMemoryStateStore):
        _log.warning("ledger.in_process", store=type(store).__name__, reason="a custom store keeps entities only")
    return LocalEngine()


def _open_transport() -> Transport:
    from apikeyrouter.infrastructure.adapters.http_transport import AiohttpTransport

    return AiohttpTransport()


def _call_of(intent: RequestIntent, objective: RoutingObjective | str | None, *, stream: bool) -> Call:
    return Call(
        request_id=f"req_{uuid.uuid4().hex}", operation=intent.operation.value, model=intent.model, stream=stream,
        started=time.perf_counter(), intent=intent, provider_id=intent.provider_id, team=intent.team,
        client=intent.client, principal=intent.client or "",
        objective=None if objective is None else RoutingObjective.read(objective),
    )  # fmt: skip


def _parsed_of(call: Call) -> ParsedFor:
    """The request in an option's dialect: the client's own body, or the intent put into that dialect, once each."""
    if call.parsed is not None:
        own = (call.operation, call.parsed)
        return lambda _: own
    known: dict[str, tuple[str, ParsedRequest | None]] = {}

    def parsed(option: Option) -> tuple[str, ParsedRequest | None]:
        provider = option.provider
        if provider.id not in known:
            known[provider.id] = (call.operation, None)
            if provider.wire is not None and call.intent is not None:
                operation, body = provider.adapter.encode_intent(call.intent, stream=call.stream)
                known[provider.id] = (operation, provider.wire.parse(body, operation=operation))
        return known[provider.id]

    return parsed


def _provider_error(failure: Failure, facts: Facts) -> ProviderError:
    seconds = -(-failure.retry_after_us // 1_000_000)
    return ProviderError(
        failure.message, category=failure.category, retryable=failure.retry_elsewhere, retry_after=seconds or None,
        details={
            "failure": failure, "status": failure.status, "code": failure.code, "request_id": facts.request_id,
            "attempts": len(facts.attempts),
        },
    )  # fmt: skip


def _outcome_of(error: BaseException) -> str:
    category = getattr(error, "category", None)
    if category is not None:
        return str(category.value)
    return {
        InvalidRequestError: "invalid_request", NoEligibleKeysError: "no_eligible_keys",
        asyncio.CancelledError: "cancelled",
    }.get(type(error), "ledger_error" if isinstance(error, LedgerError) else type(error).__name__)  # fmt: skip


def _cost_of(facts: Facts) -> CostEstimate | None:
    if facts.cost_nanousd is None:
        return None
    usage = facts.usage
    return CostEstimate.from_nanousd(
        facts.cost_nanousd, input_tokens=usage.input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
    )  # fmt: skip


def _last_chunk(facts: Facts) -> StreamChunk:
    return StreamChunk(
        last=True, usage=TokenUsage.from_usage(facts.usage) if facts.usage else None, cost=_cost_of(facts),
        key_used=facts.key_id, request_id=facts.request_id, finish_reason=facts.finish_reason,
    )  # fmt: skip
