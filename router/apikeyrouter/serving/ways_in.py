"""What else one may do with a router than route one request: many at once, and listen. Right below `ApiKeyRouter`."""

from abc import abstractmethod
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import Any, Literal, overload

from apikeyrouter.domain.interfaces.observability import EventCallback
from apikeyrouter.domain.interfaces.state_store import StateQuery
from apikeyrouter.domain.models.policy import Policy
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import RoutingObjective
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.system_response import SystemResponse
from apikeyrouter.domain.models.trace import Trace
from apikeyrouter.infrastructure.observability.manager import decision_trace
from apikeyrouter.infrastructure.observability.subscriptions import Subscription
from apikeyrouter.serving.batches import Progress, run_batch
from apikeyrouter.serving.registration import RouterRegistration

Intent = RequestIntent | Mapping[str, Any]
Intents = Iterable[Intent] | AsyncIterable[Intent]


class RouterWaysIn(RouterRegistration):
    """The part of a router that makes it fit into programs."""

    @abstractmethod
    async def route(
        self, request_intent: Intent, objective: RoutingObjective | str | None = None,
        policy: Policy | Mapping[str, Any] | None = None,
    ) -> SystemResponse:  # fmt: skip
        """Route one request and return its answer."""

    @overload
    async def route_batch(
        self, intents: Intents, objective: RoutingObjective | str | None = None, *, concurrency: int = ...,
        policy: Policy | Mapping[str, Any] | None = ..., on_progress: Progress | None = ...,
        return_exceptions: Literal[False] = ...,
    ) -> list[SystemResponse]: ...  # fmt: skip
    @overload
    async def route_batch(
        self, intents: Intents, objective: RoutingObjective | str | None = None, *, concurrency: int = ...,
        policy: Policy | Mapping[str, Any] | None = ..., on_progress: Progress | None = ..., return_exceptions: bool,
    ) -> list[SystemResponse | Exception]: ...  # fmt: skip
    async def route_batch(
        self, intents: Intents, objective: RoutingObjective | str | None = None, *, concurrency: int = 8,
        policy: Policy | Mapping[str, Any] | None = None, on_progress: Progress | None = None,
        return_exceptions: bool = False,
    ) -> Any:  # fmt: skip
        """Route many requests, at most `concurrency` at a time; their answers in the order of `intents`.

        `intents` may be any iterable, async ones and endless producers included: it is read as places become free.
        `on_progress(done, total)` is called after each, plain or async. The first error cancels the rest and is raised;
        with `return_exceptions` errors stand among the answers instead. Wrong requests in a list are found before the
        first one is sent. Cancelling it ends what is under way, and nothing stays held.

        Raises:
            InvalidRequestError: `concurrency` or a request is wrong.
            Whatever `route` raises, without `return_exceptions`.
        """
        if not return_exceptions and isinstance(intents, list | tuple):
            intents = [_checked(intent, place) for place, intent in enumerate(intents)]
        return await run_batch(
            intents, lambda intent: self.route(intent, objective, policy), concurrency=concurrency,
            on_progress=on_progress, return_exceptions=return_exceptions,
        )  # fmt: skip

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
        await self.start()
        found = await self.observability.trace(request_id)
        if found is not None:
            return found
        query = StateQuery("RoutingDecision", ids=[request_id], limit=1)
        decisions = await self.state_store.query_state(query)
        return decision_trace(decisions[0]) if decisions else None


def _checked(intent: Intent, place: int) -> RequestIntent:
    try:
        return RequestIntent.parse(intent)
    except InvalidRequestError as exc:
        raise InvalidRequestError(exc.reason, field=f"intents[{place}].{exc.field}".rstrip(".")) from exc
