"""What the adapters of wire dialects share: an intent out, an answer back, over the shared HTTP transport."""

import asyncio
import re
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from apikeyrouter.domain.interfaces.provider_adapter import (
    HealthState,
    HealthStatus,
    ProviderAdapter,
    ProviderCapabilities,
)
from apikeyrouter.domain.interfaces.wire import (
    Answer,
    DeltaReader,
    Headers,
    StreamDelta,
    StreamReader,
    UpstreamRequest,
    Wire,
)
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.request_intent import Operation, RequestIntent
from apikeyrouter.domain.models.system_error import ErrorCategory, InvalidRequestError, ProviderError, SystemError
from apikeyrouter.domain.models.system_response import ResponseMetadata, StreamChunk, SystemResponse, TokenUsage
from apikeyrouter.infrastructure.adapters.json_body import decoded_object
from apikeyrouter.infrastructure.adapters.translation.completion_to_chat import completion_to_chat
from apikeyrouter.infrastructure.adapters.translation.responses_to_chat import responses_to_chat
from apikeyrouter.infrastructure.adapters.transport import (
    Response,
    Timeouts,
    Transport,
    TransportError,
    UpstreamTimeout,
)

ERROR_BODY_BYTES_MAX = 256 * 1024
ANSWER_BYTES_MAX = 64 * 1024 * 1024
CHECK_TIMEOUTS = Timeouts(connect=3.0, first_byte=5.0, idle=5.0, total=8.0)
REFUSED = (401, 403)


class Catalogue(frozenset[str]):
    """The models of a provider as a pattern: `in` asks the pattern, iterating gives nothing."""

    __slots__ = ("_pattern",)

    def __new__(cls, pattern: str) -> "Catalogue":
        made = super().__new__(cls)
        made._pattern = re.compile(pattern, re.IGNORECASE)
        return made

    _pattern: re.Pattern[str]

    def __contains__(self, model: object) -> bool:
        return isinstance(model, str) and self._pattern.search(model) is not None

    def __repr__(self) -> str:
        return f"Catalogue({self._pattern.pattern!r})"


AS_CHAT: Mapping[Operation, Callable[[Mapping[str, Any]], dict[str, Any]]] = MappingProxyType(
    {Operation.Completion: completion_to_chat, Operation.Responses: responses_to_chat}
)
"""What a provider that has only chat is asked as chat."""


def chat_body(intent: RequestIntent) -> dict[str, Any]:
    """An intent as the body of OpenAI's chat, which is what translations start from. Without `stream`.

    Raises InvalidRequestError for what chat cannot say of a completion or a response.
    """
    read = AS_CHAT.get(intent.operation)
    if read is None:
        body = {"model": intent.model, "messages": intent.to_wire_messages(), **intent.parameters}
    else:
        body = read({**(intent.payload or {}), **intent.parameters, "model": intent.model})
    body["model"] = intent.model
    body.pop("stream", None)
    return body


@contextmanager
def naming_parameters(intent: RequestIntent) -> Iterator[None]:
    """What is refused inside is named as the caller wrote it: members of `parameters` with that prefix."""
    try:
        yield
    except InvalidRequestError as exc:
        if exc.field.partition(".")[0] not in intent.parameters:
            raise
        raise InvalidRequestError(exc.reason, field=f"parameters.{exc.field}") from exc


class UpstreamFailure(ProviderError):
    """A provider's failure, interpreted: `failure` says its cause, scope and action."""

    def __init__(self, failure: Failure) -> None:
        seconds = -(-failure.retry_after_us // 1_000_000)
        super().__init__(
            failure.message,
            category=failure.category,
            retryable=failure.retry_elsewhere,
            retry_after=seconds or None,
            details={"status": failure.status, "code": failure.code, "type": failure.type},
        )
        self.failure = failure


class HTTPAdapter(ProviderAdapter):
    """Base of adapters that speak a wire dialect. `wire` is what the data plane uses; the rest works standalone.

    Args:
        wire: the dialect.
        provider_id: the id it suggests for itself.
        models: the catalogue; None: `default_models`.
        transport: an HTTP transport to share; absent, one per event loop is opened and kept until `close`.
        timeouts: per phase, seconds.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        provider_id: str,
        models: Iterable[str] | None = None,
        transport: Transport | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.wire = wire
        self._provider_id = provider_id
        self._models = frozenset(models) if models is not None else self.default_models()
        self._given = transport
        self._own: tuple[asyncio.AbstractEventLoop, Transport] | None = None
        self._timeouts = timeouts or Timeouts()

    @abstractmethod
    def encode_intent(self, intent: RequestIntent, *, stream: bool = False) -> tuple[str, bytes]:
        """(operation, body) of an intent in this dialect. Raises InvalidRequestError for what it cannot say."""

    def decode_response(self, body: bytes, intent: RequestIntent | None = None) -> SystemResponse:
        """Text, tool calls, refusal, finish reason and usage of an answer, in the words of chat.

        Raises ProviderError when the bytes are no JSON object.
        """
        raw = decoded_object(body)
        if raw is None:
            raise ProviderError("the provider's answer is not JSON", category=ErrorCategory.ProviderError)
        return self.as_response(self.wire.read_answer(body, raw), raw, intent)

    def as_response(self, answer: Answer, raw: Any, intent: RequestIntent | None = None) -> SystemResponse:
        """An answer that was read, as callers get it. `raw`: the provider's body, decoded."""
        usage = answer.usage
        return SystemResponse.made(
            content=answer.text,
            metadata=ResponseMetadata.made(
                model_used=answer.model or (intent.model if intent else ""),
                tokens_used=TokenUsage.from_usage(usage) if usage else TokenUsage(estimated=True),
                provider_id=self._provider_id,
                finish_reason=answer.finish_reason,
                request_id=answer.id or None,
            ),
            tool_calls=list(answer.tool_calls) or None,
            refusal=answer.refusal or None,
            reasoning=answer.reasoning or None,
            embeddings=list(answer.embeddings) or None,
            raw=raw,
        )

    def decode_delta(self, delta: StreamDelta) -> StreamChunk:
        """One piece of a streamed answer."""
        return StreamChunk(
            text=delta.text,
            tool_calls=list(delta.tool_calls) or None,
            refusal=delta.refusal or None,
            reasoning=delta.reasoning or None,
            finish_reason=delta.finish_reason,
        )

    def get_provider_id(self) -> str:
        """The id given."""
        return self._provider_id

    def default_models(self) -> frozenset[str] | None:
        """The catalogue when none is given; None: any model may be asked for."""
        return None

    async def execute_request(self, intent: RequestIntent, key: str) -> SystemResponse:
        """Send one request and read the answer. Raises UpstreamFailure, TransportError, InvalidRequestError."""
        response = await self._send(intent, key, stream=False)
        body = await response.read(ANSWER_BYTES_MAX)
        if response.status >= 400:
            raise UpstreamFailure(self._classify(response, body, key))
        return self.decode_response(body, intent)

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[StreamChunk]:
        """Yield the answer in pieces; the last one has `last` and the usage. Raises as `execute_request`."""
        response = await self._send(intent, key, stream=True)
        try:
            if response.status >= 400:
                body = await response.read(ERROR_BODY_BYTES_MAX)
                raise UpstreamFailure(self._classify(response, body, key))
            operation = self.operation_of(intent, stream=True)
            reader = self.wire.stream(hide_usage=True, operation=operation)
            async for chunk in self._read_stream(response, reader, self.wire.deltas(operation=operation)):
                yield chunk
        finally:
            await response.close()

    async def _read_stream(
        self, response: Response, reader: StreamReader, deltas: DeltaReader
    ) -> AsyncIterator[StreamChunk]:
        async for data in response.chunks():
            step = reader.feed(data)
            for delta in deltas.read(step.out):
                yield self.decode_delta(delta)
            if step.failure is not None:
                raise UpstreamFailure(step.failure)
            if step.done:
                break
        else:
            step = reader.end()
            for delta in deltas.read(step.out):
                yield self.decode_delta(delta)
            if step.failure is not None:
                raise UpstreamFailure(step.failure)
        usage = TokenUsage.from_usage(reader.usage) if reader.usage else TokenUsage(estimated=True)
        yield StreamChunk(last=True, finish_reason=reader.finish_reason, usage=usage)

    def _classify(self, response: Response, body: bytes, key: str) -> Failure:
        return self.wire.classify(response.status, response.headers, body, known_secrets=(str(key),))

    def operation_of(self, intent: RequestIntent, *, stream: bool = False) -> str:
        """The wire's operation for an intent."""
        return intent.operation.value

    def map_error(self, provider_error: Exception) -> SystemError:
        """Failures keep their meaning; transport errors become timeout or network errors."""
        if isinstance(provider_error, UpstreamTimeout):
            category = ErrorCategory.TimeoutError
        elif isinstance(provider_error, TransportError):
            category = ErrorCategory.NetworkError
        else:
            return super().map_error(provider_error)
        details = {"sent": provider_error.sent}
        return ProviderError(str(provider_error), category=category, retryable=True, details=details)

    def get_capabilities(self) -> ProviderCapabilities:
        """Chat with tools and streams, and the catalogue."""
        return ProviderCapabilities(operations=self.operations(), streaming=True, tools=True, models=self._models)

    def operations(self) -> frozenset[Operation]:
        """What an intent may ask of this adapter."""
        return frozenset({Operation.Chat, *AS_CHAT})

    async def get_health(self) -> HealthState:
        """Healthy when the provider answers at all, degraded above 499; uses no key and costs nothing."""
        started = asyncio.get_running_loop().time()
        try:
            status = await self._check(())
        except TransportError as exc:
            return HealthState(status=HealthStatus.Unhealthy, message=str(exc))
        taken = int((asyncio.get_running_loop().time() - started) * 1000)
        state = HealthState(status=HealthStatus.Healthy, latency_ms=taken)
        return state if status < 500 else replace(state, status=HealthStatus.Degraded, message=f"status {status}")

    async def check_health(self, key: str) -> bool:
        """Whether the key may list models, which is free. An unreachable provider says nothing against a key."""
        return await self.probe_key(key) is not False

    async def probe_key(self, key: str) -> bool | None:
        """The same, and None when the provider was not reached or had trouble of its own."""
        try:
            status = await self._check(self.wire.check_headers(key))
        except TransportError:
            return None
        return True if 200 <= status < 300 else False if status in REFUSED else None

    async def close(self) -> None:
        """Close the transport this adapter opened. Idempotent."""
        own, self._own = self._own, None
        if own is not None and own[0] is asyncio.get_running_loop():
            await own[1].close()

    async def _check(self, headers: Headers) -> int:
        request = UpstreamRequest(method="GET", url=self.wire.models_url(), headers=headers, body=b"")
        response = await self.transport().send(request, timeouts=CHECK_TIMEOUTS)
        await response.close()
        return response.status

    async def _send(self, intent: RequestIntent, key: str, *, stream: bool) -> Response:
        operation, body = self.encode_intent(intent, stream=stream)
        parsed = self.wire.parse(body, operation=operation, model=intent.model)
        request = self.wire.build(parsed, operation=operation, model=intent.model, token_cap=None, key=key)
        return await self.transport().send(request, timeouts=self._timeouts)

    def transport(self) -> Transport:
        """The shared transport, or this event loop's own."""
        if self._given is not None:
            return self._given
        loop = asyncio.get_running_loop()
        if self._own is None or self._own[0] is not loop:
            from apikeyrouter.infrastructure.adapters.http_transport import AiohttpTransport

            self._own = (loop, AiohttpTransport())
        return self._own[1]
