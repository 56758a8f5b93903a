"""Anthropic as a provider: `router.register_provider("anthropic", AnthropicAdapter())`."""

from collections.abc import Iterable

import msgspec

from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.anthropic_wire import AnthropicWire
from apikeyrouter.infrastructure.adapters.http_adapter import Catalogue, HTTPAdapter, chat_body, naming_parameters
from apikeyrouter.infrastructure.adapters.translation.chat_to_messages import chat_to_messages
from apikeyrouter.infrastructure.adapters.transport import Timeouts, Transport

__all__ = ["AnthropicAdapter"]


class AnthropicAdapter(HTTPAdapter):
    """Anthropic's Messages API.

    Args:
        base_url: without `/v1`; absent: ANTHROPIC_BASE_URL, then Anthropic's own.
        models: names served; absent: Claude models.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        provider_id: str = "anthropic",
        models: Iterable[str] | None = None,
        transport: Transport | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(
            AnthropicWire(base_url), provider_id=provider_id, models=models, transport=transport, timeouts=timeouts
        )

    def default_models(self) -> frozenset[str] | None:
        """Claude models."""
        return Catalogue(r"claude")

    def operation_of(self, intent: RequestIntent, *, stream: bool = False) -> str:
        """Chat is `messages` here."""
        return "messages"

    def encode_intent(self, intent: RequestIntent, *, stream: bool = False) -> tuple[str, bytes]:
        """("messages", body) of an intent. Raises InvalidRequestError for what Anthropic cannot do."""
        if intent.operation not in self.operations():
            raise InvalidRequestError("Anthropic serves chat, completion and responses", field="operation")
        with naming_parameters(intent):
            body = chat_body(intent)
            if stream:
                body["stream"] = True
            return "messages", msgspec.json.encode(chat_to_messages(body))
