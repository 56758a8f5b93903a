"""What the data plane takes, as schemas: what is read and needed. Whatever else a body says goes on as it came."""

from collections.abc import Mapping
from typing import Any

__all__ = ["FORMS", "REQUESTS", "listed", "named", "thing"]

Schema = dict[str, Any]
AMOUNT_MAX = 2**53
"""What exceeds it is refused: it would not survive every JSON reader on the way."""


def thing(*needed: str, about: str = "", **members: Schema) -> Schema:
    """A JSON object with these members, and whatever else."""
    made: Schema = {"type": "object", "properties": members, "additionalProperties": True}
    return {**made, **({"required": list(needed)} if needed else {}), **({"description": about} if about else {})}


def listed(of: Schema, *, least: int = 0) -> Schema:
    """A list."""
    return {"type": "array", "items": of, **({"minItems": least} if least else {})}


def named(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _maybe(kind: str, about: str = "", **more: Any) -> Schema:
    """A member that may be null."""
    return {"type": [kind, "null"], **more, **({"description": about} if about else {})}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _one_or_many(of: Schema) -> Schema:
    return _either(of, listed(of, least=1))


_TEXT: Schema = {"type": "string"}
_WORD: Schema = {"type": "string", "minLength": 1}
_MODEL: Schema = {**_WORD, "description": "A model, or a name that the configuration gives to some"}
_STREAM = _maybe("boolean", "Whether the answer comes as events")
_CAP = _maybe(
    "integer", "Most tokens of the answer. Without one, a hard budget that applies puts one in: x-akr-token-cap",
    minimum=0, maximum=AMOUNT_MAX,
)  # fmt: skip
_NEEDED_CAP: Schema = {"type": "integer", "minimum": 0, "maximum": AMOUNT_MAX}
_CHOICES = _maybe("integer", "How many answers", minimum=1, maximum=128)
_CACHE_KEY = _maybe("string", "Goes on as a name of the client's own, where clients have tokens")
_TIER = _maybe("string", "Decides the price")
_OPTIONS = _either(
    thing(include_usage=_maybe("boolean", "Whether the last event tells the usage; it is asked for in any case")),
    {"type": "null"},
)
_PART = thing(type=_TEXT, text=_TEXT)
_CONTENT = _either(_TEXT, listed(_PART), {"type": "null"})
_OUTPUT = _either(_TEXT, listed(_PART), _PART, {"type": "null"})
_SYSTEM = _either(_TEXT, listed(thing(type=_TEXT, text=_TEXT)), {"type": "null"})
_TOOLS = _either(listed(thing(type=_TEXT)), {"type": "null"})
_BLOCK = thing(type=_TEXT, text=_TEXT, thinking=_TEXT)
_BLOCKS = _either(_TEXT, listed(_BLOCK))
_ANTHROPIC_MESSAGES = listed(thing("role", "content", role=_TEXT, content=_BLOCKS), least=1)
_GEMINI_CONTENT = thing(role=_TEXT, parts=_either(listed(thing(text=_TEXT)), {"type": "null"}))
_TOKENS = listed({"type": "integer"}, least=1)
_TEXTS = _either(_TEXT, listed(_TEXT, least=1), _TOKENS, listed(_TOKENS, least=1))

_GENERATION = _either(
    thing(
        maxOutputTokens=_maybe("integer", minimum=0, maximum=AMOUNT_MAX),
        candidateCount=_maybe("integer", minimum=0, maximum=AMOUNT_MAX),
    ),
    {"type": "null"},
)

REQUESTS: Mapping[str, Schema] = {
    "chat": thing(
        "model", "messages",
        model=_MODEL,
        messages=listed(thing("role", role=_TEXT, content=_CONTENT), least=1),
        stream=_STREAM,
        stream_options=_OPTIONS,
        max_tokens=_CAP,
        max_completion_tokens=_CAP,
        n=_CHOICES,
        tools=_TOOLS,
        service_tier=_TIER,
        prompt_cache_key=_CACHE_KEY,
        cache_salt=_CACHE_KEY,
    ),
    "completion": thing(
        "model",
        model=_MODEL, prompt=_TEXTS, stream=_STREAM, stream_options=_OPTIONS, max_tokens=_CAP, n=_CHOICES,
        best_of=_CHOICES, service_tier=_TIER,
    ),
    "embedding": thing("model", "input", model=_MODEL, input=_TEXTS),
    "responses": thing(
        "model",
        model=_MODEL,
        input=_either(_TEXT, listed(thing(type=_TEXT, content=_CONTENT, output=_OUTPUT))),
        stream=_STREAM,
        max_output_tokens=_CAP,
        tools=_TOOLS,
        store=_maybe("boolean", "False: its origin is not noted, and nobody can go on from it"),
        previous_response_id=_maybe("string", "Goes to the organisation that made it, for the client that had it made"),
        conversation=_either(_TEXT, thing(id=_TEXT), {"type": "null"}),
        service_tier=_TIER,
        prompt_cache_key=_CACHE_KEY,
    ),
    "messages": thing(
        "model", "messages", "max_tokens",
        model=_MODEL,
        messages=_ANTHROPIC_MESSAGES,
        max_tokens=_NEEDED_CAP,
        system=_SYSTEM,
        stream=_STREAM,
        tools=_TOOLS,
        service_tier=_TIER,
        speed=_TIER,
    ),
    "count_tokens": thing(
        "model", "messages",
        model=_MODEL, messages=_ANTHROPIC_MESSAGES, system=_SYSTEM, tools=_TOOLS,
    ),
    "generate": thing(
        "contents",
        contents=listed(_GEMINI_CONTENT, least=1),
        systemInstruction=_either(_GEMINI_CONTENT, {"type": "null"}),
        generationConfig=_GENERATION,
        tools=_either(listed(thing()), {"type": "null"}),
    ),
    "embed_content": thing("content", content=_GEMINI_CONTENT),
    "batch_embed_contents": thing("requests", requests=listed(thing(content=_GEMINI_CONTENT))),
    "count_content": _either(
        thing("contents", contents=listed(_GEMINI_CONTENT, least=1)),
        thing(
            "generateContentRequest",
            generateContentRequest=thing("contents", contents=listed(_GEMINI_CONTENT, least=1)),
        ),
    ),
    "image": thing("prompt", model=_MODEL, prompt=_TEXT, stream=_STREAM),
    "speech": thing("model", "input", model=_MODEL, input=_TEXT, stream_format=_maybe("string", "sse: as events")),
    "moderation": thing("input", model=_MODEL, input=_either(_TEXT, listed(_either(_TEXT, thing(type=_TEXT))))),
    "rerank": thing(
        "model", "query", "documents",
        model=_MODEL, query=_TEXT, documents=listed(_either(_TEXT, thing(text=_TEXT)), least=1),
    ),
}  # fmt: skip
"""By operation; Gemini's own where its methods share one with others."""

_FILE: Schema = {"type": "string", "format": "binary"}
_FIELD: Schema = {"type": "string"}
FORMS: Mapping[str, Schema] = {
    "image_edit": thing("image", "prompt", model=_FIELD, image=_one_or_many(_FILE), prompt=_FIELD, stream=_FIELD),
    "image_variation": thing("image", model=_FIELD, image=_FILE),
    "transcription": thing("model", "file", model=_FIELD, file=_FILE, stream=_FIELD, response_format=_FIELD),
    "translation": thing("model", "file", model=_FIELD, file=_FILE, response_format=_FIELD),
}
"""Of requests that are forms (`multipart/form-data`), which go on byte for byte."""
