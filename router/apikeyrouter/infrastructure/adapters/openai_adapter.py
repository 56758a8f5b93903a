"""OpenAI, and servers that speak its dialect, as a provider: `router.register_provider("openai", OpenAIAdapter())`."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from apikeyrouter.domain.models.request_intent import Operation, RequestIntent
from apikeyrouter.domain.models.system_error import ErrorCategory, InvalidRequestError, ProviderError
from apikeyrouter.domain.models.system_response import ResponseMetadata, SystemResponse, TokenUsage
from apikeyrouter.infrastructure.adapters.http_adapter import Catalogue, HTTPAdapter
from apikeyrouter.infrastructure.adapters.json_body import JsonError
from apikeyrouter.infrastructure.adapters.openai_wire import BASE_URL, PATHS, OpenAIWire
from apikeyrouter.infrastructure.adapters.transport import Timeouts, Transport

__all__ = ["OpenAIAdapter"]

OWN_MODELS = r"^(?:ft:)?(?:gpt-|chatgpt-|o\d|text-|tts-|whisper|dall-e|davinci|babbage|codex|computer-use|omni-|sora)"
OTHER_MODELS = r"^(?!claude|gemini)"
"""At another base URL any name may be served, except other families' own."""

_NEW_CAP = re.compile(r"^(?:o\d|gpt-[5-9])", re.IGNORECASE)
"""Models that refuse `max_tokens` for `max_completion_tokens` (API reference; K)."""


class OpenAIAdapter(HTTPAdapter):
    """OpenAI's API.

    Args:
        base_url: with `/v1`; absent: OPENAI_BASE_URL, then OpenAI's own.
        models: names served; absent: OpenAI's families, or anything at another base URL.
        organization, project, inject_usage: see `OpenAIWire`.
    """

    wire: OpenAIWire

    def __init__(
        self,
        base_url: str | None = None,
        *,
        provider_id: str = "openai",
        models: Iterable[str] | None = None,
        organization: str | None = None,
        project: str | None = None,
        inject_usage: bool = True,
        transport: Transport | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._provider_id = provider_id
        self._own_url = OpenAIWire(base_url).base_url == BASE_URL
        wire = OpenAIWire(base_url, provider_id, organization=organization, project=project, inject_usage=inject_usage)
        super().__init__(wire, models=models, transport=transport, timeouts=timeouts)

    def default_models(self) -> frozenset[str] | None:
        """OpenAI's families; at another base URL any name that is not another family's."""
        return Catalogue(OWN_MODELS if self._own_url else OTHER_MODELS)

    def get_provider_id(self) -> str:
        """The id given, `openai` by default."""
        return self._provider_id

    def operations(self) -> frozenset[Operation]:
        """Chat, completion, embedding, responses."""
        return frozenset({Operation.Chat, Operation.Completion, Operation.Embedding, Operation.Responses})

    def auth_headers(self, key: str) -> dict[str, str]:
        """`Authorization: Bearer`."""
        return {"authorization": "Bearer " + key}

    def encode_intent(self, intent: RequestIntent, *, stream: bool = False) -> tuple[str, bytes]:
        """(operation, body): parameters as they are, messages with foreign image parts put in OpenAI's form."""
        operation = intent.operation.value
        if operation not in PATHS:
            raise InvalidRequestError(f"must be one of {', '.join(PATHS)} for this provider", field="operation")
        body: dict[str, Any] = {"model": intent.model}
        if intent.operation is Operation.Chat:
            body["messages"] = [_encode_message(message) for message in intent.to_wire_messages()]
        else:
            body.update(intent.payload or {})
        body.update(intent.parameters)
        body["model"] = intent.model
        if intent.operation is Operation.Chat and "max_tokens" in body and _NEW_CAP.match(intent.model):
            body.setdefault("max_completion_tokens", body.pop("max_tokens"))
        body.pop("stream", None)
        if stream:
            body["stream"] = True
        return operation, msgspec.json.encode(body)

    def decode_response(self, body: bytes, intent: RequestIntent | None = None) -> SystemResponse:
        """Text, tool calls, refusal, finish reason and usage of an answer. Raises ProviderError when it is none."""
        try:
            raw = msgspec.json.decode(body, type=dict[str, Any])
        except JsonError as exc:
            raise ProviderError("the provider's answer is not JSON", category=ErrorCategory.ProviderError) from exc
        text, finish_reason = self.wire.read_answer(body)
        usage = self.wire.read_usage(body)
        message = _first_message(raw)
        return SystemResponse(
            content=text,
            metadata=ResponseMetadata(
                model_used=_text(raw.get("model")) or (intent.model if intent else ""),
                tokens_used=TokenUsage.from_usage(usage) if usage else TokenUsage(estimated=True),
                provider_id=self._provider_id,
                finish_reason=finish_reason,
                request_id=_text(raw.get("id")) or None,
            ),
            tool_calls=_listed(message.get("tool_calls")) or _function_items(raw.get("output")),
            refusal=_text(message.get("refusal")) or None,
            raw=raw,
        )

    def _tool_calls(self, raw: bytes) -> list[dict[str, Any]] | None:
        return _listed(msgspec.json.decode(raw))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _listed(value: object) -> list[dict[str, Any]] | None:
    """A list of objects, or None."""
    found = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
    return found or None


def _first_message(raw: dict[str, Any]) -> dict[str, Any]:
    choices = _listed(raw.get("choices"))
    message = choices[0].get("message") if choices else None
    return message if isinstance(message, dict) else {}


def _function_items(output: object) -> list[dict[str, Any]] | None:
    """Function calls of a Responses answer, in the shape of chat."""
    calls = [
        {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments")},
        }
        for item in _listed(output) or ()
        if item.get("type") == "function_call"
    ]
    return calls or None


def _encode_message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = [_encode_part(part) for part in content]
    return message


def _encode_part(part: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's image block in OpenAI's form; everything else as it is."""
    source = part.get("source")
    if part.get("type") != "image" or not isinstance(source, dict):
        return part
    if source.get("type") == "base64":
        url = f"data:{source.get('media_type', 'image/png')};base64,{source.get('data', '')}"
    else:
        url = str(source.get("url", ""))
    return {"type": "image_url", "image_url": {"url": url}}
