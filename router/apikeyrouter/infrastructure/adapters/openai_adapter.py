"""OpenAI, and servers that speak its dialect, as a provider: `router.register_provider("openai", OpenAIAdapter())`."""

from collections.abc import Iterable
from typing import Any

import msgspec

from apikeyrouter.domain.models.request_intent import Operation, RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.http_adapter import Catalogue, HTTPAdapter, chat_body
from apikeyrouter.infrastructure.adapters.openai_wire import BASE_URL, NEW_CAP, OpenAIWire
from apikeyrouter.infrastructure.adapters.profiles import Profile
from apikeyrouter.infrastructure.adapters.transport import Timeouts, Transport

__all__ = ["OpenAIAdapter"]

OWN_MODELS = r"^(?:ft:)?(?:gpt-|chatgpt-|o\d|text-|tts-|whisper|dall-e|davinci|babbage|codex|computer-use|omni-|sora)"
OTHER_MODELS = r"^(?!claude|gemini)"
"""At another base URL any name may be served, except other families' own."""


class OpenAIAdapter(HTTPAdapter):
    """OpenAI's API, and every server that speaks its dialect.

    Args:
        base_url: with `/v1`; absent: the profile's own (of OpenAI: OPENAI_BASE_URL first).
        profile: mistral, groq, deepseek, openrouter, vllm, ollama, llamacpp, openai or compatible; absent: told by the
            host of the URL, else compatible.
        models: names served; absent: OpenAI's families at its own address, or anything at another.
        organization, project, inject_usage: see `OpenAIWire`.

    Raises:
        ConfigurationError: no such profile.
    """

    wire: OpenAIWire

    def __init__(
        self,
        base_url: str | None = None,
        *,
        provider_id: str | None = None,
        profile: str | Profile | None = None,
        models: Iterable[str] | None = None,
        organization: str | None = None,
        project: str | None = None,
        inject_usage: bool | None = None,
        transport: Transport | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        wire = OpenAIWire(base_url, profile, organization=organization, project=project, inject_usage=inject_usage)
        self._setup(wire, provider_id, models, transport, timeouts)

    def _setup(
        self,
        wire: OpenAIWire,
        provider_id: str | None,
        models: Iterable[str] | None,
        transport: Transport | None,
        timeouts: Timeouts | None,
    ) -> None:
        self.wire = wire
        named = wire.profile.name
        provider_id = provider_id or ("openai" if named == "compatible" else named)
        HTTPAdapter.__init__(self, wire, provider_id=provider_id, models=models, transport=transport, timeouts=timeouts)

    def default_models(self) -> frozenset[str] | None:
        """OpenAI's families; at another base URL any name that is not another family's (OpenRouter serves all)."""
        if self.wire.profile.name == "openrouter":
            return None
        return Catalogue(OWN_MODELS if self.wire.base_url == BASE_URL else OTHER_MODELS)

    def operations(self) -> frozenset[Operation]:
        """What the profile's server has, and what it is asked as chat where it has not."""
        own = frozenset(operation for operation in Operation if operation.value in self.wire.profile.operations)
        return own | super().operations() if Operation.Chat in own else own

    def encode_intent(self, intent: RequestIntent, *, stream: bool = False) -> tuple[str, bytes]:
        """(operation, body): parameters as they are, messages with foreign image parts put in OpenAI's form."""
        if intent.operation not in self.operations():
            known = ", ".join(sorted(self.operations()))
            raise InvalidRequestError(f"must be one of {known} for this provider", field="operation")
        operation = intent.operation.value if intent.operation.value in self.wire.profile.operations else "chat"
        if operation == "chat":
            body = chat_body(intent)
            body["messages"] = [_encode_message(message) for message in body["messages"]]
        else:
            body = {**(intent.payload or {}), **intent.parameters, "model": intent.model}
        if operation == "chat" and "max_tokens" in body and NEW_CAP.match(intent.model):
            body.setdefault("max_completion_tokens", body.pop("max_tokens"))
        body.pop("stream", None)
        if stream:
            body["stream"] = True
        return operation, msgspec.json.encode(body)


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
