"""A manager of the application's own, traces, log lines: what is told, to whom, and at what price."""

import asyncio
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
import structlog

from apikeyrouter import ProviderError
from apikeyrouter.domain.interfaces.observability import ObservabilityManager
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.domain.models.api_key import KeyState, StateTransition
from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.routing_decision import RoutingDecision
from apikeyrouter.domain.models.system_error import ConfigurationError, ErrorCategory, NoEligibleKeysError, SystemError
from apikeyrouter.domain.models.trace import Trace
from apikeyrouter.infrastructure.observability.metric_names import METRICS
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import MASTER_KEY, config_of, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")


class Recorder:
    """A whole manager: half of it plain, half async, and it keeps what it is told."""

    def __init__(self) -> None:
        self.requests: list[Mapping[str, Any]] = []
        self.decisions: list[RoutingDecision] = []
        self.transitions: list[StateTransition] = []
        self.metrics: list[tuple[str, float, Mapping[str, str]]] = []
        self.subscriptions: list[str] = []

    def log_request(self, context: Mapping[str, Any]) -> None:
        self.requests.append(context)

    async def log_routing_decision(self, decision: RoutingDecision) -> None:
        await asyncio.sleep(0)
        self.decisions.append(decision)

    def log_state_transition(self, transition: StateTransition) -> None:
        self.transitions.append(transition)

    async def emit_metric(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        self.metrics.append((name, value, tags))

    def get_trace(self, request_id: str) -> Trace | None:
        return Trace(request_id=request_id) if request_id == "req_of_mine" else None

    def subscribe_to_events(self, event_type: str, callback: Any) -> None:
        self.subscriptions.append(event_type)


@pytest.fixture
def lines() -> io.StringIO:
    """What structlog writes, as the application has configured it: JSON lines."""
    stream = io.StringIO()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(file=stream),
    )
    return stream


def read_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Its lines, decoded."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_a_manager_of_ones_own_is_told_of_everything(simulator: SimulatorProcess, store: StateStore) -> None:
    recorder = Recorder()
    assert isinstance(recorder, ObservabilityManager)
    router = ApiKeyRouter(store, recorder, {"encryption_key": MASTER_KEY})
    assert router.observability_manager is recorder
    async with router:
        await router.apply(config_of(simulator, ["a1"]))
        router.subscribe_to_events("key.state_changed", print)
        answer = await router.route(intent())
        stream = [chunk async for chunk in router.route_stream(intent())]
        await router.key_manager.update_key_state("a1", KeyState.Disabled, "maintenance")
        assert await router.observability.flush(5)
        assert [context["request_id"] for context in recorder.requests] == [answer.request_id, stream[-1].request_id]
        assert [decision.selected_key_id for decision in recorder.decisions] == ["a1", "a1"]
        assert [transition.to_state for transition in recorder.transitions] == [KeyState.Available, KeyState.Disabled]
        assert recorder.subscriptions == ["key.state_changed"]
        counted = {name for name, _, _ in recorder.metrics}
        assert counted <= {metric.name for metric in METRICS}
        assert ("apikeyrouter_requests_total", 1) in [(name, value) for name, value, _ in recorder.metrics]
        labels = {metric.name: set(metric.labels) for metric in METRICS}
        assert [tags for name, _, tags in recorder.metrics if set(tags) != labels[name]] == []
        assert await router.get_trace("req_of_mine") == Trace(request_id="req_of_mine")
        assert (await router.get_trace(answer.request_id)) is not None


async def test_what_a_manager_lacks_is_done_by_the_default(simulator: SimulatorProcess, lines: io.StringIO) -> None:
    class OnlyRequests:
        def __init__(self) -> None:
            self.seen = 0

        def log_request(self, context: Mapping[str, Any]) -> None:
            self.seen += 1
            raise RuntimeError("its own mistake")

    manager = OnlyRequests()
    settings = {"encryption_key": MASTER_KEY, "log_level": "DEBUG"}
    async with ApiKeyRouter(InMemoryStateStore(), manager, settings) as router:
        await router.apply(config_of(simulator, ["a1"]))
        answer = await router.route(intent())
        await router.key_manager.update_key_state("a1", KeyState.Disabled, "maintenance")
        await until(lambda: all(name in lines.getvalue() for name in ("subscriber.failed", "routing.decided")))
        assert manager.seen == 1
        assert await router.get_trace(answer.request_id)
    told = [line["event"] for line in read_lines(lines)]
    assert "request.completed" not in told, "the manager has a method for it"
    assert {"routing.decided", "key.state_changed", "subscriber.failed"} <= set(told)


@pytest.mark.parametrize("manager", [object(), Recorder, type("Odd", (), {"log_request": "no method"})(), 3])
async def test_what_is_no_manager_is_refused_at_construction(manager: Any) -> None:
    with pytest.raises(ConfigurationError, match="observability_manager"):
        ApiKeyRouter(observability_manager=manager)


async def test_the_documented_methods_of_the_default_manager_have_effects(simulator: SimulatorProcess) -> None:
    events: list[Mapping[str, Any]] = []
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        manager = made.router.observability_manager
        assert isinstance(manager, ObservabilityManager)
        manager.subscribe_to_events("*", events.append)
        manager.log_request({"request_id": "req_x", "outcome": "ok"})
        manager.log_request({"request_id": "req_y", "outcome": "timeout_error"})
        decision = RoutingDecision(id="req_x", request_id="req_x", selected_key_id="a1")
        manager.log_routing_decision(decision)
        transition = StateTransition(
            entity_id="a1", from_state=KeyState.Available, to_state=KeyState.Disabled, reason="by hand"
        )
        manager.log_state_transition(transition)
        manager.emit_metric("of_mine", 2.5, {"where": "here"})
        assert await made.router.observability.flush(5)
        assert [event["event"] for event in events] == [
            "request.completed", "request.failed", "routing.decided", "key.state_changed", "metric.emitted",
        ]  # fmt: skip
        assert (events[4]["name"], events[4]["value"], events[4]["tags"]) == ("of_mine", 2.5, {"where": "here"})
        trace = await made.router.get_trace("req_x")
        assert trace is not None
        assert [step.name for step in trace.events] == ["routing.decided"]


async def test_a_trace_tells_every_attempt_and_change_in_order(simulator: SimulatorProcess, store: StateStore) -> None:
    await simulator.fail("insufficient_quota", organisation="org-a")
    async with house(simulator, store, ["a1", "b1"]) as made:
        answers = [await made.route() for _ in range(2)]
        failed_over = next(facts for facts in made.finished if len(facts.attempts) == 2)
        assert failed_over.request_id in {answer.request_id for answer in answers}

        async def moved() -> bool:
            found = await made.router.get_trace(failed_over.request_id)
            return found is not None and "key.state_changed" in [step.name for step in found.events]

        await until(moved)
        trace = await made.router.get_trace(failed_over.request_id)
        assert trace is not None
        names = [step.name for step in trace.events]
        assert names[0] == "request.received"
        assert names.count("capacity.held") == names.count("attempt.ended") == 2
        assert names.index("attempt.failed") < len(names) - 1
        assert {"key.state_changed", "request.completed"} <= set(names)
        held = [step.fields for step in trace.events if step.name == "capacity.held"]
        assert [fields["key_id"] for fields in held] == ["a1", "b1"]
        assert [fields["reservation"] for fields in held] == [one.rid.hex() for one in failed_over.attempts]
        times = [step.at for step in trace.events]
        assert times == sorted(times)
        ended = [step.fields for step in trace.events if step.name == "attempt.ended"]
        assert [(fields["status"], fields["failure"]) for fields in ended] == [(429, "quota_exceeded_error"), (200, "")]


async def test_a_trace_of_a_denied_request_says_what_stood_in_the_way(simulator: SimulatorProcess) -> None:
    limits = [{"quota_group": "org-a", "rpd": 1, "kind": "fixed", "headroom": 0}]
    async with house(simulator, InMemoryStateStore(), ["a1"], limits=limits) as made:
        await made.route()
        with pytest.raises(NoEligibleKeysError):
            await made.route()
        trace = await made.router.get_trace(made.finished[-1].request_id)
        assert trace is not None
        assert trace.events[-1].name == "request.failed"
        assert trace.events[-1].fields["denied_by"] == "g:org-a:*:rpd"


async def test_a_request_that_another_process_served_is_known_by_its_decision(
    simulator: SimulatorProcess, redis_url: str
) -> None:
    async with house(simulator, RedisStateStore(redis_url), ["a1"]) as made:
        answer = await made.route()
        await made.at_rest()
        async with ApiKeyRouter(RedisStateStore(redis_url), config={"encryption_key": MASTER_KEY}) as other:

            async def known() -> bool:
                return await other.get_trace(answer.request_id) is not None

            await until(known)
            trace = await other.get_trace(answer.request_id)
            assert trace is not None
            assert [(step.name, step.fields["key_id"]) for step in trace.events] == [("routing.decided", "a1")]
            assert await other.get_trace("req_nobody_knows") is None


class Talkative(ProviderAdapter):
    """An adapter that logs with the application's structlog while it serves, and fails on demand."""

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        structlog.get_logger("of.the.application").info("adapter.called")
        if intent.model == "broken":
            raise ValueError("no such thing")
        return "an answer"


class TalksWhileItStreams(ProviderAdapter):
    """An adapter that logs between its pieces, and breaks."""

    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        raise NotImplementedError

    async def execute_stream(self, intent: RequestIntent, key: str) -> Any:
        for piece in ("one ", "two "):
            yield piece
            structlog.get_logger("of.the.application").info("adapter.streamed")
        raise SystemError("no more", category=ErrorCategory.QuotaExceededError)


async def test_a_stream_that_breaks_is_told_with_its_id_and_stands_in_its_trace(lines: io.StringIO) -> None:
    events: list[Any] = []
    async with ApiKeyRouter(InMemoryStateStore(), config={"encryption_key": MASTER_KEY}) as router:
        await router.register_provider("mine", TalksWhileItStreams())
        await router.register_key("a-key-of-my-own", "mine")
        router.subscribe_to_events("*", events.append)
        with pytest.raises(ProviderError):
            async for _ in router.route_stream(intent(model="any")):
                structlog.get_logger("of.the.application").info("piece.shown")
        request_id = router.decisions[-1].request_id
        await until(lambda: "key.state_changed" in [event["event"] for event in events])
        trace = await router.get_trace(request_id)
    about = {event["event"]: event["request_id"] for event in events}
    assert about["attempt.failed"] == about["key.state_changed"] == about["request.failed"] == request_id
    assert trace is not None
    assert {"attempt.failed", "key.state_changed"} <= {step.name for step in trace.events}
    told = [(line["event"], line.get("request_id")) for line in read_lines(lines)]
    assert ("adapter.streamed", request_id) in told
    assert ("piece.shown", None) in told, "between the pieces the task is the application's own"


async def test_every_line_of_a_request_carries_its_id_and_no_other_line_does(lines: io.StringIO) -> None:
    settings = {"encryption_key": MASTER_KEY, "log_level": "DEBUG"}
    async with ApiKeyRouter(InMemoryStateStore(), config=settings) as router:
        await router.register_provider("mine", Talkative())
        await router.register_key("a-key-of-my-own", "mine")
        answers = await asyncio.gather(*(router.route(intent(model="works")) for _ in range(3)))
        with pytest.raises(ProviderError):
            await router.route(intent(model="broken"))
        failed = router.decisions[-1].request_id
        structlog.get_logger("of.the.application").info("between.requests")
    told = read_lines(lines)
    called = [line for line in told if line["event"] == "adapter.called"]
    assert {line["request_id"] for line in called} == {*(answer.request_id for answer in answers), failed}
    ours = [line for line in told if line["event"].startswith(("request.", "attempt.", "routing."))]
    assert len(ours) >= 8
    assert all(line["request_id"] for line in ours)
    assert [line for line in told if line["event"] in ("between.requests", "provider.registered")] != []
    assert all("request_id" not in line for line in told if line["event"] in ("between.requests", "key.registered"))


@pytest.mark.parametrize(("level", "wanted"), [("WARNING", set()), ("INFO", {"attempt.failed"})])
async def test_the_level_is_that_of_our_own_lines_only(lines: io.StringIO, level: str, wanted: set[str]) -> None:
    async with ApiKeyRouter(InMemoryStateStore(), config={"log_level": level}) as router:
        await router.register_provider("mine", Talkative())
        await router.register_key("a-key-of-my-own", "mine")
        await router.route(intent(model="works"))
        with pytest.raises(ProviderError):
            await router.route(intent(model="broken"))
    told = {line["event"] for line in read_lines(lines)}
    assert {name for name in told if name.startswith(("key.", "request.", "attempt."))} == wanted
    assert "adapter.called" in told


async def test_each_router_has_a_level_of_its_own(lines: io.StringIO) -> None:
    told: dict[str, set[str]] = {}
    quiet = ApiKeyRouter(InMemoryStateStore(), config={"log_level": "ERROR"})
    async with quiet, ApiKeyRouter(InMemoryStateStore(), config={"log_level": "DEBUG"}) as chatty:
        for name, router in (("quiet", quiet), ("chatty", chatty), ("quiet again", quiet)):
            lines.seek(0)
            lines.truncate()
            await router.register_provider("mine", Talkative(), overwrite=True)
            await router.register_key("a-key-of-my-own", "mine")
            await router.route(intent(model="works"))
            with pytest.raises(ProviderError):
                await router.route(intent(model="broken"))
            told[name] = {line["event"] for line in read_lines(lines)} - {"adapter.called"}
        assert told["quiet"] == told["quiet again"] == set()
        assert told["chatty"] >= {"key.registered", "request.completed", "request.failed", "attempt.failed"}
        assert (quiet.observability.listening, chatty.observability.listening) == (False, True)


async def test_nobody_listens_by_default_and_requests_are_told_only_to_those_who_do(
    simulator: SimulatorProcess,
) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        router, heard = made.router, []
        heard.append(router.observability.listening)
        subscribed = router.subscribe_to_events("request.completed", print)
        heard.append(router.observability.listening)
        subscribed.cancel()
        heard.append(router.observability.listening)
        router.subscribe_to_events("key.state_changed", print)
        heard.append(router.observability.listening)
    assert heard == [False, True, False, False]


async def test_without_a_configuration_lines_go_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    async with ApiKeyRouter(InMemoryStateStore(), config={"log_level": "DEBUG"}) as router:
        await router.register_provider("mine", Talkative())
    told = capfd.readouterr()
    assert "provider.registered" in told.err
    assert told.out == ""
