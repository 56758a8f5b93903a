"""The adapter port: how a request reaches one provider. One required method; everything else has a working default."""

import os.path
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from apikeyrouter.domain.models.case_folding import CaseFolding
from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.request_intent import Operation, RequestIntent
from apikeyrouter.domain.models.system_error import ErrorCategory, InvalidRequestError, SystemError
from apikeyrouter.domain.models.system_response import ResponseMetadata, StreamChunk, SystemResponse, TokenUsage

__all__ = ["HealthState", "HealthStatus", "ProviderAdapter", "ProviderCapabilities", "where_raised"]

RETRY_AFTER_SECONDS_MAX = 86_400
"""A longer retry-after is taken for nonsense and cut to this."""


class HealthStatus(CaseFolding):
    """How a provider looks from here."""

    Healthy = "healthy"
    Degraded = "degraded"
    Unhealthy = "unhealthy"
    Unknown = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthState:
    """A provider's health at `checked_at` (aware UTC). `latency_ms` of the check, None when nothing was asked."""

    status: HealthStatus = HealthStatus.Unknown
    checked_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    latency_ms: int | None = None
    message: str = ""

    @property
    def healthy(self) -> bool:
        """Whether requests may be sent; unknown counts as healthy."""
        return self.status is not HealthStatus.Unhealthy


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCapabilities:
    """What an adapter can do. `models` None: it has no catalogue, any model may be asked for.

    `quality`: how good its models are, 0 … 1, by name, for the objective quality; configuration and keys may say
    otherwise.
    """

    operations: frozenset[Operation] = frozenset({Operation.Chat})
    streaming: bool = False
    tools: bool = False
    models: frozenset[str] | None = None
    quality: Mapping[str, float] = field(default_factory=dict)

    def serves(self, model: str) -> bool:
        """Whether the catalogue has the model; True without a catalogue."""
        return self.models is None or model in self.models


class ProviderAdapter(ABC):
    """Talks to one provider. Stateless: one instance may serve several provider ids and keys.

    `key` is the key's material: a `str` that also has `.id` and `.metadata` and prints redacted (`KeyMaterial`).
    `f"Bearer {key}"` and header values use it like any string.
    """

    @abstractmethod
    async def execute_request(self, intent: RequestIntent, key: str) -> Any:
        """Send one request. Returns a SystemResponse, or anything that `normalize_response` takes.

        Whatever it raises is taken for a failed attempt and read by `map_error`.
        """

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[StreamChunk]:
        """Yield the answer in pieces; the last chunk has `last` set. Default: the whole answer as one chunk."""
        answer = self.normalize_response(await self.execute_request(intent, key))
        yield _as_chunk(answer)

    def normalize_response(self, provider_response: Any) -> SystemResponse:
        """A SystemResponse as it is, a text, or a mapping with `content` (and `model`, `usage`, `finish_reason`).

        Errors: SystemError (ProviderError) for anything else; override to read a provider's own shape.
        """
        if isinstance(provider_response, SystemResponse):
            return provider_response
        if isinstance(provider_response, str):
            return SystemResponse(content=provider_response, metadata=ResponseMetadata(model_used=""))
        if isinstance(provider_response, Mapping) and isinstance(provider_response.get("content"), str):
            return _from_mapping(provider_response)
        raise SystemError(
            f"{type(self).__name__} returned {type(provider_response).__name__}; "
            "return a SystemResponse or override normalize_response",
            category=ErrorCategory.ProviderError,
        )

    def map_error(self, provider_error: Exception) -> SystemError:
        """What an exception of `execute_request` means. Default: by HTTP status where it carries one, else by type."""
        if isinstance(provider_error, SystemError):
            return provider_error
        if isinstance(provider_error, InvalidRequestError):
            return SystemError(str(provider_error), category=ErrorCategory.ValidationError)
        status = http_status(provider_error)
        if status is not None:
            return _from_status(status, provider_error)
        category = _category_of(provider_error)
        retryable = category in (ErrorCategory.TimeoutError, ErrorCategory.NetworkError)
        return SystemError(where_raised(provider_error), category=category, retryable=retryable)

    def check_intent(self, intent: RequestIntent) -> None:  # noqa: B027  (optional)
        """Raise InvalidRequestError for what this provider cannot serve. Asked before anything is held.

        Default: nothing is refused.
        """

    async def estimate_cost(self, request_intent: RequestIntent) -> CostEstimate | None:
        """What the request will cost; None (the default) where the price is unknown or known elsewhere.

        Without a price in the price list this is what is held; `bound` is what hard budgets hold.
        """
        return None

    def get_capabilities(self) -> ProviderCapabilities:
        """What this adapter can do. Default: chat, no catalogue; streams where `execute_stream` is overridden."""
        streams = type(self).execute_stream is not ProviderAdapter.execute_stream
        return replace(ProviderCapabilities(), streaming=streams)

    async def get_health(self) -> HealthState:
        """The provider's health without using a key. Default: unknown. Must be free of charge."""
        return HealthState()

    async def check_health(self, key: str) -> bool:
        """Whether the key works, found out on an endpoint that costs nothing. Default: True."""
        return True

    async def probe_key(self, key: str) -> bool | None:
        """As `check_health`, and None when nothing was found out, e.g. nobody answered. Default: `check_health`."""
        return await self.check_health(key)

    def get_provider_id(self) -> str:
        """The id this adapter suggests for itself. Default: its class name, `MyCustomAdapter` → `my-custom`."""
        name = type(self).__name__.removesuffix("Adapter") or type(self).__name__
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def http_status(error: BaseException) -> int | None:
    """The HTTP status an exception carries (`.status_code`, `.status`, `.code` or the same of its `.response`)."""
    for bearer in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(bearer, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
                return value
    return None


def where_raised(error: BaseException) -> str:
    """What was raised where. Not what it said: that may repeat a key, or a prompt."""
    trace = error.__traceback__
    if trace is None:
        return type(error).__name__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{type(error).__name__} at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def _from_status(status: int, error: Exception) -> SystemError:
    category = _STATUS_CATEGORIES.get(status)
    if category is None:
        category = ErrorCategory.ProviderError if status >= 500 else ErrorCategory.ValidationError
    retryable = status in (408, 409, 429) or status >= 500
    return SystemError(
        f"the provider answered {status}",
        category=category,
        retryable=retryable,
        retry_after=_retry_after(error),
        details={"status": status},
    )


_STATUS_CATEGORIES = {
    401: ErrorCategory.AuthenticationError,
    402: ErrorCategory.QuotaExceededError,
    403: ErrorCategory.AuthenticationError,
    408: ErrorCategory.TimeoutError,
    409: ErrorCategory.ProviderError,
    429: ErrorCategory.RateLimitError,
    504: ErrorCategory.TimeoutError,
}


def _retry_after(error: Exception) -> int | None:
    headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None)
    if not isinstance(headers, Mapping):
        return None
    told = headers.get("retry-after") or headers.get("Retry-After")
    try:
        seconds = float(told or "")
    except ValueError:
        return None
    return min(-int(-seconds // 1), RETRY_AFTER_SECONDS_MAX) if 0 < seconds < float("inf") else None


def _category_of(error: Exception) -> ErrorCategory:
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, TimeoutError) or names & {"TimeoutException", "ServerTimeoutError"}:
        return ErrorCategory.TimeoutError
    if isinstance(error, OSError) or names & {"TransportError", "ClientConnectionError"}:
        return ErrorCategory.NetworkError
    return ErrorCategory.UnknownError


def _as_chunk(answer: SystemResponse) -> StreamChunk:
    return StreamChunk(
        text=answer.content,
        tool_calls=answer.tool_calls,
        refusal=answer.refusal,
        finish_reason=answer.metadata.finish_reason,
        last=True,
        usage=answer.metadata.tokens_used,
        cost=answer.cost,
        key_used=answer.key_used,
        request_id=answer.request_id,
        raw=answer.raw,
    )


def _from_mapping(answer: Mapping[str, Any]) -> SystemResponse:
    usage = answer.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    finish_reason = answer.get("finish_reason")
    return SystemResponse(
        content=answer["content"],
        metadata=ResponseMetadata(
            model_used=str(answer.get("model") or ""),
            tokens_used=_tokens(counts),
            finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        ),
        raw=dict(answer),
    )


def _tokens(counts: Mapping[str, Any]) -> TokenUsage:
    """What was used; nothing, as nobody told it, where one of the counts is none."""
    told = _told(counts, "input_tokens", "prompt_tokens"), _told(counts, "output_tokens", "completion_tokens")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in told):
        return TokenUsage(estimated=True)
    return TokenUsage(input_tokens=told[0], output_tokens=told[1], estimated=not counts)


def _told(counts: Mapping[str, Any], *names: str) -> Any:
    return next((counts[name] for name in names if counts.get(name) is not None), 0)
