"""Anthropic as a provider: `router.register_provider("anthropic", AnthropicAdapter())`."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from apikeyrouter.domain.interfaces.wire import StreamDelta
from apikeyrouter.domain.models.request_intent import Operation, RequestIntent
from apikeyrouter.domain.models.system_error import ErrorCategory, InvalidRequestError, ProviderError
from apikeyrouter.domain.models.system_response import ResponseMetadata, StreamChunk, SystemResponse, TokenUsage
from apikeyrouter.infrastructure.adapters import anthropic_intent
from apikeyrouter.infrastructure.adapters.anthropic_wire import VERSION, AnthropicWire
from apikeyrouter.infrastructure.adapters.http_adapter import Catalogue, HTTPAdapter
from apikeyrouter.infrastructure.adapters.json_body import JsonError
from apikeyrouter.infrastructure.adapters.transport import Timeouts, Transport

__all__ = ["AnthropicAdapter"]

FINISH_REASONS: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""`stop_reason` in the words of chat (`providers.md` §6)."""


class AnthropicAdapter(HTTPAdapter):
    """Anthropic's Messages API.

    Args:
        base_url: without `/v1`; absent: ANTHROPIC_BASE_URL, then Anthropic's own.
        models: names served; absent: Claude models.
    """

    wire: AnthropicWire
    models_path = "/v1/models"

    def __init__(
        self,
        base_url: str | None = None,
        *,
        provider_id: str = "anthropic",
        models: Iterable[str] | None = None,
        transport: Transport | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._provider_id = provider_id
        super().__init__(AnthropicWire(base_url, provider_id), models=models, transport=transport, timeouts=timeouts)

    def default_models(self) -> frozenset[str] | None:
        """Claude models."""
        return Catalogue(r"claude")

    def get_provider_id(self) -> str:
        """The id given, `anthropic` by default."""
        return self._provider_id

    def operation_of(self, intent: RequestIntent) -> str:
        """Chat is `messages` here."""
        return "messages"

    def auth_headers(self, key: str) -> dict[str, str]:
        """`x-api-key`, with the version the API demands."""
        return {"x-api-key": key, "anthropic-version": VERSION}

    def encode_intent(self, intent: RequestIntent, *, stream: bool = False) -> tuple[str, bytes]:
        """("messages", body) of a chat intent. Raises InvalidRequestError for what Anthropic cannot do."""
        if intent.operation is not Operation.Chat:
            raise InvalidRequestError("Anthropic serves chat only", field="operation")
        return "messages", anthropic_intent.encode(intent, stream=stream)

    def decode_response(self, body: bytes, intent: RequestIntent | None = None) -> SystemResponse:
        """Text, tool calls, refusal, finish reason (in the words of chat) and usage. Raises ProviderError."""
        try:
            raw = msgspec.json.decode(body, type=dict[str, Any])
        except JsonError as exc:
            raise ProviderError("the provider's answer is not JSON", category=ErrorCategory.ProviderError) from exc
        text, stop_reason = self.wire.read_answer(body)
        usage = self.wire.read_usage(body)
        model, answer_id = raw.get("model"), raw.get("id")
        return SystemResponse(
            content=text,
            metadata=ResponseMetadata(
                model_used=model if isinstance(model, str) else (intent.model if intent else ""),
                tokens_used=TokenUsage.from_usage(usage) if usage else TokenUsage(estimated=True),
                provider_id=self._provider_id,
                finish_reason=FINISH_REASONS.get(stop_reason or "", stop_reason),
                request_id=answer_id if isinstance(answer_id, str) else None,
            ),
            tool_calls=_tool_calls(raw.get("content")),
            refusal=_refusal(raw, text) if stop_reason == "refusal" else None,
            raw=raw,
        )

    def decode_delta(self, delta: StreamDelta) -> StreamChunk:
        """One piece of a streamed answer; a tool call begins with its name and goes on with argument text."""
        finish = FINISH_REASONS.get(delta.finish_reason or "", delta.finish_reason)
        calls = self._tool_calls(delta.tool_calls) if delta.tool_calls else None
        return StreamChunk(text=delta.text, tool_calls=calls, finish_reason=finish)

    def _tool_calls(self, raw: bytes) -> list[dict[str, Any]] | None:
        event = msgspec.json.decode(raw, type=dict[str, Any])
        index = event.get("index", 0)
        block = event.get("content_block")
        if isinstance(block, dict):
            function = {"name": block.get("name"), "arguments": ""}
            return [{"index": index, "id": block.get("id"), "type": "function", "function": function}]
        delta = event.get("delta")
        text = delta.get("partial_json", "") if isinstance(delta, dict) else ""
        return [{"index": index, "function": {"arguments": text}}]


def _tool_calls(content: object) -> list[dict[str, Any]] | None:
    calls = [
        {
            "id": block.get("id"),
            "type": "function",
            "function": {"name": block.get("name"), "arguments": msgspec.json.encode(block.get("input")).decode()},
        }
        for block in (content if isinstance(content, list) else ())
        if isinstance(block, dict) and block.get("type") == "tool_use"
    ]
    return calls or None


def _refusal(raw: Mapping[str, Any], text: str) -> str:
    details = raw.get("stop_details")
    explained = details.get("explanation") if isinstance(details, dict) else None
    return explained if isinstance(explained, str) and explained else text or "the model declined to answer"
