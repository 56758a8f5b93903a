"""The observability port: where the library tells what it did. Anything with these methods will do."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from apikeyrouter.domain.models.api_key import StateTransition
from apikeyrouter.domain.models.routing_decision import RoutingDecision
from apikeyrouter.domain.models.trace import Trace

__all__ = ["Emit", "EventCallback", "ObservabilityManager"]

Emit = Callable[..., None]
"""`emit("noun.verb_past", field=value, …)`: tell one event. It waits for nobody and raises nothing."""

EventCallback = Callable[[Mapping[str, Any]], object]
"""Plain or async; called with an event's fields, its name under `event`. What it raises is logged."""


@runtime_checkable
class ObservabilityManager(Protocol):
    """Each method may be plain or async; the router awaits what is awaitable. None may raise into a request."""

    def log_request(self, context: Mapping[str, Any]) -> Awaitable[None] | None:
        """A request ended: its ids, key, provider, model, tokens, cost, timing and outcome. Never its body."""
        ...

    def log_routing_decision(self, decision: RoutingDecision) -> Awaitable[None] | None:
        """A key was chosen."""
        ...

    def log_state_transition(self, transition: StateTransition) -> Awaitable[None] | None:
        """A key changed its state."""
        ...

    def emit_metric(self, name: str, value: float, tags: Mapping[str, str]) -> Awaitable[None] | None:
        """A measurement. Names and tags come from one file and have bounded cardinality."""
        ...

    def get_trace(self, request_id: str) -> Awaitable[Trace | None] | Trace | None:
        """What is known about a request; None when it is too old or unknown."""
        ...

    def subscribe_to_events(self, event_type: str, callback: EventCallback) -> Awaitable[None] | None:
        """Call back at every event of that type; `*` is all of them."""
        ...
