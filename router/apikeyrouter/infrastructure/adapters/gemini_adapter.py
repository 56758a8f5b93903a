"""Gemini as a provider: `router.register_provider("gemini", GeminiAdapter())`."""

from collections.abc import Iterable

import msgspec

from apikeyrouter.domain.models.request_intent import Operation, RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.gemini_wire import GeminiWire
from apikeyrouter.infrastructure.adapters.http_adapter import Catalogue, HTTPAdapter, chat_body, naming_parameters
from apikeyrouter.infrastructure.adapters.translation.chat_to_generate import chat_to_generate, embedding_to_embed
from apikeyrouter.infrastructure.adapters.transport import Timeouts, Transport

__all__ = ["GeminiAdapter"]


class GeminiAdapter(HTTPAdapter):
    """The Gemini API: chat and embeddings, in OpenAI's words.

    Args:
        base_url: with or without its version; absent: GOOGLE_GEMINI_BASE_URL, then Google's own.
        models: names served; absent: Gemini's and Gemma's families, and the embedding models.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        provider_id: str = "gemini",
        models: Iterable[str] | None = None,
        transport: Transport | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(
            GeminiWire(base_url), provider_id=provider_id, models=models, transport=transport, timeouts=timeouts
        )

    def default_models(self) -> frozenset[str] | None:
        """Gemini's families."""
        return Catalogue(r"^(?:models/|tunedModels/)?(?:gemini|gemma|learnlm|text-embedding-00|embedding-)")

    def operations(self) -> frozenset[Operation]:
        """Chat, what becomes chat, and embedding."""
        return super().operations() | {Operation.Embedding}

    def operation_of(self, intent: RequestIntent, *, stream: bool = False) -> str:
        """Chat is `generate` here; streams come as server-sent events."""
        if intent.operation is Operation.Embedding:
            return "embedding"
        return "stream_events" if stream else "generate"

    def encode_intent(self, intent: RequestIntent, *, stream: bool = False) -> tuple[str, bytes]:
        """(operation, body) of an intent. Raises InvalidRequestError for what Gemini cannot do."""
        if intent.operation not in self.operations():
            raise InvalidRequestError("Gemini serves chat, completion, responses and embedding", field="operation")
        with naming_parameters(intent):
            if intent.operation is Operation.Embedding:
                body = embedding_to_embed({**(intent.payload or {}), **intent.parameters}, intent.model)
            else:
                body = chat_to_generate(chat_body(intent))
        return self.operation_of(intent, stream=stream), msgspec.json.encode(body)
