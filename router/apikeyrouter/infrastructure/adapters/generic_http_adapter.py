"""Any HTTP API as a provider: what to send and where usage, cost and errors stand is told, not programmed.

    GenericHTTPAdapter("https://api.example.com", path="/v1/{city}/weather", method="GET",
                       auth={"header": "X-Api-Key"}, cost=0.002, content="summary")

Requests have operation `http` and a `payload`; where chat is served too (`operations`), it is sent as OpenAI's body.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from apikeyrouter.domain.interfaces.provider_adapter import HealthState, HealthStatus, ProviderAdapter
from apikeyrouter.domain.interfaces.provider_adapter import ProviderCapabilities as Capabilities
from apikeyrouter.domain.models.cost_estimate import CostEstimate
from apikeyrouter.domain.models.request_intent import Operation, RequestIntent
from apikeyrouter.domain.models.system_error import (
    ConfigurationError,
    ErrorCategory,
    InvalidRequestError,
    ProviderError,
    SystemError,
)
from apikeyrouter.domain.models.system_response import ResponseMetadata, SystemResponse, TokenUsage
from apikeyrouter.infrastructure.adapters.generic_endpoint import Endpoint, endpoints_of
from apikeyrouter.infrastructure.adapters.generic_errors import ErrorRule, error_rules
from apikeyrouter.infrastructure.adapters.http_client import HttpClient
from apikeyrouter.infrastructure.adapters.json_path import JsonPath

if TYPE_CHECKING:
    import httpx

__all__ = ["GenericHTTPAdapter"]

ANSWER_BYTES_MAX = 64 * 1024 * 1024
Cost = Callable[[RequestIntent, Any], Any]
"""(intent, decoded answer or None before there is one) → dollars, or None where that is not known."""
UsageReader = Callable[[Any], Any]
"""decoded answer → TokenUsage, or a mapping with input_tokens and output_tokens."""
_CATEGORIES = {
    "TimeoutException": ErrorCategory.TimeoutError,
    "TransportError": ErrorCategory.NetworkError,
}


@dataclass(frozen=True, slots=True)
class _Money:
    """What a request costs: a fixed amount, a place in the answer, or a function."""

    fixed: Decimal | None = None
    path: JsonPath | None = None
    ask: Cost | None = None

    def amount(self, intent: RequestIntent, answer: Any) -> Decimal | None:
        """Dollars; None where that is not known."""
        if self.fixed is not None:
            return self.fixed
        if self.ask is not None:
            told = self.ask(intent, answer)
        else:
            told = self.path.find(answer) if self.path is not None else None
        return None if told is None else _dollars(told, "cost")


class GenericHTTPAdapter(ProviderAdapter):
    """An HTTP API.

    Args:
        base_url: where it is, e.g. `https://api.example.com`.
        provider_id: the id it suggests for itself.
        method, path, body, query, headers: the endpoint, see `Endpoint`; `{name}` in the path is one of the payload.
        endpoints: several of them by model name, each a mapping of those five.
        auth: `bearer` (default), `basic` (the key is `user:password`), `none`, `{"header": NAME, "prefix": TEXT}` or
            `{"query": NAME}`.
        content: where the answer's text stands, e.g. `result.text`.
        usage: `{"input_tokens": PATH, "output_tokens": PATH}`, or a function of the decoded answer.
        cost: dollars per request, a path to dollars in the answer, or a function (intent, answer or None).
        errors: rules in order, see `ErrorRule`; what none of them matches is read by its status.
        operations: what an intent may ask for; default: `http`.
        models: names served; absent: those of `endpoints`, or any.
        health_path: a path that costs nothing, asked by health checks; absent: health is unknown.
        seconds: how long a phase of a request may take.
        transport: an httpx transport, e.g. `httpx.ASGITransport(app)` in tests.

    Raises:
        ConfigurationError: a part that cannot be understood; the message says which.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        provider_id: str = "generic",
        method: str = "POST",
        path: str = "/",
        body: str = "json",
        query: Iterable[str] = (),
        headers: Mapping[str, str] | None = None,
        endpoints: Mapping[str, Mapping[str, Any]] | None = None,
        auth: str | Mapping[str, str] = "bearer",
        content: str | None = None,
        usage: Mapping[str, str] | UsageReader | None = None,
        cost: float | int | str | Decimal | Cost | None = None,
        errors: Iterable[Mapping[str, Any]] = (),
        operations: Iterable[str] = ("http",),
        models: Iterable[str] | None = None,
        health_path: str | None = None,
        seconds: float = 120.0,
        transport: "httpx.AsyncBaseTransport | None" = None,
    ) -> None:
        if not base_url or not base_url.startswith(("http://", "https://")):
            raise ConfigurationError("a generic provider needs a base_url that begins with http:// or https://")
        self._client = HttpClient(base_url, seconds=seconds, transport=transport)
        self._provider_id = provider_id
        own = {"method": method, "path": path, "body": body, "query": tuple(query), "headers": dict(headers or {})}
        self._endpoints = endpoints_of(own, endpoints or {}, auth)
        self._content = JsonPath(content) if content else None
        self._usage = _usage_reader(usage)
        self._cost = _money(cost)
        self._errors = error_rules(errors)
        self._operations = frozenset(_operation(name) for name in operations)
        listed = models if models is not None else endpoints
        self._models = frozenset(listed) if listed else None
        self._health_path = health_path

    # --- requests ------------------------------------------------------------------------------------------------

    async def execute_request(self, intent: RequestIntent, key: str) -> SystemResponse:
        """Send one request and read the answer. Raises what `map_error` reads."""
        self.check_intent(intent)
        request = self._endpoint(intent).request(self._client.open(), intent, key)
        response = await self._client.open().send(request, stream=True)
        try:
            text = await _read(response)
        finally:
            await response.aclose()
        answer = _decoded(response, text)
        rule = next((rule for rule in self._errors if rule.matches(response.status_code, answer)), None)
        if rule is not None or response.status_code >= 400:
            raise self._refused(rule, response, answer)
        return self._answered(intent, answer)

    def check_intent(self, intent: RequestIntent) -> None:
        """Raise InvalidRequestError for an operation that is not served, or a field that the path needs."""
        if intent.operation not in self._operations:
            known = ", ".join(sorted(operation.value for operation in self._operations))
            raise InvalidRequestError(f"must be one of {known} for this provider", field="operation")
        self._endpoint(intent).fill(intent)

    def _endpoint(self, intent: RequestIntent) -> Endpoint:
        return self._endpoints.get(intent.model) or self._endpoints[""]

    def _answered(self, intent: RequestIntent, answer: Any) -> SystemResponse:
        amount = self._cost.amount(intent, answer)
        found = self._content.find(answer) if self._content is not None else answer if isinstance(answer, str) else None
        return SystemResponse(
            content=found if isinstance(found, str) else "",
            metadata=ResponseMetadata(
                model_used=intent.model, tokens_used=self._usage(answer), provider_id=self._provider_id
            ),
            cost=None if amount is None else CostEstimate(amount=amount, method="told by the adapter"),
            raw=answer,
        )

    def _refused(self, rule: ErrorRule | None, response: "httpx.Response", answer: Any) -> SystemError:
        details = {"status": response.status_code, "body": answer if isinstance(answer, dict) else None}
        if rule is not None:
            return rule.error(response.status_code, response.headers, answer)
        import httpx

        error = httpx.HTTPStatusError("", request=response.request, response=response)
        read = super().map_error(error)
        return SystemError(
            read.message, category=read.category, retryable=read.retryable, retry_after=read.retry_after,
            details={**read.details, **details},
        )  # fmt: skip

    # --- what the router asks ------------------------------------------------------------------------------------

    async def estimate_cost(self, request_intent: RequestIntent) -> CostEstimate | None:
        """The fixed cost, or what the cost function says before there is an answer; None where neither knows."""
        amount = self._cost.amount(request_intent, None)
        if amount is None:
            return None
        bound = amount if self._cost.fixed is not None else None
        return CostEstimate(amount=amount, bound=bound, method="told by the adapter")

    def map_error(self, provider_error: Exception) -> SystemError:
        """httpx's errors by their kind; everything else as usual."""
        if isinstance(provider_error, SystemError):
            return provider_error
        names = {kind.__name__ for kind in type(provider_error).__mro__}
        category = next((category for name, category in _CATEGORIES.items() if name in names), None)
        if category is None:
            return super().map_error(provider_error)
        return ProviderError(type(provider_error).__name__, category=category, retryable=True)

    def get_capabilities(self) -> Capabilities:
        """The operations and models it was made with."""
        return Capabilities(operations=self._operations, models=self._models)

    def get_provider_id(self) -> str:
        """The id given, `generic` by default."""
        return self._provider_id

    async def get_health(self) -> HealthState:
        """By `health_path`, without a key: healthy when it answers below 500. Unknown without one."""
        if self._health_path is None:
            return HealthState()
        try:
            response = await self._client.open().get(self._health_path)
        except Exception as exc:
            return HealthState(status=HealthStatus.Unhealthy, message=type(exc).__name__)
        healthy = response.status_code < 500
        return HealthState(
            status=HealthStatus.Healthy if healthy else HealthStatus.Degraded, message=f"status {response.status_code}"
        )

    async def check_health(self, key: str) -> bool:
        """Whether `health_path` takes the key. True without one, and where the provider cannot be reached."""
        if self._health_path is None:
            return True
        client = self._client.open()
        request = client.build_request("GET", self._health_path)
        self._endpoints[""].authorise(request, key)
        try:
            response = await client.send(request)
        except Exception:
            return True
        return response.status_code not in (401, 403)

    async def close(self) -> None:
        """Close connections. Idempotent."""
        await self._client.close()


async def _read(response: "httpx.Response") -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            raise ProviderError(f"the answer exceeds {ANSWER_BYTES_MAX} bytes", category=ErrorCategory.ProviderError)
        parts.append(chunk)
    return b"".join(parts)


def _decoded(response: "httpx.Response", body: bytes) -> Any:
    """JSON decoded, other text as text, the rest as bytes. What claims to be JSON and is none is an error."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.endswith("json") and body:
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            if response.status_code >= 400:
                return None
            raise ProviderError("the answer is not JSON", category=ErrorCategory.ProviderError) from exc
    if kind.startswith("text/") or not kind:
        return body.decode(response.encoding or "utf-8", "replace")
    return body


def _operation(name: str) -> Operation:
    found = Operation.lookup(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigurationError(f"operations: {name!r} is none; there are {', '.join(Operation)}")
    return Operation(found)


def _money(cost: Any) -> _Money:
    if cost is None:
        return _Money()
    if callable(cost):
        return _Money(ask=cost)
    if isinstance(cost, str) and not _is_number(cost):
        return _Money(path=JsonPath(cost))
    return _Money(fixed=_dollars(cost, "cost"))


def _is_number(text: str) -> bool:
    try:
        Decimal(text)
    except ArithmeticError:
        return False
    return True


def _dollars(value: Any, what: str) -> Decimal:
    """An amount as told: a non-negative, finite number."""
    try:
        amount = Decimal(str(value)) if not isinstance(value, bool) else Decimal("NaN")
    except ArithmeticError:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise ProviderError(f"{what}: {value!r} is no amount of dollars", category=ErrorCategory.ProviderError)
    return amount


def _usage_reader(usage: Mapping[str, str] | UsageReader | None) -> Callable[[Any], TokenUsage]:
    if usage is None:
        return lambda _: TokenUsage(estimated=True)
    if callable(usage):
        ask = usage
        return lambda answer: _as_usage(ask(answer))
    unknown = sorted(usage.keys() - TokenUsage.model_fields.keys())
    if unknown:
        raise ConfigurationError(f"usage: {unknown[0]!r} is no count; there are {', '.join(TokenUsage.model_fields)}")
    paths = {name: JsonPath(path) for name, path in usage.items()}
    return lambda answer: _as_usage({name: path.find(answer) for name, path in paths.items()})


def _as_usage(told: Any) -> TokenUsage:
    if isinstance(told, TokenUsage):
        return told
    counts = told if isinstance(told, Mapping) else {}
    known = {name: count for name, count in counts.items() if isinstance(count, int) and count >= 0}
    return TokenUsage.model_validate(known) if known else TokenUsage(estimated=True)
