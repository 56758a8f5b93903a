"""ApiKeyRouter: the way of one request, from what the caller wants to what it cost.

    admit → attempt → (fail → learn → admit elsewhere)* → answer → settle

`serve` is that way; `route` and `route_stream` dress it for Python callers, the HTTP service for SDKs. What a router is
made of and told is below: `serving/life.py`, `serving/registration.py`, `serving/background.py`, `serving/ways_in.py`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from apikeyrouter.domain.components.catalogue import ANY_CLIENT
from apikeyrouter.domain.components.objectives import Plan
from apikeyrouter.domain.components.policy_constraints import Constraints
from apikeyrouter.domain.components.pool import Option, Pool
from apikeyrouter.domain.models.accounting import Reason
from apikeyrouter.domain.models.call import AttemptFacts, Call, Exchange, Facts, Refusal
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.state_summary import StateSummary
from apikeyrouter.domain.models.system_error import (
    BudgetExceededError,
    ErrorCategory,
    LedgerUnavailableError,
    NoEligibleKeysError,
    ProviderError,
    StaleConfigError,
)
from apikeyrouter.domain.models.system_response import StreamChunk, SystemResponse
from apikeyrouter.infrastructure.observability.events import REQUEST_ID
from apikeyrouter.serving.admission import ANY_VERSION, Admitted, ParsedFor, Refused
from apikeyrouter.serving.answers import deltas_of, last_chunk, outcome_of, pieces_of, provider_error, response_of
from apikeyrouter.serving.bookkeeping import Release
from apikeyrouter.serving.endings import Attempt
from apikeyrouter.serving.few_places import ENDS_SECONDS_MAX
from apikeyrouter.serving.outcomes import deadline_passed
from apikeyrouter.serving.policing import limits
from apikeyrouter.serving.reporting import (
    budget_exceeded,
    clock_suspected,
    comes_back,
    no_eligible_keys,
    slab_summary,
    summarise,
)
from apikeyrouter.serving.requests import Tried, ask_costs, call_of, left_out, parsed_for
from apikeyrouter.serving.streams import AdapterStream, HttpStream
from apikeyrouter.serving.ways_in import RouterWaysIn

STALE_ROUNDS_MAX = 3
"""Tries under the configuration that is known here; while others keep changing it, then under whichever is active."""


class ApiKeyRouter(RouterWaysIn):
    """Routes requests over keys, with limits and budgets that are held exactly by every process on the same store.

    Args:
        state_store: where entities live; the ledger follows it (in process, or the same Redis). None:
            `APIKEYROUTER_REDIS_URL` if set, else in memory.
        observability_manager: anything with the documented methods.
        config: RouterSettings, or a dict of its fields.

    An async context manager; `close` flushes every settlement. What is asked of a closed router is refused with a
    ConfigurationError; `async with` (or `start`) opens it again, with what it was told before. It belongs to the event
    loop that uses it, until that has ended; `router.sync` serves threads.

    Raises:
        ConfigurationError: settings that are unknown or wrong.
    """

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
            await self.ready()
        if call.parsed is None and call.client is not None:
            call.lanes, call.weight = self.catalogue.clients.get(call.client, ANY_CLIENT)
        facts = self._facts(call)
        self.in_flight += 1
        speaking = REQUEST_ID.set(call.request_id)
        streaming = False
        try:
            parsed = parsed_for(call)
            tried: Tried = {}
            failed: ProviderError | None = None
            denied: NoEligibleKeysError | None = None
            while True:
                pool, attempt = await self._hold(call, parsed, facts, tried, failed, denied)
                answer = await self._attempts.run(attempt)
                if not isinstance(answer, Failure):
                    streaming = answer.chunks is not None
                    self.failure_handler.learn_success(attempt.admitted.option, attempt.started)
                    return answer
                self.failure_handler.learn(answer, attempt.admitted.option, pool.options, tried)
                self._observer.refused(attempt.admitted.option, answer)
                failed = provider_error(answer, facts)
                if facts.slab and failed.category is ErrorCategory.RateLimitError:
                    self.slabs.recall(attempt.admitted.request.candidates[0].lanes)
                denied = self._patience.denial(call, answer, facts) if _all_tried(pool, tried) else None
                if self._is_late(call) or (denied is None and _all_tried(pool, tried)):
                    raise failed
                if not self.failure_handler.goes_on(answer, facts.attempts):
                    raise failed
        except BaseException as exc:
            facts.outcome = outcome_of(exc)
            raise
        finally:
            if not streaming:
                self._finished(call, facts)
            REQUEST_ID.reset(speaking)

    async def _hold(
        self,
        call: Call,
        parsed: ParsedFor,
        facts: Facts,
        tried: Tried,
        failed: ProviderError | None = None,
        denied: NoEligibleKeysError | None = None,
    ) -> tuple[Pool, Attempt]:
        """Hold an option, now or, where the call may wait, when there is room for one. `denied`: there is none now."""
        queue = self._waiting
        line = self._patience.line(call) if queue.length and not facts.attempts else None
        if line is not None:
            denied = queue.denial(line, call)
        if denied is None:
            try:
                held = await self._admitted_now(call, parsed, facts, tried, failed)
                if line is not None:
                    queue.passed(line, call)
                return held
            except NoEligibleKeysError as exc:
                denied = exc
        until = self._patience.until(call)
        if until is None:
            facts.denial = denied.binding
            raise denied
        if failed is not None and failed.category is ErrorCategory.RateLimitError:
            tried.clear()  # what was limited is kept out by the ledger until then, and no longer
        ask = partial(self._admit, call, parsed, facts, tried, failed)
        try:
            held = await queue.stand(line or self._patience.line(call), call, facts, ask, denied, until)
        except NoEligibleKeysError as exc:
            if self._is_late(call):
                raise provider_error(deadline_passed(sent=False), facts) from exc
            raise
        facts.denial = facts.refusal = None
        return held

    async def _admitted_now(
        self, call: Call, parsed: ParsedFor, facts: Facts, tried: Tried, failed: ProviderError | None
    ) -> tuple[Pool, Attempt]:
        """Hold an option. Where it lacks what requests that have ended here may still hold, their ends come first."""
        try:
            return await self._admit(call, parsed, facts, tried, failed)
        except (NoEligibleKeysError, BudgetExceededError):
            if not (self.books.waiting and facts.refusal is not None and comes_back(facts.refusal.losses)):
                raise
        await self.books.told(seconds=ENDS_SECONDS_MAX)
        facts.denial = facts.refusal = None
        return await self._admit(call, parsed, facts, tried, failed)

    async def _admit(
        self,
        call: Call,
        parsed: ParsedFor,
        facts: Facts,
        tried: Tried,
        failed: ProviderError | None,
        relaxed: bool = False,
    ) -> tuple[Pool, Attempt]:
        """Hold an option that was not tried yet, under the configuration that is in force.

        `relaxed`: soft policies left nothing to hold, and are passed over.
        """
        started = time.perf_counter()
        rules: Constraints | None = None
        for rounds in range(STALE_ROUNDS_MAX + 1):
            version = self._admissions.config_version if rounds < STALE_ROUNDS_MAX else ANY_VERSION
            if self.policy_engine.active or call.policy is not None:
                rules = self._policing.rules(call, relaxed=relaxed)
            pool = self.catalogue.pool_of(call, rules)
            if rules is not None:
                self._policing.note(rules, pool, facts)
                if not pool.options:
                    if self._policing.yield_soft(rules, facts):
                        return await self._admit(call, parsed, facts, tried, failed, relaxed=True)
                    raise self._policing.denial(rules, pool, (), facts) from failed
            skip = left_out(call, pool, parsed, tried)
            if call.intent is not None:
                await ask_costs(call, pool)
            try:
                admitted = await self._admissions.admit(
                    call, pool, parsed, plan=self._plan(call, rules, facts), skip=skip, version=version,
                )  # fmt: skip
            except StaleConfigError:
                await self._refresh()
                continue
            if isinstance(admitted, Refused):
                if rules is not None and self._policing.yield_soft(rules, facts):
                    return await self._admit(call, parsed, facts, tried, failed, relaxed=True)
                raise await self._refusal(admitted, pool, skip, call, facts) from failed
            attempt = self._held(call, facts, admitted, started)
            if rules is not None and rules.shadows:
                self._policing.admitted(rules, pool, admitted.option, admitted.charge.expected_nanousd, facts)
            return pool, attempt
        raise LedgerUnavailableError("the configuration changes faster than it can be read")

    def _plan(self, call: Call, rules: Constraints | None, facts: Facts) -> Plan:
        """What the candidates are ranked by."""
        engine = self.routing_engine
        if rules is None:
            return engine.plan(call.objective)
        objective = rules.objective(call.objective, engine.default, retry=bool(facts.attempts))
        facts.objective = str(objective.primary)
        return engine.plan(objective)

    def _held(self, call: Call, facts: Facts, admitted: Admitted, started: float) -> Attempt:
        """What was admitted, noted. From here on somebody hands its end in, whatever happens."""
        admission = admitted.admission
        note = self.books.held_unheard if admission.standby else self.books.held
        hold = note(admitted.request, admission.index)
        try:
            if admission.slab:
                self.slabs.joined(hold, admission.slab)
            option, charge = admitted.option, admitted.charge
            facts.standby |= admission.standby
            facts.slab = admission.slab
            facts.token_cap = admitted.token_cap
            facts.soft_exceeded = admission.soft_exceeded
            own = AttemptFacts(
                key_id=option.key.id, provider_id=option.provider.id, model=option.model, rid=admitted.request.rid,
                ranking=admitted.ranking, place=admitted.place, losses=admitted.losses, probe=admission.probe,
                asked_us=int((started - call.started) * 1e6),
                reserve_us=int((time.perf_counter() - started) * 1e6), expected_input=charge.input_tokens,
                expected_output=charge.output_tokens, expected_nanousd=charge.expected_nanousd,
            )  # fmt: skip
            facts.attempts.append(own)
            self.decided += 1
            return Attempt(
                call=call, facts=facts, own=own, admitted=admitted, hold=hold, wire=option.provider.wire,
                timeouts=self._attempts.timeouts(call, option.provider),
            )  # fmt: skip
        except BaseException:
            self.books.hand_in(Release(rid=admitted.request.rid, sent=False))
            raise

    async def _refusal(
        self, refused: Refused, pool: Pool, skipped: Mapping[Option, str], call: Call, facts: Facts
    ) -> Exception:
        now_us = self.ledger.stamp.now_us
        binding = refused.binding
        facts.denial = binding
        facts.refusal = Refusal(ranking=refused.ranking, losses=tuple(loss for _, loss in refused.losses))
        if binding is not None and binding.reason is Reason.CLOCK_SUSPECT:
            return clock_suspected(binding, now_us)
        budget = None if binding is None else self.catalogue.budget(binding.where)
        if binding is not None and budget is not None:
            states = await self.ledger.scopes([budget.id])  # a budget that was never held in has no state yet
            needed = refused.needed_nanousd if refused.needed_nanousd >= 0 else budget.flat_nanousd
            needed = -1 if binding.reason is Reason.UNPRICED else needed
            ends_at_us = self._configuration.budgets.period(budget, now_us)[1]
            state = states[0] if states else None
            unpriced = refused.unpriced if needed < 0 else ()
            return budget_exceeded(
                binding, budget, state, needed, ends_at_us=ends_at_us, now_us=now_us, unpriced=unpriced,
                doubts=tuple((call.cost_doubts or {}).values()),
            )  # fmt: skip
        rules, excluded = pool.constraints, refused.ranking.excluded
        if rules is not None and excluded and not refused.losses and not pool.out and limits(rules, excluded):
            return self._policing.denial(rules, pool, excluded, facts)
        return no_eligible_keys(
            refused.losses, binding, out=pool.out, skipped=skipped, excluded=excluded, barred=pool.barred,
            now_us=now_us
        )  # fmt: skip

    def _is_late(self, call: Call) -> bool:
        deadline = self._attempts.deadline(call)
        return deadline is not None and time.perf_counter() >= deadline

    def _facts(self, call: Call) -> Facts:
        return Facts(
            request_id=call.request_id, operation=call.operation, model=call.model, stream=call.stream,
            objective=str((call.objective or self.routing_engine.default).primary), team=call.team,
            client=call.client, at_us=time.time_ns() // 1000, pinned=call.provider_id,
            dialect=call.dialect if call.intent is None else "",
            snapshot_age_us=max(0, int((call.started - self.snapshot.taken) * 1e6)) if self.snapshot.taken else 0,
        )  # fmt: skip

    # --- Python callers ------------------------------------------------------------------------------------------

    async def route(
        self,
        request_intent: RequestIntent | Mapping[str, Any],
        objective: RoutingObjective | str | None = None,
        policy: Policy | Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        wait_max_ms: int | None = None,
        priority: str = "interactive",
    ) -> SystemResponse:
        """Route one request and return its answer. Raises as `serve`; wrong input is a ValueError.

        `policy` applies to this request, above the configured ones: it may tighten what a hard one says, not loosen it.
        `timeout`: seconds for the request with all its attempts (None: `router.timeouts.total`). `wait_max_ms`: how
        long it waits for room rather than be denied (None: `router.wait_max_ms`); `priority`: interactive or batch,
        which of those that wait goes first.
        """
        call = call_of(
            RequestIntent.parse(request_intent), objective, stream=False, timeout=timeout, wait_max_ms=wait_max_ms,
            priority=priority,
        )  # fmt: skip
        if policy is not None:
            call.policy = await self._own_policy(policy)
        exchange = await self.serve(call)
        return response_of(call, exchange)

    async def route_stream(
        self,
        request_intent: RequestIntent | Mapping[str, Any],
        objective: RoutingObjective | str | None = None,
        policy: Policy | Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        wait_max_ms: int | None = None,
        priority: str = "interactive",
    ) -> AsyncIterator[StreamChunk]:
        """Yield the answer in pieces; printing a piece prints its text. The last one has usage, cost and key_used.

        `policy`, `timeout`, `wait_max_ms`, `priority`: as of `route`. A stream breaks of which the
        provider has not said all in time, whoever is slow: a reader that is gets the error with its next piece.
        """
        call = call_of(
            RequestIntent.parse(request_intent), objective, stream=True, timeout=timeout, wait_max_ms=wait_max_ms,
            priority=priority,
        )  # fmt: skip
        if policy is not None:
            call.policy = await self._own_policy(policy)
        exchange = await self.serve(call)
        chunks = exchange.chunks
        assert isinstance(chunks, HttpStream | AdapterStream)
        received: list[str] = []
        try:
            provider = exchange.provider
            deltas = deltas_of(provider, call)
            async for piece in chunks:
                for chunk in pieces_of(provider, piece, deltas):
                    received.append(chunk.text)
                    yield chunk
                    if chunks.is_cut_off:
                        break
        except ProviderError as exc:
            exc.details["partial"] = "".join(received)
            raise
        finally:
            await chunks.aclose()
        yield last_chunk(exchange.facts)

    async def get_state_summary(self) -> StateSummary:
        """Keys, quotas and costs in a few numbers."""
        await self.ready()
        scopes = await self.ledger.scopes([scope.id for scope in self.catalogue.budgets()])
        spent, unpriced = await self._spending.total()
        return summarise(
            self.catalogue, scopes, self.snapshot.capacity, spent=spent, unpriced=unpriced,
            slabs=slab_summary(self.slabs),
        )  # fmt: skip


def _all_tried(pool: Pool, tried: Tried) -> bool:
    return all((option.key.id, option.model) in tried for option in pool.eligible)
