"""What else one may do with a router than route: listen to it. The layer right below `ApiKeyRouter`."""

from apikeyrouter.domain.interfaces.observability import EventCallback
from apikeyrouter.domain.interfaces.state_store import StateQuery
from apikeyrouter.domain.models.trace import Trace
from apikeyrouter.infrastructure.observability.manager import decision_trace
from apikeyrouter.infrastructure.observability.subscriptions import Subscription
from apikeyrouter.serving.registration import RouterRegistration


class RouterWaysIn(RouterRegistration):
    """The part of a router that others look into it by."""

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
