"""The data plane's paths: which method, operation and dialect each has."""

from dataclasses import dataclass

from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.infrastructure.adapters.anthropic_wire import AnthropicWire
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire

__all__ = ["ANTHROPIC", "MODELS_PREFIX", "OPENAI", "ROUTES", "Route"]

OPENAI: Wire = OpenAIWire()
ANTHROPIC: Wire = AnthropicWire()
"""Used to read requests and to write errors; what goes upstream is built by the chosen provider's own wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path. `operation` "models" lists models; every other one is a call to be routed."""

    path: str
    operation: str
    wire: Wire
    summary: str
    method: str = "POST"


def _post(path: str, operation: str, wire: Wire, summary: str) -> Route:
    return Route(path=path, operation=operation, wire=wire, summary=summary)


MODELS_PREFIX = "/v1/models/"
MODELS = Route(path="/v1/models", operation="models", wire=OPENAI, summary="Models that can be asked for", method="GET")
ROUTES: dict[str, Route] = {
    route.path: route
    for route in (
        _post("/v1/chat/completions", "chat", OPENAI, "Chat, OpenAI's dialect"),
        _post("/v1/messages", "messages", ANTHROPIC, "Messages, Anthropic's dialect"),
        _post("/v1/messages/count_tokens", "count_tokens", ANTHROPIC, "Count the tokens of a message"),
        _post("/v1/responses", "responses", OPENAI, "Responses, OpenAI's dialect"),
        _post("/v1/embeddings", "embedding", OPENAI, "Embeddings, OpenAI's dialect"),
        _post("/v1/completions", "completion", OPENAI, "Text completions, OpenAI's dialect"),
        MODELS,
    )
}
