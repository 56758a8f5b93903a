"""What else one may do with a router than route: many at once, lend a key, listen. Right below `ApiKeyRouter`."""

from abc import abstractmethod
from collections.abc import AsyncIterable, Iterable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, overload

from apikeyrouter.domain.components.catalogue import ANY_CLIENT
from apikeyrouter.domain.components.pool import Pool
from apikeyrouter.domain.components.wait_lines import read_priority
from apikeyrouter.domain.interfaces.observability import EventCallback
from apikeyrouter.domain.models.call import Call, Facts
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import Explanation, RoutingDecision, RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.system_response import SystemResponse
from apikeyrouter.domain.models.trace import Trace
from apikeyrouter.infrastructure.observability.manager import decision_trace
from apikeyrouter.infrastructure.observability.subscriptions import Subscription
from apikeyrouter.serving.admission import ParsedFor
from apikeyrouter.serving.answers import outcome_of
from apikeyrouter.serving.batches import Progress, run_batch
from apikeyrouter.serving.counting import expected_tokens
from apikeyrouter.serving.endings import Attempt
from apikeyrouter.serving.leases import Leasing, lease_call
from apikeyrouter.serving.registration import RouterRegistration
from apikeyrouter.serving.requests import call_of, check_wait, parsed_for

if TYPE_CHECKING:
    from apikeyrouter.infrastructure.config.configuration_manager import ConfigurationManager

Intent = RequestIntent | Mapping[str, Any]
Intents = Iterable[Intent] | AsyncIterable[Intent]


class RouterWaysIn(RouterRegistration):
    """The part of a router that makes it fit into programs."""

    @abstractmethod
    async def route(
        self, request_intent: Intent, objective: RoutingObjective | str | None = None,
        policy: Policy | Mapping[str, Any] | None = None, *, timeout: float | None = None,
        wait_max_ms: int | None = None, priority: str = "interactive",
    ) -> SystemResponse:  # fmt: skip
        """Route one request and return its answer."""

    @abstractmethod
    def _facts(self, call: Call) -> Facts:
        """What is noted of a call."""

    @abstractmethod
    async def _hold(
        self, call: Call, parsed: ParsedFor, facts: Facts, tried: dict[tuple[str, str], str]
    ) -> tuple[Pool, Attempt]:
        """Hold an option, now or when there is room for one."""

    @overload
    async def route_batch(
        self, intents: Intents, objective: RoutingObjective | str | None = None, *, concurrency: int = ...,
        policy: Policy | Mapping[str, Any] | None = ..., timeout: float | None = ...,
        wait_max_ms: int | None = ..., priority: str = ..., on_progress: Progress | None = ...,
        return_exceptions: Literal[False] = ...,
    ) -> list[SystemResponse]: ...  # fmt: skip
    @overload
    async def route_batch(
        self, intents: Intents, objective: RoutingObjective | str | None = None, *, concurrency: int = ...,
        policy: Policy | Mapping[str, Any] | None = ..., timeout: float | None = ...,
        wait_max_ms: int | None = ..., priority: str = ..., on_progress: Progress | None = ..., return_exceptions: bool,
    ) -> list[SystemResponse | Exception]: ...  # fmt: skip
    async def route_batch(
        self, intents: Intents, objective: RoutingObjective | str | None = None, *, concurrency: int = 8,
        policy: Policy | Mapping[str, Any] | None = None, timeout: float | None = None,
        wait_max_ms: int | None = None, priority: str = "batch", on_progress: Progress | None = None,
        return_exceptions: bool = False,
    ) -> Any:  # fmt: skip
        """Route many requests, at most `concurrency` at a time; their answers in the order of `intents`.

        `intents` may be any iterable, async ones and endless producers included: it is read as places become free.
        `on_progress(done, total)` is called after each, plain or async. The first error cancels the rest and is raised;
        with `return_exceptions` errors stand among the answers instead. Wrong requests in a list are found before the
        first one is sent. Cancelling it ends what is under way, and nothing stays held. `timeout` and
        `wait_max_ms` are each request's; where requests wait for room, those of a batch come after others.

        Raises:
            InvalidRequestError: `concurrency` or a request is wrong.
            Whatever `route` raises, without `return_exceptions`.
        """
        if not return_exceptions and isinstance(intents, list | tuple):
            intents = [_checked(intent, place) for place, intent in enumerate(intents)]
        return await run_batch(
            intents,
            lambda intent: self.route(
                intent, objective, policy, timeout=timeout, wait_max_ms=wait_max_ms, priority=priority
            ),
            concurrency=concurrency, on_progress=on_progress, return_exceptions=return_exceptions,
        )  # fmt: skip

    @cached_property
    def configuration_manager(self) -> "ConfigurationManager":
        """Settings and the configuration file: read, checked, reloaded."""
        from apikeyrouter.infrastructure.config.configuration_manager import ConfigurationManager

        return ConfigurationManager(
            self._settings_given,
            current=lambda: self.settings,
            take=self._take_settings,
            apply=self._take_file,
            defer=self._deferrals.add,
        )

    def lease(
        self, model: str, *, provider_id: str | None = None, estimated_tokens: int | None = None,
        input_tokens: int | None = None, max_output_tokens: int | None = None,
        objective: RoutingObjective | Mapping[str, Any] | str | None = None, team: str | None = None,
        client: str | None = None, policy: Policy | Mapping[str, Any] | None = None, timeout: float | None = None,
        wait_max_ms: int | None = None, priority: str = "interactive",
    ) -> Leasing:  # fmt: skip
        """Hold a key for a call of your own: `async with router.lease("gpt-4o-mini", estimated_tokens=1500) as lease`.

        Limits, budgets, policies and objectives apply as to `route`, and the hold is renewed until the block ends. Tell
        `lease.settle(usage)` what was used. An exception that leaves the block is read like any failure of that
        provider, and booked by what is known; where nothing is said, the estimate is charged and marked.

        `estimated_tokens` is the total; `input_tokens` and `max_output_tokens` are more exact. Hard budgets hold them
        as an upper bound, and refuse (by their rule for what cannot be priced) where nothing is stated.

        `timeout`: seconds from entry; when they are over and nothing was said, the block is cancelled, a ProviderError
        with category TimeoutError leaves it, and the estimate is charged. `lease.timeout` is what is left of them.
        `wait_max_ms`, `priority`: of waiting for room at entry, as of `route`.

        Raises:
            InvalidRequestError: at once.
            NoEligibleKeysError, BudgetExceededError, LedgerUnavailableError: on entry, as `serve`.
        """
        call = lease_call(
            model, provider_id=provider_id, estimated_tokens=estimated_tokens, input_tokens=input_tokens,
            max_output_tokens=max_output_tokens, objective=objective, team=team, client=client, timeout=timeout,
        )  # fmt: skip
        call.wait_ms, call.priority = None if wait_max_ms is None else check_wait(wait_max_ms), read_priority(priority)
        begin = partial(self._begin, policy)
        return Leasing(call, begin, self._attempts.ends, self.books, self.failure_handler, timeout)

    async def _begin(self, policy: Policy | Mapping[str, Any] | None, call: Call) -> tuple[Pool, Attempt]:
        """Admit a call whose sending is somebody else's."""
        await self.ready()
        call.lanes, call.weight = self.catalogue.clients.get(call.client or "", ANY_CLIENT)
        if policy is not None:
            call.policy = await self._own_policy(policy)
        facts = self._facts(call)
        self.in_flight += 1
        try:
            return await self._hold(call, parsed_for(call), facts, {})
        except BaseException as exc:
            facts.outcome = outcome_of(exc)
            self._finished(call, facts)
            raise

    async def count_tokens(self, call: Call) -> tuple[int, Facts]:
        """How many input tokens a call's intent is expected to have, by what was learned; and what is noted of it.

        Nothing is held or sent, and it costs nothing. Raises as `serve` does for what can never be served.
        """
        await self.ready()
        facts = self._facts(call)
        facts.cost_nanousd = 0
        self.in_flight += 1
        try:
            tokens = expected_tokens(call, facts, self.catalogue, self.estimator, self._policing)
            facts.outcome = "ok"
            return tokens, facts
        except BaseException as exc:
            facts.outcome = outcome_of(exc)
            raise
        finally:
            self._finished(call, facts)

    async def explain(self, decision_or_request_id: RoutingDecision | str) -> Explanation:
        """Why a request went where it went, in numbers and in words; of any process on the same store.

        Raises:
            InvalidRequestError: nobody remembers the request.
        """
        decision = decision_or_request_id
        if isinstance(decision, str):
            await self.ready()
            found = await self._decisions.find(decision)
            if found is None:
                raise InvalidRequestError(f"no decision on request {decision!r} is remembered", field="request_id")
            decision = found
        if not isinstance(decision, RoutingDecision):
            raise InvalidRequestError("must be a RoutingDecision or the id of a request", field="decision")
        return Explanation(decision=decision, text=self.routing_engine.explain_decision(decision))

    async def dry_run(
        self,
        request_intent: Intent,
        objective: RoutingObjective | str | None = None,
        policy: Policy | Mapping[str, Any] | None = None,
    ) -> RoutingDecision:
        """What `route` would choose now, and why; nothing is held, sent or counted.

        `selected_key_id` is "" where the request would be refused; its candidates say why. Between this look and a
        request others come and go: the ledger has the last word.

        Raises:
            InvalidRequestError: the request, the objective or the policy is wrong.
            ModelNotFoundError: no key serves the model.
        """
        await self.ready()
        call = call_of(RequestIntent.parse(request_intent), objective, stream=False)
        if policy is not None:
            call.policy = await self._own_policy(policy)
        return await self._deciding(call)

    async def foresee(self, call: Call) -> RoutingDecision:
        """What `serve` would choose for a call now, and why; as `dry_run`, with its errors."""
        await self.ready()
        return await self._deciding(call)

    def subscribe_to_events(self, event_type: str, callback: EventCallback) -> Subscription:
        """Call back at every event of that type (`*`: all); `docs/observability.md` lists them with their fields.

        Callbacks may be plain (they run in a thread of their own) or async (on the router's event loop), may be slow
        and may raise: no request notices. What one is too slow for is dropped and counted (`.dropped`); `.cancel()`
        ends it. A manager of the application's own is told of the subscription too.

        Raises:
            InvalidRequestError: no such event, or the callback cannot be called.
        """
        return self.observability.subscribe_to_events(event_type, callback)

    async def get_trace(self, request_id: str) -> Trace | None:
        """The story of a request: every attempt, decision and change of state, with times, oldest first.

        What another process served is known by its decision alone; None: too old, or unknown.
        """
        await self.ready()
        found = await self.observability.trace(request_id)
        if found is not None:
            return found
        decision = await self._decisions.find(request_id)
        return decision_trace(decision) if decision is not None else None


def _checked(intent: Intent, place: int) -> RequestIntent:
    try:
        return RequestIntent.parse(intent)
    except InvalidRequestError as exc:
        raise InvalidRequestError(exc.reason, field=f"intents[{place}].{exc.field}".rstrip(".")) from exc
