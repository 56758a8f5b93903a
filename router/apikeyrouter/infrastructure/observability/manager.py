"""Where the router tells what it did: log lines, events to subscribers, a manager of the application's own, traces.

Nothing here waits, raises into a request, or does work for a request that nobody listens to.
"""

import asyncio
import inspect
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any

from apikeyrouter.domain.components.arguments import checking
from apikeyrouter.domain.interfaces.observability import EventCallback
from apikeyrouter.domain.models.api_key import StateTransition
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.routing_decision import RoutingDecision
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError
from apikeyrouter.domain.models.trace import Trace, TraceEvent
from apikeyrouter.infrastructure.observability.event_names import ALL, EVENTS
from apikeyrouter.infrastructure.observability.events import REQUEST_ID, EventLog, ask_for_level
from apikeyrouter.infrastructure.observability.request_facts import measurements_of, request_fields, trace_of
from apikeyrouter.infrastructure.observability.subscriptions import Subscription
from apikeyrouter.infrastructure.security.redaction import redact

__all__ = ["METHODS", "Observability", "decision_trace"]

METHODS = (
    "log_request", "log_routing_decision", "log_state_transition", "emit_metric", "get_trace", "subscribe_to_events",
)  # fmt: skip
"""What a manager of the application's own may have; for what it lacks, the default does the work."""
TRACED_MAX = 1000
TRACED_EVENTS_MAX = 100
"""Requests of which events beside their own facts are remembered, and how many of each."""
_FREE_TEXT = ("reason", "error", "message", "explanation")
_EVENTS_OF_REQUESTS = (
    "request.completed", "request.failed", "routing.decided", "metric.emitted", "budget.soft_exceeded",
)  # fmt: skip
_METHODS_OF_REQUESTS = frozenset({"log_request", "log_routing_decision", "emit_metric"})
_log = EventLog("apikeyrouter")


@checking(
    "log_request", "log_routing_decision", "log_state_transition", "emit_metric", "get_trace", "trace",
    "subscribe_to_events",
)  # fmt: skip
class Observability:
    """The default manager, and what stands between a router and any other one.

    Args:
        manager: the application's own, told of everything it has a method for. None: only log lines and subscribers.
        decide: a call's facts as the documented decision.
        recent: the facts of recent calls, for traces.

    Raises:
        ConfigurationError: `manager` has none of METHODS, or something else by such a name.
    """

    def __init__(
        self,
        manager: Any = None,
        *,
        decide: Callable[[Facts], RoutingDecision],
        recent: Callable[[], Iterable[Facts]],
    ) -> None:
        self._manager, self._has = manager, _methods_of(manager)
        self._decide, self._recent = decide, recent
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscribers: dict[str, list[Subscription]] = {}
        self._beside: OrderedDict[str, list[TraceEvent]] = OrderedDict()
        self._told = Subscription(_call, self._current_loop)
        self.level = logging.INFO
        """Lines of events below it are not written."""
        self.listening = False
        """Whether anybody wants to know of every request; asked once per request."""
        self.look()

    # --- what the router tells -----------------------------------------------------------------------------------

    def emit(self, name: str, **fields: Any) -> None:
        """Tell one event of EVENTS to the log and to subscribers. It belongs to the request that this task works for.

        Waits for nobody. Texts are redacted.
        """
        for field in _FREE_TEXT:
            if field in fields:
                fields[field] = redact(str(fields[field]))
        self._remember(name, fields.get("request_id") or REQUEST_ID.get(), fields)
        self._publish(name, fields)

    def finished(self, facts: Facts) -> None:
        """A call has ended. To be called where `listening` is set."""
        fields = request_fields(facts)
        self._publish(_name_of(fields), fields, log="log_request" not in self._has)
        for scope in facts.soft_exceeded:
            self.emit("budget.soft_exceeded", scope=scope, request_id=facts.request_id)
        if facts.attempts and self._wants("routing.decided"):
            self._publish_decision(self._decide(facts), log="log_routing_decision" not in self._has)
        if self._wants("metric.emitted"):
            for name, value, tags in measurements_of(facts):
                self.emit_metric(name, value, tags)
        if self._has:
            self._tell_of_request(facts, fields)

    def moved(self, transition: StateTransition) -> None:
        """A key changed."""
        self._publish_transition(transition, log="log_state_transition" not in self._has)
        self._tell("log_state_transition", transition)

    async def trace(self, request_id: str) -> Trace | None:
        """What the application's manager knows of a request, else what is known here."""
        if "get_trace" in self._has:
            told = self._manager.get_trace(request_id)
            found: Trace | None = await told if inspect.isawaitable(told) else told
            if found is not None:
                return found
        return self.get_trace(request_id)

    # --- the documented methods ----------------------------------------------------------------------------------

    def log_request(self, context: Mapping[str, Any]) -> None:
        """A request ended: a log line at the level of its event, and the event."""
        self._publish(_name_of(context), context)

    def log_routing_decision(self, decision: RoutingDecision) -> None:
        """A key was chosen: the event routing.decided, kept for the request's trace."""
        self._remember("routing.decided", decision.request_id, _decision_fields(decision))
        self._publish_decision(decision)

    def log_state_transition(self, transition: StateTransition) -> None:
        """A key changed: the event key.state_changed, or what else fits of the key events."""
        self._publish_transition(transition)

    def emit_metric(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        """A measurement: the event metric.emitted."""
        self._publish("metric.emitted", {"name": name, "value": value, "tags": dict(tags or {})})

    def get_trace(self, request_id: str) -> Trace | None:
        """What this process knows of a request: every attempt, decision and change of state, with times."""
        beside = tuple(self._beside.get(request_id, ()))
        facts = next((facts for facts in self._recent() if facts.request_id == request_id), None)
        if facts is not None:
            return trace_of(facts, beside)
        return Trace(request_id=request_id, events=beside) if beside else None

    def subscribe_to_events(self, event_type: str, callback: EventCallback) -> Subscription:
        """Call back at every event of that type (`*`: all). Plain callbacks run in a thread of their own, async ones
        on the router's loop; neither delays a request. What they raise is logged.

        Raises:
            InvalidRequestError: no such event, or the callback cannot be called.
        """
        if event_type != ALL and event_type not in EVENTS:
            raise InvalidRequestError(f"must be {ALL} or one of {', '.join(EVENTS)}", field="event_type")
        if not callable(callback):
            raise InvalidRequestError("must be callable", field="callback")
        made = Subscription(callback, self._current_loop, ended=self.look)
        self._subscribers.setdefault(event_type, []).append(made)
        self.look()
        self._tell("subscribe_to_events", event_type, callback)
        return made

    # --- life ----------------------------------------------------------------------------------------------------

    def take_level(self, level: int) -> None:
        """Write no lines of events below this."""
        self.level = level
        ask_for_level(self, level)
        self.look()

    def look(self) -> None:
        """Find out anew whether requests are of interest: a subscription began or ended, or the log's level changed."""
        for name, subscribed in self._subscribers.items():
            self._subscribers[name] = [each for each in subscribed if not each.cancelled]
        wanted = any(self._wants(name) for name in _EVENTS_OF_REQUESTS)
        self.listening = wanted or bool(_METHODS_OF_REQUESTS & self._has)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on async callbacks run on this loop."""
        self._loop = loop

    def forget_threads(self) -> None:
        """After a fork: what waits is told by the parent."""
        for each in self._everybody():
            each.forget_thread()

    async def flush(self, seconds: float) -> bool:
        """Wait until everybody was told everything; whether that came true, after at most `seconds`."""
        deadline = time.monotonic() + seconds
        told = [await each.flush(max(0.0, deadline - time.monotonic())) for each in self._everybody()]
        return all(told)

    @property
    def dropped(self) -> int:
        """How many events subscribers and the manager were not told, because they are too slow."""
        return sum(each.dropped for each in self._everybody())

    # --- the rim -------------------------------------------------------------------------------------------------

    def _publish(self, name: str, fields: Mapping[str, Any], *, at_us: int = 0, log: bool = True) -> None:
        level = EVENTS[name].level
        if log and level >= self.level:
            _log.write(level, name, {field: value for field, value in fields.items() if value is not None})
        listeners = self._listeners(name)
        if listeners:
            at_us = at_us or time.time_ns() // 1000
            event = MappingProxyType({"event": name, "at_us": at_us, "request_id": REQUEST_ID.get(), **fields})
            for each in listeners:
                each.put(event)

    def _publish_decision(self, decision: RoutingDecision, *, log: bool = True) -> None:
        at_us = int(decision.timestamp.timestamp() * 1e6)
        self._publish("routing.decided", _decision_fields(decision), at_us=at_us, log=log)

    def _publish_transition(self, transition: StateTransition, *, log: bool = True) -> None:
        before, after = transition.from_state, transition.to_state
        fields = {
            "key_id": transition.entity_id, "from_state": before and before.value, "to_state": after and after.value,
            "reason": redact(transition.reason), "actor": transition.actor,
            "until_us": None if transition.until is None else int(transition.until.timestamp() * 1e6),
        }  # fmt: skip
        changed = "key.state_changed" if before is not after else "key.changed"
        name = "key.registered" if before is None else "key.revoked" if after is None else changed
        self._remember(name, REQUEST_ID.get(), fields)
        self._publish(name, fields, log=log)

    def _tell(self, method: str, *args: Any) -> None:
        if method in self._has:
            self._told.put(partial(getattr(self._manager, method), *args))

    def _tell_of_request(self, facts: Facts, fields: Mapping[str, Any]) -> None:
        self._tell("log_request", MappingProxyType(fields))
        if facts.attempts and "log_routing_decision" in self._has:
            self._told.put(lambda: self._manager.log_routing_decision(self._decide(facts)))
        if "emit_metric" in self._has:
            for name, value, tags in measurements_of(facts):
                self._tell("emit_metric", name, value, dict(tags))

    def _remember(self, name: str, request_id: str, fields: Mapping[str, Any]) -> None:
        """What belongs to a request goes into its trace."""
        if not request_id:
            return
        known = self._beside.get(request_id)
        if known is None:
            known = self._beside[request_id] = []
            if len(self._beside) > TRACED_MAX:
                self._beside.popitem(last=False)
        if len(known) < TRACED_EVENTS_MAX:
            known.append(TraceEvent(name=name, at=datetime.now(UTC), fields=dict(fields)))

    def _listeners(self, name: str) -> list[Subscription]:
        return [*self._subscribers.get(name, ()), *self._subscribers.get(ALL, ())]

    def _wants(self, name: str) -> bool:
        return EVENTS[name].level >= self.level or bool(self._listeners(name))

    def _everybody(self) -> list[Subscription]:
        return [self._told, *(each for subscribed in self._subscribers.values() for each in subscribed)]

    def _current_loop(self) -> asyncio.AbstractEventLoop | None:
        return self._loop


def decision_trace(decision: RoutingDecision) -> Trace:
    """What a decision alone tells of a request."""
    event = TraceEvent(name="routing.decided", at=decision.timestamp, fields=_decision_fields(decision))
    return Trace(request_id=decision.request_id, events=(event,))


def _call(job: Callable[[], Any]) -> Any:
    return job()


def _name_of(context: Mapping[str, Any]) -> str:
    return "request.completed" if context.get("outcome") == "ok" else "request.failed"


def _methods_of(manager: Any) -> frozenset[str]:
    """Which of METHODS the application's manager has."""
    if manager is None:
        return frozenset()
    if isinstance(manager, type):
        raise ConfigurationError(f"observability_manager: pass an instance of {manager.__name__}, not the class")
    named = {name: method for name in METHODS if (method := getattr(manager, name, None)) is not None}
    wrong = [name for name, method in named.items() if not callable(method)]
    if wrong:
        raise ConfigurationError(f"observability_manager: {', '.join(wrong)} cannot be called")
    if not named:
        raise ConfigurationError(
            f"observability_manager: {type(manager).__name__} has none of the methods {', '.join(METHODS)}"
        )
    return frozenset(named)


def _decision_fields(decision: RoutingDecision) -> dict[str, Any]:
    return {
        "request_id": decision.request_id, "key_id": decision.selected_key_id,
        "provider_id": decision.selected_provider_id, "model": decision.model,
        "objective": str(decision.objective.primary), "attempts": decision.attempts,
        "candidates": len(decision.candidates), "explanation": redact(decision.explanation),
    }  # fmt: skip
