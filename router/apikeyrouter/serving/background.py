"""What a router does beside requests: it follows the store, keeps decisions and learned ratios, and restores.

The lowest layer of `ApiKeyRouter`; `life.py` is the next.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from apikeyrouter.domain.components.catalogue import Catalogue
from apikeyrouter.domain.components.cost_controller import CostController
from apikeyrouter.domain.components.failure_handler import TOLD_KINDS, FailureHandler
from apikeyrouter.domain.components.key_manager import KeyManager
from apikeyrouter.domain.components.key_registration import ALIASES
from apikeyrouter.domain.components.policy_engine import PolicyEngine
from apikeyrouter.domain.components.pool import Option, Pool, Snapshot
from apikeyrouter.domain.components.quota_awareness_engine import QuotaAwarenessEngine
from apikeyrouter.domain.components.quota_groups import Conflict
from apikeyrouter.domain.components.routing_engine import RoutingEngine
from apikeyrouter.domain.components.token_estimator import TokenEstimator
from apikeyrouter.domain.interfaces.state_store import KEY, StateStore
from apikeyrouter.domain.models.api_key import StateTransition
from apikeyrouter.domain.models.call import Call, Facts
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import ApiKeyRouterError, InvalidRequestError
from apikeyrouter.infrastructure.adapters.transport import Response
from apikeyrouter.infrastructure.cancellation import stop_if_cancelled
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.infrastructure.observability.manager import Observability
from apikeyrouter.serving.admission import Admissions, Admitted
from apikeyrouter.serving.configuring import Configuration
from apikeyrouter.serving.decisions import Decisions
from apikeyrouter.serving.learned import DOCUMENT_KINDS as LEARNED_KINDS
from apikeyrouter.serving.learned import Learned
from apikeyrouter.serving.observing import Observer
from apikeyrouter.serving.retiring import Retired, close_adapter
from apikeyrouter.serving.spending import Spending
from apikeyrouter.serving.spread_books import AnyBooks
from apikeyrouter.serving.waiting import WaitQueue

CHORES_SECONDS = 2.0
"""Longest that somebody waits for what is written behind the requests' backs."""
STRATEGY_EVERY_SECONDS = 60.0
LEARNED_EVERY_SECONDS = 30.0
SAMPLE_EVERY_SECONDS = 5.0
"""How often the books of all budgets are read, for forecasts and thresholds."""
UNHEARD_KINDS = {*LEARNED_KINDS, ALIASES}
"""Documents that are looked at when they are needed."""
TOLD_MAX = 10
"""So many keys and groups are named in one event; how many there are is said beside."""
_log = EventLog("apikeyrouter")


class RouterBackground:
    """The part of a router that works behind the requests' back. `RouterLife` makes what it works with."""

    ledger: AnyLedger
    state_store: StateStore
    catalogue: Catalogue
    estimator: TokenEstimator
    cost_controller: CostController
    key_manager: KeyManager
    failure_handler: FailureHandler
    policy_engine: PolicyEngine
    routing_engine: RoutingEngine
    snapshot: Snapshot
    observability: Observability
    on_finished: list[Callable[[Facts], None]]
    quota_awareness_engine: QuotaAwarenessEngine
    books: AnyBooks
    _admissions: Admissions
    _configuration: Configuration
    _decisions: Decisions
    _observer: Observer
    _spending: Spending
    _learned: Learned
    _waiting: WaitQueue

    def __init__(self) -> None:
        self.in_flight = 0
        self._strategies_told: dict[str, float] = {}
        self._lanes_known: tuple[int, list[str]] = (-1, [])
        self._restored = 0
        self._learned_at = 0.0
        self._keeping: asyncio.Task[None] | None = None
        self._kept = True
        self._sample_at = 0.0
        self._refresh_lock = asyncio.Lock()
        self._refresh_asked = self._refresh_done = 0
        self._adopting = asyncio.Lock()
        self._file_digest = ""
        self.private_urls = True
        """Whether providers that are stated while running may be at private addresses."""
        self.follow_file: Callable[[str], Awaitable[None]] | None = None
        """Who has a file and is asked to read it again when another one is in force, with that one's digest."""
        self._chores: set[asyncio.Task[None]] = set()
        self._retired = Retired()

    async def _watch(self) -> None:
        """Take over what other processes change, within a second."""
        seen = 0
        while True:
            stop_if_cancelled()
            try:
                async for change in self.state_store.watch():
                    if change.key_ids:
                        await self.key_manager.refresh_keys(change.key_ids)
                        for key_id in change.key_ids:
                            await self.failure_handler.hear(KEY, key_id)
                    elif change.kind in TOLD_KINDS:
                        await self.failure_handler.hear(change.kind, change.id)
                    elif change.kind in UNHEARD_KINDS:
                        continue
                    elif change.version > seen or not change.kind:
                        seen = await self.state_store.version()
                        await self._refresh()
                        if not change.kind:
                            await self.failure_handler.avoidance.look()
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
            await self._configuration.changes.settled()
            await self._follow()
            await self._adopt()
            self._refresh_done = asked

    async def _follow(self) -> None:
        """What of a file is not shared (where providers are, say) is read by each process for itself."""
        if self.follow_file is not None and self._file_digest:
            in_force = await self._configuration.file_in_force()
            if in_force and in_force != self._file_digest:
                await self.follow_file(in_force)

    async def _adopt(self) -> None:
        """Decide by what is in force now. The version is that of before it was read: what came after is refused."""
        async with self._adopting:
            version = self.ledger.stamp.config_version
            if self.ledger.forgotten != self._restored:
                await self._restore()
            changed = await self._configuration.refresh()
            self._take_stated()
            changed = await self._take_policies() or changed
            await self.key_manager.refresh()
            if changed or version != self._admissions.config_version:
                self._admissions.config_version = version
                self.observability.emit("config.changed", version=version)
            self._waiting.stir()

    def _take_stated(self) -> None:
        """Take over the providers that were stated while running."""

    async def _take_policies(self) -> bool:
        """Take over the policies of the file and of other processes; whether there was anything new."""
        of_file = await self.policy_engine.take_file(self._configuration.policies)
        return await self.policy_engine.refresh() or of_file

    def _first_choice(self, pool: Pool, objective: RoutingObjective | None) -> Option | None:
        """The option of a pool that would be tried first; nobody's turn is used up."""
        if pool.constraints is not None:
            objective = pool.constraints.objective(objective, self.routing_engine.default, retry=False)
        plan = self.routing_engine.plan(objective)
        ranked = pool.rank(plan, 1, snapshot=self.snapshot, now=time.perf_counter(), start=0)
        return ranked.options[0] if ranked.options else None

    async def _restore(self) -> None:
        """Put every lane, budget, policy and key this process knows back into a store that forgot them."""
        seen = self.ledger.forgotten
        await self._configuration.restore()
        await self.policy_engine.restore()
        await self.key_manager.restore_if_emptied()
        self._restored = seen

    async def _periodic(self) -> None:
        """What is due by time: the retry budget's window, keys that come back, what was learned, samples of what
        budgets have spent, adapters that nobody uses any more."""
        self.failure_handler.note_time()
        for provider in self._retired.unused(self.in_flight, self.books.open):
            self._chore(close_adapter(provider))
        if self.key_manager.is_due():
            await self._refresh()
        await self.key_manager.flush_tally()
        await self._spending.flush()
        await self.policy_engine.flush_counts()
        if self._keeping is None or self._keeping.done():  # a store that hangs holds up nothing else
            self._keeping = self._chore(self._flush_decisions())
        if time.perf_counter() >= self._learned_at:
            await self._share_learned()
        if time.perf_counter() >= self._sample_at:
            self._sample_at = time.perf_counter() + SAMPLE_EVERY_SECONDS
            await self.cost_controller.sample()

    async def _flush_decisions(self) -> None:
        """Bring decisions into the store. Trouble is said once per outage."""
        try:
            await self._decisions.flush()
            self._kept = True
        except Exception as exc:
            if self._kept:
                _log.warning("decisions.not_kept", error=str(exc))
            self._kept = False

    @property
    def decisions(self) -> Sequence[Facts]:
        """The facts of the last `max_decisions` calls of this process, oldest first."""
        return self._decisions.recent

    async def _share_learned(self) -> None:
        """What was learned: take the others', leave ours."""
        self._learned_at = time.perf_counter() + LEARNED_EVERY_SECONDS
        await self._learned.share()
        await self.failure_handler.avoidance.look()

    def _lane_ids(self) -> list[str]:
        version, known = self._lanes_known
        if version != self.catalogue.version:
            known = self.catalogue.lane_ids()
            self._lanes_known = (self.catalogue.version, known)
        return known

    def _observe(self, admitted: Admitted, response: Response) -> None:
        """Re-sync what meters this model with what the provider's headers say, now and then."""
        self._observer.seen(admitted.option, response.status, response.headers)

    def _take_answer(self, option: Option, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Act on an answer that the router did not fetch itself, as on its own."""
        wire = option.provider.wire
        if wire is None:
            raise InvalidRequestError(f"provider {option.provider.id} has an adapter that reads no HTTP answers")
        self._observer.seen(option, status, headers)
        if status >= 400:
            secret = str.__str__(option.key.material)
            failure = wire.classify(status, headers, body, known_secrets=(secret,))
            pool = self.catalogue.pool(option.model, option.provider.id, "")
            self.failure_handler.learn(failure, option, pool.options, {})
            self._observer.refused(option, failure)

    async def _chores_done(self) -> None:
        """Wait until what was to be written by now is written."""
        if self._chores:
            await asyncio.wait(tuple(self._chores), timeout=CHORES_SECONDS)

    def _suspect_one_counter(self, key_id: str, other_key_id: str) -> None:
        self.observability.emit("quota_group.suspected", key_id=key_id, other_key_id=other_key_id)

    def _report_conflict(self, conflict: Conflict) -> None:
        told = {"key_ids": conflict.keys[:TOLD_MAX], "groups": conflict.groups[:TOLD_MAX]}
        counted = {"key_count": len(conflict.keys), "group_count": len(conflict.groups)}
        self.observability.emit("quota_group.conflict", **told, **counted)

    def _announce(self, transition: StateTransition) -> None:
        self.observability.moved(transition)

    def _report_strategy(self, name: str, found: object) -> None:
        """A strategy raised, or returned what is no number. Said once a minute for each."""
        now = time.perf_counter()
        if now >= self._strategies_told.get(name, 0.0):
            self._strategies_told[name] = now + STRATEGY_EVERY_SECONDS
            what = repr(found) if isinstance(found, Exception) else f"returned {type(found).__name__}, no finite number"
            _log.error("strategy.failed", strategy=name, error=what)

    def _report_unreadable(self, key_id: str, error: Exception) -> None:
        _log.error("key.unreadable", key_id=key_id, error=str(error))

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

    def _finished(self, call: Call, facts: Facts) -> None:
        self.in_flight -= 1
        facts.total_us = int((time.perf_counter() - call.started) * 1e6)
        facts.overhead_us = max(0, facts.total_us - facts.upstream_us - facts.waited_us)
        if facts.cost_nanousd is None:
            self._spending.unpriced_requests += facts.outcome == "ok"
        else:
            self._spending.nanousd += facts.cost_nanousd
        if facts.outcome != "ok" or len(facts.attempts) > 1:
            self.key_manager.tally(facts)
        self._decisions.keep(facts)
        if self.observability.listening:
            self.observability.finished(facts)
        for told in self.on_finished:
            try:
                told(facts)
            except Exception as exc:
                _log.error("listener.failed", error=repr(exc))
