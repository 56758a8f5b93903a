"""The data plane's paths: which method, operation and dialect each has."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import unquote

from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.infrastructure.adapters.anthropic_wire import AnthropicWire
from apikeyrouter.infrastructure.adapters.gemini_wire import GeminiWire
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire

__all__ = [
    "ANTHROPIC",
    "GEMINI",
    "OPENAI",
    "PREFIXES",
    "ROUTES",
    "ROUTES_WITH_NAMES",
    "Route",
    "find_route",
    "in_any_base",
    "known_paths",
]

PREFIXES = ("/v1/", "/v1beta/")
"""What all paths of the data plane begin with."""

OPENAI: Wire = OpenAIWire("http://openai/v1")
ANTHROPIC: Wire = AnthropicWire("http://anthropic")
GEMINI: Wire = GeminiWire("http://gemini")
"""Used to read requests and to write errors; what goes upstream is built by the chosen provider's own wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path. `operation` "models" lists models, "unknown" is no path at all; every other one is a call to be routed.

    `name`: what the path names, a model or what was made before. `stateful`: what was made before is asked about, or
    what is made can be asked about later.
    """

    path: str
    operation: str
    wire: Wire
    summary: str
    method: str = "POST"
    name: str = ""
    stateful: bool = False


def _post(path: str, operation: str, wire: Wire, summary: str) -> Route:
    return Route(path=path, operation=operation, wire=wire, summary=summary)


ROUTES: dict[str, Route] = {
    route.path: route
    for route in (
        _post("/v1/chat/completions", "chat", OPENAI, "Chat, OpenAI's dialect"),
        _post("/v1/messages", "messages", ANTHROPIC, "Messages, Anthropic's dialect"),
        _post("/v1/messages/count_tokens", "count_tokens", ANTHROPIC, "Count the tokens of a message"),
        replace(_post("/v1/responses", "responses", OPENAI, "Responses, OpenAI's dialect"), stateful=True),
        _post("/v1/embeddings", "embedding", OPENAI, "Embeddings, OpenAI's dialect"),
        _post("/v1/completions", "completion", OPENAI, "Text completions, OpenAI's dialect"),
        _post("/v1/images/generations", "image", OPENAI, "Make pictures"),
        _post("/v1/images/edits", "image_edit", OPENAI, "Change pictures; a form with files"),
        _post("/v1/images/variations", "image_variation", OPENAI, "Vary a picture; a form with a file"),
        _post("/v1/audio/speech", "speech", OPENAI, "Say a text; the answer is sound"),
        _post("/v1/audio/transcriptions", "transcription", OPENAI, "Write down what is said; a form with a file"),
        _post("/v1/audio/translations", "translation", OPENAI, "The same in English; a form with a file"),
        _post("/v1/moderations", "moderation", OPENAI, "Judge a text or picture"),
        _post("/v1/rerank", "rerank", OPENAI, "Order documents by a query"),
    )
}
"""Paths that are always the same."""
MODELS = Route(path="/v1/models", operation="models", wire=OPENAI, summary="Models that can be asked for", method="GET")
_MADE = Route(path="/v1/responses/{response_id}", operation="response", wire=OPENAI, summary="", stateful=True)
ROUTES_WITH_NAMES: tuple[Route, ...] = (
    replace(_MADE, method="GET", summary="A response that was made before"),
    replace(_MADE, method="DELETE", operation="delete_response", summary="Have a response forgotten"),
    replace(_MADE, path=_MADE.path + "/cancel", operation="cancel_response", summary="Stop making a response"),
    replace(_MADE, method="GET", path=_MADE.path + "/input_items", operation="input_items", summary="What was put in"),
    MODELS,
    replace(MODELS, path="/v1/models/{model}", summary="One model"),
    _post("/v1beta/models/{model}:generateContent", "generate", GEMINI, "Content, Gemini's dialect"),
    _post("/v1beta/models/{model}:streamGenerateContent", "stream_generate", GEMINI, "Content, streamed"),
    _post("/v1beta/models/{model}:embedContent", "embedding", GEMINI, "Embed one content"),
    _post("/v1beta/models/{model}:batchEmbedContents", "embedding", GEMINI, "Embed several contents"),
    _post("/v1beta/models/{model}:countTokens", "count_tokens", GEMINI, "Count the tokens of a content"),
)
"""Paths that name something, or that several dialects share. Gemini's are also under `/v1/`."""

_METHODS = {
    route.path.partition("{model}:")[2]: route for route in ROUTES_WITH_NAMES if "{model}:" in route.path
}  # fmt: skip
_GENERATES = re.compile(r"/v1(?:beta)?/((?:models|tunedModels)/[^:?]+):(\w+)$")
_STORED = re.compile(r"/v1/responses/([^/]+)((?:/cancel|/input_items)?)$")
_OF_STORED: dict[str, dict[str, Route]] = {}
for _route in ROUTES_WITH_NAMES:
    if _route.path.startswith(_MADE.path):
        _OF_STORED.setdefault(_route.path.removeprefix(_MADE.path), {})[_route.method] = _route
_LISTS = re.compile(r"/v1(?:beta)?/models(?:/(.+))?$")
_SPOKEN = ((b"anthropic-version", ANTHROPIC), (b"x-goog-api-key", GEMINI))
"""Where paths are alike, a header tells who asks."""


def find_route(path: str, query: bytes, headers: Mapping[bytes, bytes], method: str) -> Route:
    """The route of a path, for the method where it has several, in the dialect that the caller speaks.

    Where there is none, its operation is "unknown".
    """
    known = ROUTES.get(path)
    if known is not None:
        return known
    stored = _STORED.match(path)
    if stored is not None:
        routes = _OF_STORED[stored[2]]
        return replace(routes.get(method) or next(iter(routes.values())), name=unquote(stored[1]))
    generates = _GENERATES.match(path)
    if generates is not None and generates[2] in _METHODS:
        return _generating(_METHODS[generates[2]], unquote(generates[1]), query)
    wire = GEMINI if path.startswith("/v1beta/") else next((w for name, w in _SPOKEN if name in headers), OPENAI)
    lists = _LISTS.match(path)
    if lists is not None and generates is None:
        return replace(MODELS, path=path, wire=wire, name=unquote(lists[1] or ""))
    return Route(path=path, operation="unknown", wire=GEMINI if generates is not None else wire, summary="")


def in_any_base(path: str) -> str:
    """A path as it is under `/`: SDKs may have any base (`/api/v1/embeddings`, `/embeddings`)."""
    at = max(path.find("/v1/"), path.find("/v1beta/"))
    return path[at:] if at >= 0 else "/v1" + path


def known_paths() -> str:
    """What there is, for those who asked for something else."""
    return ", ".join([*ROUTES, *(route.path for route in ROUTES_WITH_NAMES)])


def _generating(route: Route, name: str, query: bytes) -> Route:
    events = route.operation == "stream_generate" and b"alt=sse" in query.split(b"&")
    return replace(route, operation="stream_events" if events else route.operation, name=name)
