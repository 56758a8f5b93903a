"""OpenTelemetry: spans and metrics by the conventions for generative AI, read from the SDK's in-memory exporters."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from apikeyrouter.domain.components.routing_engine import NoEligibleKeysError
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.integrations.opentelemetry import SECONDS, TOKENS, instrument
from apikeyrouter.router import ApiKeyRouter
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import house

pytestmark = pytest.mark.asyncio(loop_scope="package")


class Collector:
    """Both SDKs, in memory."""

    def __init__(self) -> None:
        self._spans, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)

    def listen_to(self, router: ApiKeyRouter) -> Any:
        """Instrument it."""
        return instrument(router, tracer_provider=self.tracers, meter_provider=self.meters)

    def spans(self) -> tuple[ReadableSpan, ...]:
        """What ended, in that order."""
        return self._spans.get_finished_spans()

    def points(self, name: str) -> list[Any]:
        """The data points of a metric."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def text(self) -> str:
        """Everything, as text."""
        data = self._reader.get_metrics_data()
        return "".join(span.to_json() for span in self.spans()) + (data.to_json() if data else "")


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Providers of this test's own."""
    made = Collector()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


def port_of(simulator: SimulatorProcess) -> int | None:
    """Where it listens."""
    return urlsplit(simulator.openai_url).port


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    """Its attributes."""
    return dict(span.attributes or {})


async def test_a_request_has_a_span_and_a_client_span_per_attempt(
    simulator: SimulatorProcess, collector: Collector
) -> None:
    await simulator.fail("server_error", organisation="org-a")
    async with house(simulator, InMemoryStateStore(), ["a1", "b1"]) as made:
        collector.listen_to(made.router)
        while not any(len(facts.attempts) == 2 for facts in made.finished):
            await made.route()
    first, second, request = collector.spans()[-3:]
    facts = made.finished[-1]
    assert (request.name, request.kind) == ("route gpt-4o-mini", SpanKind.INTERNAL)
    assert (first.name, first.kind) == (second.name, second.kind) == ("chat gpt-4o-mini", SpanKind.CLIENT)
    assert request.context is not None
    assert {span.parent.span_id for span in (first, second) if span.parent} == {request.context.span_id}
    assert attributes_of(first)["error.type"] == "500"
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    served = attributes_of(second)
    assert facts.usage is not None
    assert served["gen_ai.operation.name"] == "chat"
    assert served["gen_ai.provider.name"] == "openai"
    assert served["gen_ai.request.model"] == "gpt-4o-mini"
    assert served["gen_ai.usage.input_tokens"] == facts.usage.input_tokens
    assert served["gen_ai.usage.output_tokens"] == facts.usage.output_tokens
    assert (served["server.address"], served["server.port"]) == ("127.0.0.1", port_of(simulator))
    assert served["apikeyrouter.key_id"] == "b1"
    assert attributes_of(request)["apikeyrouter.cost_nanousd"] == facts.cost_nanousd
    times = [span.start_time or 0 for span in (request, first, second)]
    assert times == sorted(times)
    assert (request.end_time or 0) >= (second.end_time or 0) > (second.start_time or 0)


async def test_a_stream_tells_when_its_first_chunk_came(simulator: SimulatorProcess, collector: Collector) -> None:
    async with house(simulator, InMemoryStateStore(), ["c1"]) as made:
        collector.listen_to(made.router)
        await made.stream(model="claude-haiku-5")
    attempt, _ = collector.spans()
    told = attributes_of(attempt)
    assert told["gen_ai.request.stream"] is True
    assert told["gen_ai.provider.name"] == "anthropic"
    assert told["gen_ai.response.finish_reasons"] == (made.finished[0].finish_reason,)
    assert 0 < told["gen_ai.response.time_to_first_chunk"] < 20
    (point,) = collector.points("gen_ai.client.operation.time_to_first_chunk")
    assert point.count == 1


async def test_metrics_have_the_conventions_names_labels_and_buckets(
    simulator: SimulatorProcess, collector: Collector
) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        collector.listen_to(made.router)
        for _ in range(3):
            await made.route()
    tokens = {point.attributes["gen_ai.token.type"]: point for point in collector.points("gen_ai.client.token.usage")}
    assert set(tokens) == {"input", "output"}
    used = [facts.usage for facts in made.finished if facts.usage is not None]
    assert tokens["input"].sum == sum(usage.input_tokens for usage in used)
    assert tokens["output"].sum == sum(usage.output_tokens for usage in used)
    assert list(tokens["input"].explicit_bounds) == TOKENS
    (duration,) = collector.points("gen_ai.client.operation.duration")
    assert isinstance(duration, HistogramDataPoint)
    assert duration.count == 3
    assert list(duration.explicit_bounds) == SECONDS
    assert dict(duration.attributes or {}) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini",
        "server.address": "127.0.0.1", "server.port": port_of(simulator),
    }  # fmt: skip
    (cost,) = collector.points("apikeyrouter.cost")
    assert cost.value == sum(facts.cost_nanousd or 0 for facts in made.finished)


async def test_a_denied_request_has_a_span_without_attempts(simulator: SimulatorProcess, collector: Collector) -> None:
    limits = [{"quota_group": "org-a", "rpd": 1, "kind": "fixed", "headroom": 0}]
    async with house(simulator, InMemoryStateStore(), ["a1"], limits=limits) as made:
        await made.route()
        collector.listen_to(made.router)
        with pytest.raises(NoEligibleKeysError):
            await made.route()
    (request,) = collector.spans()
    assert attributes_of(request)["error.type"] == "no_eligible_keys"
    assert attributes_of(request)["apikeyrouter.denied_by"] == "g:org-a:*"


async def test_spans_lie_within_the_applications_own_and_end_with_the_instrumentation(
    simulator: SimulatorProcess, collector: Collector
) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"]) as made:
        stop = collector.listen_to(made.router)
        with collector.tracers.get_tracer("mine").start_as_current_span("mine") as mine:
            await made.route()
            await made.stream()
        stop()
        stop()
        await made.route()
    *ours, own = collector.spans()
    assert own.name == "mine"
    requests = [span for span in ours if span.kind is SpanKind.INTERNAL]
    assert len(requests) == 2
    assert {span.parent.span_id for span in requests if span.parent} == {mine.get_span_context().span_id}


async def test_without_it_nobody_imports_opentelemetry() -> None:
    code = "import sys, apikeyrouter.router; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    told = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", code])
    assert told.strip() == b"[]"
