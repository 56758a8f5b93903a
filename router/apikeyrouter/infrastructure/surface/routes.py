"""The data plane's paths: which method, operation and dialect each has."""

from collections.abc import Mapping
from dataclasses import dataclass

from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.infrastructure.adapters.anthropic_wire import AnthropicWire
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire

__all__ = ["ANTHROPIC", "MODELS_PREFIX", "OPENAI", "ROUTES", "Route", "missing_route", "route_of"]

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


def route_of(path: str) -> Route | None:
    """The route of a path under any base (`/v1/embeddings`, `/api/v1/embeddings`, `/embeddings`), or None."""
    at = path.find("/v1/")
    return ROUTES.get(path[at:] if at >= 0 else "/v1" + path)


def missing_route(path: str, headers: Mapping[bytes, bytes]) -> Route:
    """For a path that is not in ROUTES: one model, or nothing that there is, in the dialect that the caller speaks."""
    at = path.find(MODELS_PREFIX)
    named = path[at:] if at >= 0 else "/v1" + path
    wire = ANTHROPIC if b"anthropic-version" in headers else OPENAI
    if named.startswith(MODELS_PREFIX):
        return Route(path=named, operation="models", wire=wire, summary="", method="GET")
    return Route(path=path, operation="unknown", wire=wire, summary="")
