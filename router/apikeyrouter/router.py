"""ApiKeyRouter: the way of one request, from what the caller wants to what it cost.

    admit → attempt → (fail → learn → admit elsewhere)* → answer → settle

`serve` is that way; `route` and `route_stream` dress it for Python callers, the HTTP service for SDKs.
"""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

from apikeyrouter.domain.components.catalogue import Catalogue, Key, Provider
from apikeyrouter.domain.components.failure_handler import consequences
from apikeyrouter.domain.components.key_manager import KeyManager
from apikeyrouter.domain.components.pool import Option, Pool, Snapshot
from apikeyrouter.domain.components.price_book import PriceBook
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.accounting import Reason
from apikeyrouter.domain.models.api_key import APIKey, KeyState, StateTransition
from apikeyrouter.domain.models.call import AttemptFacts, Call, Exchange, Facts
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.state_summary import StateSummary
from apikeyrouter.domain.models.system_error import (
    ApiKeyRouterError,
    ConfigurationError,
    InvalidRequestError,
    LedgerUnavailableError,
    ProviderError,
    StaleConfigError,
)
from apikeyrouter.domain.models.system_response import StreamChunk, SystemResponse
from apikeyrouter.infrastructure.adapters.transport import Response, Timeouts, Transport
from apikeyrouter.infrastructure.config.compiled import CompiledConfig, KeyRecord, ProviderRecord
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
from apikeyrouter.serving.answers import last_chunk, outcome_of, pieces_of, provider_error, response_of
from apikeyrouter.serving.attempt import Attempts
from apikeyrouter.serving.bookkeeping import Bookkeeper, Release
from apikeyrouter.serving.configuring import Configuration, metadata_of
from apikeyrouter.serving.deferred import Deferrals
from apikeyrouter.serving.endings import Attempt
from apikeyrouter.serving.housekeeping import Housekeeper
from apikeyrouter.serving.reporting import budget_exceeded, decision_of, no_eligible_keys, summarise
from apikeyrouter.serving.requests import call_of, parsed_for, unfit

ATTEMPTS_MAX = 3
LEASE_US = 30_000_000
ABORT_SECONDS_AT_CLOSE = 1.0
FLUSH_SECONDS_AT_CLOSE = 5.0
CHORES_SECONDS_AT_CLOSE = 1.0
CANCEL_ROUNDS_MAX = 20
CANCEL_SECONDS = 0.1
"""A client library may swallow a cancellation while it connects; then it is cancelled again."""
OBSERVE_EVERY_SECONDS = 0.5
"""A lane is re-synced with its provider's headers at most this often."""
DECISION_SECONDS_MAX = 0.1
"""Longest that an answer waits for its decision to be kept; after that it is kept behind its back."""
STALE_ROUNDS_MAX = 3
"""Tries under the configuration that is known here; while others keep changing it, then under whichever is active."""
RATIOS_DOCUMENT = ("token_ratios", "learned")
RATIOS_EVERY_SECONDS = 30.0
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
        self._configuration = Configuration(self.catalogue, self.ledger, self.state_store)
        self.key_manager = KeyManager(
            self.state_store, self.catalogue, self._open_vault, lanes=self._configuration, announce=self._announce,
            report=self._report_unreadable, cooldown_seconds=self.settings.default_cooldown_seconds,
        )  # fmt: skip
        self._admissions = Admissions(self.ledger, self.catalogue, self.estimator, self.snapshot, lease_us=LEASE_US)
        self._attempts = Attempts(
            _open_transport, self.books, self.estimator, observe=self._observe, finished=self._finished,
            timeouts=Timeouts(),
        )  # fmt: skip
        self._housekeeper = Housekeeper(
            self.ledger, self.books, self.snapshot, self._lane_ids, self._restore, self._periodic
        )
        self._deferrals = Deferrals()
        self._vault: KeyVault | None = None
        self._observed: dict[str, float] = {}
        self._lanes_known: tuple[int, list[str]] = (-1, [])
        self._file_providers: frozenset[str] = frozenset()
        self._restored = 0
        self._ratios_at = 0.0
        self._starting: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._refresh_lock = asyncio.Lock()
        self._refresh_asked = self._refresh_done = 0
        self._chores: set[asyncio.Task[None]] = set()

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
        if self._loop is not asyncio.get_running_loop() or self._deferrals.pending:
            await self.start()
        facts = self._facts(call)
        self.in_flight += 1
        streaming = False
        try:
            parsed = parsed_for(call)
            tried: set[tuple[str, str]] = set()
            failed: ProviderError | None = None
            while True:
                pool, attempt = await self._admit(call, parsed, facts, tried, failed)
                answer = await self._attempts.run(attempt)
                if not isinstance(answer, Failure):
                    streaming = answer.chunks is not None
                    self._learn_success(attempt.admitted.option)
                    return answer
                self._learn(answer, attempt.admitted.option, pool, tried)
                failed = provider_error(answer, facts)
                if not answer.retry_elsewhere or self._is_over(call, facts) or _all_tried(pool, tried):
                    raise failed
        except BaseException as exc:
            facts.outcome = outcome_of(exc)
            raise
        finally:
            if not streaming:
                self._finished(call, facts)

    async def _admit(
        self, call: Call, parsed: ParsedFor, facts: Facts, tried: set[tuple[str, str]], failed: ProviderError | None
    ) -> tuple[Pool, Attempt]:
        """Hold an option that was not tried yet, under the configuration that is in force."""
        started = time.perf_counter()
        for rounds in range(STALE_ROUNDS_MAX + 1):
            pool = self.catalogue.pool(call.model, call.provider_id, call.dialect)
            mute = unfit(call, pool, parsed)
            skip = _skipped(pool, tried, mute) if tried or mute else ()
            try:
                admitted = await self._admissions.admit(
                    call, pool, parsed, objective=facts.objective, skip=skip, any_version=rounds == STALE_ROUNDS_MAX
                )
            except StaleConfigError:
                await self._refresh()
                continue
            if isinstance(admitted, Refused):
                raise await self._refusal(admitted, pool, facts) from failed
            return pool, self._held(call, facts, admitted, started)
        raise LedgerUnavailableError("the configuration changes faster than it can be read")

    def _held(self, call: Call, facts: Facts, admitted: Admitted, started: float) -> Attempt:
        """What was admitted, noted. From here on somebody hands its end in, whatever happens."""
        hold = self.books.held(admitted.request, admitted.admission.index)
        try:
            option, admission = admitted.option, admitted.admission
            facts.token_cap = admitted.token_cap
            facts.soft_exceeded = admission.soft_exceeded
            own = AttemptFacts(
                key_id=option.key.id, provider_id=option.provider.id, model=option.model, rid=admitted.request.rid,
                losses=admission.losses, candidates=tuple(other.key.id for other in admitted.offered),
                probe=admission.probe, reserve_us=int((time.perf_counter() - started) * 1e6),
            )  # fmt: skip
            facts.attempts.append(own)
            self.decided += 1
            return Attempt(
                call=call, facts=facts, own=own, admitted=admitted, hold=hold, wire=option.provider.wire,
                timeouts=self._attempts.timeouts(call),
            )  # fmt: skip
        except BaseException:
            self.books.hand_in(Release(rid=admitted.request.rid, sent=False))
            raise

    def _learn(self, failure: Failure, option: Option, pool: Pool, tried: set[tuple[str, str]]) -> None:
        """Act on a failure at the scope it speaks for; what this request need not try again goes to `tried`."""
        found = consequences(
            failure, option, pool.options, now_us=time.time_ns() // 1000,
            default_seconds=self.settings.quota_default_cooldown_seconds,
        )  # fmt: skip
        tried.update((other.key.id, other.model) for other in found.skip)
        until = time.perf_counter() + found.seconds
        for lane in found.cool:
            self.snapshot.blocked[lane] = max(until, self.snapshot.blocked.get(lane, 0.0))
            self._chore(self.ledger.record(lane, blocked_for_us=int(found.seconds * 1e6)))
        for key in found.keys:
            self._put_out(key, found.key_state, failure, found.seconds)

    def _put_out(self, key: Key, state: KeyState | None, failure: Failure, seconds: float) -> None:
        """Here at once, elsewhere as soon as the store has it."""
        if state is None or key.state is state:
            return
        key.state, key.state_reason = state, failure.message
        self.catalogue.changed()
        self._chore(self._move_key(key.id, state, failure.message, seconds if state is KeyState.Exhausted else None))

    def _learn_success(self, option: Option) -> None:
        """A key that was given another chance has taken it."""
        if option.key.state is KeyState.Recovering:
            option.key.state = KeyState.Available
            self._chore(self._move_key(option.key.id, KeyState.Available, "it serves again", None))

    async def _move_key(self, key_id: str, state: KeyState, reason: str, for_seconds: float | None) -> None:
        with contextlib.suppress(InvalidRequestError):  # another attempt was first, or the key is gone
            await self.key_manager.update_key_state(key_id, state, reason, actor="router", for_seconds=for_seconds)

    async def _refusal(self, refused: Refused, pool: Pool, facts: Facts) -> Exception:
        now_us = self.ledger.stamp.now_us
        binding = refused.binding
        facts.denial = binding
        budget = None if binding is None else self.catalogue.budget(binding.where)
        if binding is not None and budget is not None:
            states = await self.ledger.scopes([budget.id])  # a budget that was never held in has no state yet
            needed = -1 if binding.reason is Reason.UNPRICED else refused.needed_nanousd
            return budget_exceeded(binding, budget, states[0] if states else None, needed, now_us=now_us)
        return no_eligible_keys(refused.losses, binding, out=pool.out, now_us=now_us)

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
            try:
                told(facts)
            except Exception as exc:
                _log.error("listener.failed", error=repr(exc))

    def _is_over(self, call: Call, facts: Facts) -> bool:
        late = call.deadline is not None and time.perf_counter() >= call.deadline
        return late or len(facts.attempts) >= self.attempts_max

    def _facts(self, call: Call) -> Facts:
        return Facts(
            request_id=call.request_id, operation=call.operation, model=call.model, stream=call.stream,
            objective=self.objective if call.objective is None else call.objective.primary, team=call.team,
            client=call.client, at_us=time.time_ns() // 1000,
            snapshot_age_us=max(0, int((call.started - self.snapshot.taken) * 1e6)) if self.snapshot.taken else 0,
        )  # fmt: skip

    # --- Python callers ------------------------------------------------------------------------------------------

    async def route(
        self, request_intent: RequestIntent | Mapping[str, Any], objective: RoutingObjective | str | None = None
    ) -> SystemResponse:
        """Route one request and return its answer. Raises as `serve`; wrong input is a ValueError."""
        call = call_of(RequestIntent.parse(request_intent), objective, stream=False)
        exchange = await self.serve(call)
        response = response_of(self._provider_of(exchange.facts), call, exchange)
        await self._keep_decision(exchange.facts)
        return response

    async def route_stream(
        self, request_intent: RequestIntent | Mapping[str, Any], objective: RoutingObjective | str | None = None
    ) -> AsyncIterator[StreamChunk]:
        """Yield the answer in pieces; printing a piece prints its text. The last one has usage, cost and key_used."""
        call = call_of(RequestIntent.parse(request_intent), objective, stream=True)
        exchange = await self.serve(call)
        assert exchange.chunks is not None
        received: list[str] = []
        try:
            provider = self._provider_of(exchange.facts)
            async for piece in exchange.chunks:
                for chunk in pieces_of(provider, piece):
                    received.append(chunk.text)
                    yield chunk
        except ProviderError as exc:
            exc.details["partial"] = "".join(received)
            raise
        finally:
            await exchange.chunks.aclose()
            await self._keep_decision(exchange.facts)
        yield last_chunk(exchange.facts)

    def _provider_of(self, facts: Facts) -> Provider:
        provider: Provider = self.catalogue.providers[facts.provider_id]
        return provider

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
        made = _provider(id_, adapter)
        await self._configuration.declare_provider(id_)
        self.catalogue.providers[id_] = made
        self.catalogue.changed()
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

    async def apply(self, config: CompiledConfig) -> None:
        """Take over a compiled configuration file, while requests run. What can be wrong is found before any change.

        What the file of before named and this one does not is dropped: keys, budgets, limits, aliases, prices.
        After an outage in the middle, applying it again completes it.

        Raises:
            ConfigurationError: an adapter refuses its options; nothing was changed.
            LedgerUnavailableError, StateStoreUnavailableError: the store went away.
        """
        await self.start()
        adapters = _adapters(config.providers)
        if config.keys:
            self._open_vault()
        for provider_id in self._file_providers.difference(adapters):
            self.catalogue.providers.pop(provider_id, None)
        self._file_providers = frozenset(adapters)
        self.catalogue.providers.update(adapters)
        self.catalogue.changed()
        dropped = await self._configuration.replace_file(config)
        self.objective = config.routing.objective
        self.attempts_max = config.routing.attempts_max
        self._admissions.lease_us = config.routing.lease_ms * 1000
        for record in config.keys:
            await self._apply_key(record)
        for key_id in dropped:
            with contextlib.suppress(InvalidRequestError):  # another process was first
                await self.key_manager.revoke_key(key_id)
        await self._refresh()

    async def _apply_key(self, record: KeyRecord) -> None:
        metadata = metadata_of(
            record.metadata, quota_group=record.quota_group, weight=record.weight, models=record.models
        )
        await self.key_manager.register_key(record.material, record.provider_id, metadata, key_id=record.id)

    @property
    def timeouts(self) -> Timeouts:
        """Seconds that each phase of an exchange with a provider may take."""
        return self._attempts.default_timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        self._attempts.default_timeouts = timeouts

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, begin background work, finish registrations that were not awaited. Called by itself on first use.

        Raises:
            ConfigurationError: the router belongs to another event loop, or a registration was wrong.
        """
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
            if self._loop is None:
                await self._open(loop)

    async def _open(self, loop: asyncio.AbstractEventLoop) -> None:
        self._refresh_lock = asyncio.Lock()
        await self.ledger.open()
        await self._configuration.refresh()
        await self._share_ratios()
        self._admissions.config_version = self.ledger.stamp.config_version
        self._attempts.open()
        self._loop = loop
        self.books.start()
        self._housekeeper.start()
        self._watcher = loop.create_task(self._watch(), name="apikeyrouter.watcher")

    async def drain(self, timeout_s: float = 60.0) -> bool:
        """Wait until no call is open and every settlement is booked; whether both came true in time."""
        deadline = time.perf_counter() + timeout_s
        await self._until_idle(timeout_s)
        flushed = await self.books.flush(seconds=max(0.1, deadline - time.perf_counter()))
        return flushed and not self.in_flight

    async def close(self) -> None:
        """End what is open, flush settlements, stop background work, let go of connections. Idempotent."""
        if self._loop is None:
            return
        self.books.give_up(self.books.open, "the router was closed")
        await self._until_idle(ABORT_SECONDS_AT_CLOSE)
        await self.books.flush(seconds=FLUSH_SECONDS_AT_CLOSE)
        await self._end_background()
        with contextlib.suppress(Exception):  # learned ratios are a convenience; losing them costs accuracy only
            await self._share_ratios()
        await self._attempts.close()
        for provider in self.catalogue.providers.values():
            closing = getattr(provider.adapter, "close", None)
            if closing is not None:
                with contextlib.suppress(Exception):  # an adapter's mistake must not keep the rest open
                    await closing()
        await self.ledger.close()
        await self.state_store.aclose()
        self._loop = None
        self._starting = None

    async def _until_idle(self, seconds: float) -> None:
        deadline = time.perf_counter() + seconds
        while self.in_flight and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)

    async def _end_background(self) -> None:
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
        seen = 0
        while True:
            try:
                async for change in self.state_store.watch():
                    if change.version > seen or not change.kind:
                        seen = await self.state_store.version()
                        await self._refresh()
                return
            except Exception as exc:
                _log.warning("watch.failed", error=str(exc))
                await asyncio.sleep(1.0)

    async def _refresh(self) -> None:
        """Take over configuration and keys as they are from now on. Who asks meanwhile shares the next round."""
        self._refresh_asked += 1
        mine = self._refresh_asked
        async with self._refresh_lock:
            if self._refresh_done >= mine:
                return
            asked = self._refresh_asked
            await self._refresh_now()
            self._refresh_done = asked

    async def _refresh_now(self) -> None:
        if self.ledger.forgotten != self._restored:
            await self._restore()
        await self._configuration.refresh()
        await self.key_manager.refresh()
        self._admissions.config_version = self.ledger.stamp.config_version

    async def _restore(self) -> None:
        """Put every lane, budget and key this process knows back into a store that forgot them."""
        seen = self.ledger.forgotten
        await self._configuration.restore()
        await self.key_manager.restore_if_emptied()
        self._restored = seen

    async def _periodic(self) -> None:
        """What is due by time: keys that come back, ratios to be shared."""
        if self.key_manager.is_due():
            await self._refresh()
        if time.perf_counter() >= self._ratios_at:
            await self._share_ratios()

    async def _share_ratios(self) -> None:
        """Learned token ratios: take the others', leave ours."""
        self._ratios_at = time.perf_counter() + RATIOS_EVERY_SECONDS
        told = await self.state_store.get_document(*RATIOS_DOCUMENT)
        if told:
            self.estimator.merge(told)
        learned = self.estimator.export()
        if learned["models"] and learned != told:
            with contextlib.suppress(NotImplementedError):  # a user's own store may keep no documents
                await self.state_store.save_document(*RATIOS_DOCUMENT, learned)

    def _lane_ids(self) -> list[str]:
        version, known = self._lanes_known
        if version != self.catalogue.version:
            known = self.catalogue.lane_ids()
            self._lanes_known = (self.catalogue.version, known)
        return known

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

    def _report_unreadable(self, key_id: str, error: Exception) -> None:
        _log.error("key.unreadable", key_id=key_id, error=str(error))

    async def _keep_decision(self, facts: Facts) -> None:
        """Keep the decision in the store. An answer is never lost, and hardly delayed, by a store in trouble."""
        if facts.attempts:
            task = self._chore(self._save_decision(facts))
            await asyncio.wait([task], timeout=DECISION_SECONDS_MAX)

    async def _save_decision(self, facts: Facts) -> None:
        await self.state_store.save_routing_decision(decision_of(facts))

    def _open_vault(self) -> KeyVault:
        if self._vault is None:
            private = isinstance(self.state_store, InMemoryStateStore)
            self._vault = KeyVault.open(self.settings.encryption_key, private_store=private)
        return self._vault

    def _chore(self, work: Coroutine[Any, Any, object]) -> "asyncio.Task[None]":
        """Do something behind the request's back; a failure is logged."""

        async def quietly() -> None:
            try:
                await work
            except ApiKeyRouterError as exc:
                _log.warning("chore.failed", error=str(exc))
            except Exception as exc:
                _log.error("chore.failed", error=repr(exc))

        task = asyncio.get_running_loop().create_task(quietly())
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
        return task


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
    from apikeyrouter.infrastructure.adapters.transports import make_transport

    return make_transport()


def _provider(provider_id: str, adapter: ProviderAdapter) -> Provider:
    return Provider(
        id=provider_id, adapter=adapter, wire=getattr(adapter, "wire", None), models=adapter.get_capabilities().models
    )


def _adapters(records: Mapping[str, ProviderRecord]) -> dict[str, Provider]:
    from apikeyrouter.infrastructure.adapters.registry import make_adapter

    return {record.id: _provider(record.id, make_adapter(record)) for record in records.values()}


def _skipped(pool: Pool, tried: set[tuple[str, str]], mute: frozenset[str]) -> list[Option]:
    return [option for option in pool.options if option.provider.id in mute or (option.key.id, option.model) in tried]


def _all_tried(pool: Pool, tried: set[tuple[str, str]]) -> bool:
    return all((option.key.id, option.model) in tried for option in pool.eligible)
