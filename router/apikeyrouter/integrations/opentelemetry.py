"""OpenTelemetry: spans and metrics of a router, by the semantic conventions for generative AI.

    stop = instrument(router)

Names: open-telemetry/semantic-conventions-genai, its pages on spans and metrics of clients (development status,
read 2026-11). Ours, where the conventions have none, begin with `apikeyrouter.`. Nothing of prompts or answers is told.
"""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import context, metrics, trace
from opentelemetry.metrics import Histogram, MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from apikeyrouter._version import __version__
from apikeyrouter.domain.models.call import AttemptFacts, Facts
from apikeyrouter.router import ApiKeyRouter

__all__ = ["instrument"]

OPERATIONS = {
    "chat": "chat", "messages": "chat", "responses": "chat", "completion": "text_completion",
    "embedding": "embeddings", "generate": "generate_content", "stream_generate": "generate_content",
}  # fmt: skip
"""Our operations by the conventions' names; others keep their own."""
PROVIDERS = {
    "openai": "openai", "anthropic": "anthropic", "gemini": "gcp.gemini", "azure": "azure.ai.openai", "groq": "groq",
    "mistral": "mistral_ai", "deepseek": "deepseek",
}  # fmt: skip
"""Our dialects and profiles by the conventions' names; others go by the provider's id."""
TOKENS = [4**power for power in range(14)]
SECONDS = [0.01 * 2**power for power in range(14)]
"""Bucket boundaries as the conventions have them."""
_NAME = "apikeyrouter"


def instrument(
    router: ApiKeyRouter,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Callable[[], None]:
    """Tell OpenTelemetry of every request from now on; what it returns ends that. Without providers: the global ones.

    One span per request (`route <model>`, within the span that is current where the request ends), and within it a
    client span per attempt (`chat <model>`); both are made when the request has ended, with the times as they were.
    """
    telling = _Telemetry(router, tracer_provider, meter_provider)
    router.on_finished.append(telling.finished)

    def stop() -> None:
        if telling.finished in router.on_finished:
            router.on_finished.remove(telling.finished)

    return stop


class _Telemetry:
    def __init__(
        self, router: ApiKeyRouter, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self._router = router
        self._tracer = trace.get_tracer(_NAME, __version__, tracer_provider)
        meter = metrics.get_meter(_NAME, __version__, meter_provider)
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKENS,
        )  # fmt: skip
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )  # fmt: skip
        self._first_chunk = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk", "s", "Time to receive the first chunk.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )  # fmt: skip
        self._cost = meter.create_counter("apikeyrouter.cost", "{nanousd}", "Known cost of requests.")

    def finished(self, facts: Facts) -> None:
        """A request has ended."""
        span = self._tracer.start_span(
            f"route {facts.model}", kind=SpanKind.INTERNAL, start_time=facts.at_us * 1000, attributes=_request(facts)
        )
        _mark(span, "" if facts.outcome == "ok" else facts.outcome)
        within = trace.set_span_in_context(span, context.get_current())
        for attempt in facts.attempts if facts.operation != "lease" else ():
            self._attempted(facts, attempt, within)
        if facts.cost_nanousd:
            self._cost.add(facts.cost_nanousd, {"gen_ai.request.model": facts.model})
        span.end((facts.at_us + facts.total_us) * 1000)

    def _attempted(self, facts: Facts, attempt: AttemptFacts, within: context.Context) -> None:
        common = {
            "gen_ai.operation.name": OPERATIONS.get(facts.operation, facts.operation),
            "gen_ai.provider.name": self._provider_name(attempt.provider_id), "gen_ai.request.model": attempt.model,
            **self._server(attempt.provider_id),
        }  # fmt: skip
        served = attempt is facts.attempts[-1] and not attempt.failure
        error = str(attempt.status) if attempt.status >= 400 else attempt.failure
        started_us = facts.at_us + attempt.asked_us + attempt.reserve_us
        first_us = facts.first_token_us - attempt.asked_us - attempt.reserve_us if facts.stream and served else 0
        told = common | _own(facts, attempt, served=served, first_us=first_us)
        span = self._tracer.start_span(
            f"{common['gen_ai.operation.name']} {attempt.model}", context=within, kind=SpanKind.CLIENT,
            start_time=started_us * 1000, attributes=told,
        )  # fmt: skip
        _mark(span, error)
        span.end((started_us + attempt.upstream_us) * 1000)
        self._duration.record(attempt.upstream_us / 1e6, {**common, **({"error.type": error} if error else {})})
        if first_us > 0:
            self._first_chunk.record(first_us / 1e6, common)
        if served and facts.usage is not None and not facts.usage.estimated:
            _count(self._tokens, facts.usage.input_tokens, "input", common)
            _count(self._tokens, facts.usage.output_tokens, "output", common)

    def _provider_name(self, provider_id: str) -> str:
        provider = self._router.catalogue.providers.get(provider_id)
        wire = None if provider is None else provider.wire
        profile = getattr(getattr(wire, "profile", None), "name", "")
        return (
            PROVIDERS.get(profile)
            or PROVIDERS.get(provider_id)
            or PROVIDERS.get(getattr(wire, "dialect", ""))
            or (provider_id)
        )

    def _server(self, provider_id: str) -> dict[str, Any]:
        provider = self._router.catalogue.providers.get(provider_id)
        parts = urlsplit(getattr(getattr(provider, "wire", None), "base_url", None) or "")
        if not parts.hostname:
            return {}
        return {"server.address": parts.hostname, "server.port": parts.port or (80 if parts.scheme == "http" else 443)}


def _request(facts: Facts) -> dict[str, Any]:
    """What is told of a request as a whole."""
    told = {
        "apikeyrouter.request_id": facts.request_id, "apikeyrouter.outcome": facts.outcome,
        "apikeyrouter.objective": str(facts.objective), "apikeyrouter.attempts": len(facts.attempts),
        "apikeyrouter.overhead_us": facts.overhead_us, "apikeyrouter.team": facts.team,
        "apikeyrouter.client": facts.client, "apikeyrouter.cost_nanousd": facts.cost_nanousd,
        "apikeyrouter.denied_by": None if facts.denial is None else facts.denial.where,
        "gen_ai.request.model": facts.model,
    }  # fmt: skip
    return {name: value for name, value in told.items() if value is not None}


def _own(facts: Facts, attempt: AttemptFacts, *, served: bool, first_us: int) -> dict[str, Any]:
    """What is told of one attempt beside what its metrics say."""
    told: dict[str, Any] = {
        "apikeyrouter.request_id": facts.request_id, "apikeyrouter.key_id": attempt.key_id,
        "apikeyrouter.reserve_us": attempt.reserve_us,
    }  # fmt: skip
    if facts.stream:
        told["gen_ai.request.stream"] = True
    if facts.token_cap is not None:
        told["gen_ai.request.max_tokens"] = facts.token_cap
    usage = facts.usage if served else None
    if usage is not None:
        told |= {
            "gen_ai.usage.input_tokens": usage.input_tokens, "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cache_read_tokens,
            "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens + usage.cache_write_long_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        }  # fmt: skip
    if served and facts.finish_reason:
        told["gen_ai.response.finish_reasons"] = [facts.finish_reason]
    if first_us > 0:
        told["gen_ai.response.time_to_first_chunk"] = first_us / 1e6
    return told


def _mark(span: Span, error: str) -> None:
    if error:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR, error))


def _count(tokens: Histogram, number: int, kind: str, common: Mapping[str, Any]) -> None:
    tokens.record(number, {**common, "gen_ai.token.type": kind})
