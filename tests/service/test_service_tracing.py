"""Traces of the service, as a collector gets them."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter_proxy.tracing import open_tracing
from tests.servers import Server
from tests.service.running import running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello there"}]}


class Collector:
    """A server that takes OTLP over HTTP, on a free port."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.url = ""

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split("\r\n")[0])
        body = await reader.readexactly(length)
        told = ExportTraceServiceRequest.FromString(gzip.decompress(body) if "content-encoding: gzip" in head else body)
        for resource in told.resource_spans:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


@pytest_asyncio.fixture(loop_scope="package")
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    server = await asyncio.start_server(made.take, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_span_within_its_callers(
    service_valkey: Server,
    config: dict[str, Any],
    collector: Collector,
    simulator: SimulatorProcess,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "router-of-the-tests"}
    async with running_service(service_valkey.url, config, environ=environ) as service, service.http() as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "with-parent"}
        told = await client.post("/v1/chat/completions", json={**BODY, "stream": stream}, headers=headers)
        alone = await client.post("/v1/chat/completions", json={**BODY, "stream": stream})
        bad = await client.post("/v1/chat/completions", json=BODY, headers={"traceparent": "00-nonsense"})
    assert [answer.status_code for answer in (told, alone, bad)] == [200, 200, 200]
    within = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    assert sorted(span.name for span in within) == ["chat gpt-4o-mini", "route gpt-4o-mini"]
    route, attempt = sorted(within, key=lambda span: bool(span.name.startswith("chat")))
    assert route.parent_span_id.hex() == PARENT
    assert attempt.parent_span_id == route.span_id
    attributes = {each.key: each.value.string_value for each in route.attributes}
    assert attributes["apikeyrouter.request_id"] == told.headers["x-request-id"]
    roots = [span for span in collector.spans if span.name.startswith("route") and not span.parent_span_id]
    assert len(roots) == 2
    assert collector.resources[0]["service.name"] == "router-of-the-tests"
    assert "hello there" not in str(collector.spans)


async def test_a_collector_that_is_away_costs_no_request(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    async with running_service(service_valkey.url, config, environ=environ) as service, service.http() as client:
        assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 200


async def test_tracing_is_off_without_a_collector_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    router: Any = None
    assert open_tracing({}, router) is None
    assert open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, router) is None
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"apikeyrouter\[tracing\]"):
        open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, router)
