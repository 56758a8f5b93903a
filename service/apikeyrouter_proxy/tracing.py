"""OpenTelemetry in the service: switched on by the standard variables, off without them, and then nothing is imported.

`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` names a collector (OTLP over HTTP); the SDK reads
its other variables itself (`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, …). A request's `traceparent` makes its span a
child of the caller's. Spans are described in docs/observability.md.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from apikeyrouter._version import __version__
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.surface.routes import Route
from apikeyrouter.router import ApiKeyRouter

__all__ = ["Serve", "Tracing", "open_tracing"]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FLUSH_MS_MAX = 3_000
"""What the collector may take at the end; a stopping worker does not wait longer for it."""
_PROPAGATED = (b"traceparent", b"tracestate")
Serve = Callable[[Route, MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]


def open_tracing(environ: Mapping[str, str], router: ApiKeyRouter) -> "Tracing | None":
    """Tracing where a collector is named, else None. Errors: ConfigurationError without the extra `tracing`."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not any(environ.get(name) for name in ENDPOINTS):
        return None
    try:
        return Tracing(environ, router)
    except ImportError as exc:
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set and {exc.name} is missing: pip install 'apikeyrouter[tracing]'"
        ) from exc


class Tracing:
    """Spans of one router's requests, sent in batches by a thread of the SDK's."""

    def __init__(self, environ: Mapping[str, str], router: ApiKeyRouter) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from apikeyrouter.integrations.opentelemetry import instrument

        for name, value in environ.items():  # the SDK reads the process's own; a .env file counts as well
            if name.startswith("OTEL_"):
                os.environ.setdefault(name, value)
        named = {SERVICE_NAME: environ.get("OTEL_SERVICE_NAME") or "apikeyrouter", SERVICE_VERSION: __version__}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._stop = instrument(router, tracer_provider=self._provider)

    def around(self, serve: Serve) -> Serve:
        """`serve`, with each request's span within the one that its `traceparent` names."""
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        extract = TraceContextTextMapPropagator().extract

        async def traced(route: Route, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            told = [pair for pair in scope["headers"] if pair[0] in _PROPAGATED]
            if not told:
                await serve(route, scope, receive, send)
                return
            token = context.attach(extract({name.decode(): value.decode("latin-1") for name, value in told}))
            try:
                await serve(route, scope, receive, send)
            finally:
                context.detach(token)

        return traced

    def close(self) -> None:
        """Send what waits, at most FLUSH_MS_MAX, and stop. Blocks; to be called from a thread."""
        self._stop()
        self._provider.force_flush(FLUSH_MS_MAX)
        self._provider.shutdown()
