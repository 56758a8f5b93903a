"""What the data plane answers, as schemas: whole answers, events of streams, errors and headers, in each dialect.

A provider's answer is described by what its dialect promises of it, and open: the rest is passed on as it comes.
Of streams of events, one event is described (`itemSchema`, as OpenAPI 3.2 has it), and the JSON in its data.
"""

from collections.abc import Mapping
from typing import Any

from apikeyrouter_proxy.openapi_requests import listed, named, thing

__all__ = ["ANSWERS", "ERRORS", "EVENTS", "HEADERS", "SCHEMAS", "error_headers", "success_headers"]

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NULL: Schema = {"type": "null"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _closed(schema: Schema) -> Schema:
    return {**schema, "additionalProperties": False}


_MAYBE_TEXT = _or_null(_TEXT)
_ROUTED = named("RoutingMetadata")
_USAGE = _or_null(thing(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT))
_RESPONSES_USAGE = _or_null(thing(input_tokens=_COUNT, output_tokens=_COUNT, total_tokens=_COUNT))
_ANTHROPIC_USAGE = thing(input_tokens=_or_null(_COUNT), output_tokens=_or_null(_COUNT))
_GEMINI_USAGE = thing(promptTokenCount=_COUNT, candidatesTokenCount=_COUNT, totalTokenCount=_COUNT)
_CANDIDATES = listed(
    thing(content=_or_null(thing(role=_TEXT, parts=_or_null(listed(thing())))), finishReason=_TEXT, index=_COUNT)
)
_DETAIL = {**thing("@type"), "properties": {"@type": _TEXT, "reason": _TEXT, "domain": _TEXT}}
_CALLS = _or_null(
    listed(thing(id=_MAYBE_TEXT, type=_MAYBE_TEXT, function=thing(name=_MAYBE_TEXT, arguments=_MAYBE_TEXT)))
)

SCHEMAS: Mapping[str, Schema] = {
    "RoutingMetadata": _closed(
        thing(
            "key_used", "provider_id", "model", "attempts", "cost", "request_id",
            about="Added to JSON objects that are whole: who served, after how many attempts, for how many dollars",
            key_used=_TEXT,
            provider_id=_TEXT,
            model={**_TEXT, "description": "By its provider's name"},
            attempts=_COUNT,
            cost={"type": ["number", "null"], "minimum": 0, "description": "Dollars; null: the price is not known"},
            request_id=_TEXT,
        )
    ),
    "DryRun": _closed(
        thing(
            "object", "would_be_served", "key_id", "provider_id", "model", "objective", "explanation", "confidence",
            "policy_ids", "request_id",
            about="With x-akr-dry-run: what would happen to the request now; nothing was held, sent or counted",
            object={"const": "routing.dry_run"},
            would_be_served={"type": "boolean"},
            key_id=_MAYBE_TEXT,
            provider_id=_MAYBE_TEXT,
            model=_TEXT,
            objective=_TEXT,
            explanation=_TEXT,
            confidence={"type": "number", "minimum": 0, "maximum": 1},
            policy_ids=listed(_TEXT),
            request_id=_TEXT,
        )
    ),
    "OpenAIError": _closed(
        thing(
            "error",
            error=_closed(
                thing(
                    "message", "type", "param", "code",
                    message=_TEXT,
                    type={**_TEXT, "description": "invalid_request_error, rate_limit_error, insufficient_quota, …"},
                    param=_MAYBE_TEXT,
                    code={"type": ["string", "null"], "description": "The reason, for programs"},
                )
            ),
        )
    ),
    "AnthropicError": _closed(
        thing(
            "type", "error", "request_id",
            type={"const": "error"},
            error=_closed(
                thing(
                    "type", "message",
                    type={
                        "enum": [
                            "invalid_request_error", "authentication_error", "billing_error", "permission_error",
                            "not_found_error", "request_too_large", "rate_limit_error", "api_error", "timeout_error",
                            "overloaded_error",
                        ]
                    },
                    message=_TEXT,
                    details=_closed(thing("error_code", error_code=_TEXT)),
                )
            ),
            request_id=_TEXT,
        )
    ),
    "GeminiError": _closed(
        thing(
            "error",
            error=_closed(
                thing(
                    "code", "message", "status", "details",
                    code={"type": "integer", "description": "The HTTP status"},
                    message=_TEXT,
                    status={**_TEXT, "pattern": "^[A-Z_]+$"},
                    details=listed(_DETAIL),
                )
            ),
        )
    ),
    "OpenAIModel": _closed(
        thing(
            "id", "object", "created", "owned_by",
            id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT,
        )
    ),
    "AnthropicModel": _closed(
        thing(
            "type", "id", "display_name", "created_at",
            type={"const": "model"}, id=_TEXT, display_name=_TEXT, created_at={**_TEXT, "format": "date-time"},
        )
    ),
    "GeminiModel": _closed(
        thing(
            "name", "displayName", "supportedGenerationMethods",
            name=_TEXT, displayName=_TEXT, supportedGenerationMethods=listed(_TEXT),
        )
    ),
}  # fmt: skip

_MODELS: Schema = {
    "anyOf": [
        _closed(thing("object", "data", object={"const": "list"}, data=listed(named("OpenAIModel")))),
        _closed(
            thing(
                "data", "has_more", "first_id", "last_id",
                data=listed(named("AnthropicModel")), has_more={"const": False}, first_id=_MAYBE_TEXT,
                last_id=_MAYBE_TEXT,
            )
        ),
        _closed(thing("models", models=listed(named("GeminiModel")))),
    ]
}  # fmt: skip
_RESPONSE = thing(
    "routing_metadata",
    id=_TEXT, object=_TEXT, status=_TEXT, model=_TEXT, output=listed(thing(type=_TEXT)), usage=_RESPONSES_USAGE,
    routing_metadata=_ROUTED,
)  # fmt: skip
_ANYTHING = thing("routing_metadata", routing_metadata=_ROUTED)
_GENERATED = thing("routing_metadata", candidates=_CANDIDATES, usageMetadata=_GEMINI_USAGE, routing_metadata=_ROUTED)

ANSWERS: Mapping[str, Schema] = {
    "chat": thing(
        "choices", "routing_metadata",
        id=_TEXT, object=_TEXT, created=_COUNT, model=_TEXT,
        choices=listed(
            thing(
                index=_COUNT, finish_reason=_MAYBE_TEXT,
                message=thing(role=_TEXT, content=_MAYBE_TEXT, refusal=_MAYBE_TEXT, tool_calls=_CALLS),
            )
        ),
        usage=_USAGE, routing_metadata=_ROUTED,
    ),
    "completion": thing(
        "choices", "routing_metadata",
        id=_TEXT, object=_TEXT, model=_TEXT, choices=listed(thing(index=_COUNT, text=_TEXT, finish_reason=_MAYBE_TEXT)),
        usage=_USAGE, routing_metadata=_ROUTED,
    ),
    "embedding": thing(
        "data", "routing_metadata",
        data=listed(thing("embedding", index=_COUNT, embedding={"anyOf": [listed({"type": "number"}), _TEXT]})),
        model=_TEXT, usage=_USAGE, routing_metadata=_ROUTED,
    ),
    "responses": _RESPONSE,
    "response": _RESPONSE,
    "cancel_response": _RESPONSE,
    "delete_response": _ANYTHING,
    "input_items": thing("routing_metadata", data=listed(thing()), routing_metadata=_ROUTED),
    "messages": thing(
        "content", "routing_metadata",
        id=_TEXT, type=_TEXT, role=_TEXT, model=_TEXT, content=listed(thing("type", type=_TEXT)),
        stop_reason=_MAYBE_TEXT, usage=_ANTHROPIC_USAGE, routing_metadata=_ROUTED,
    ),
    "count_tokens": thing("input_tokens", input_tokens=_COUNT, routing_metadata=_ROUTED),
    "generate": _GENERATED,
    "stream_generate": listed(thing(candidates=_CANDIDATES, usageMetadata=_GEMINI_USAGE)),
    "embed_content": thing("embedding", "routing_metadata", embedding=thing(), routing_metadata=_ROUTED),
    "batch_embed_contents": thing(
        "embeddings", "routing_metadata", embeddings=listed(thing()), routing_metadata=_ROUTED
    ),
    "count_content": thing("totalTokens", totalTokens=_COUNT, routing_metadata=_ROUTED),
    "image": _ANYTHING,
    "image_edit": _ANYTHING,
    "image_variation": _ANYTHING,
    "transcription": _ANYTHING,
    "translation": _ANYTHING,
    "moderation": _ANYTHING,
    "rerank": _ANYTHING,
    "models": _MODELS,
    "model": {"anyOf": [named("OpenAIModel"), named("AnthropicModel"), named("GeminiModel")]},
}  # fmt: skip
"""Of a whole answer, by operation."""

_CHUNK = thing("choices", id=_TEXT, object=_TEXT, choices=listed(thing(index=_COUNT)), usage=_USAGE)
_TYPED = thing("type", type=_TEXT)
_ABOUT_EVENTS = (
    "In the dialect's own framing, with its last event. What goes wrong on the way is one event more, an error in the "
    "dialect, and then the end"
)


def _event(*data: Schema, ends: str = "") -> Schema:
    """One event of a stream, whose data is one of these; or `ends`, in the last one."""
    said: Schema = {
        "type": "string", "contentMediaType": "application/json",
        "contentSchema": data[0] if len(data) == 1 else {"anyOf": list(data)},
    }  # fmt: skip
    told = {"anyOf": [{"const": ends}, said]} if ends else said
    return thing("data", about=_ABOUT_EVENTS, event=_TEXT, data=told)


_ANTHROPIC_EVENT = thing("type", type={"type": "string", "not": {"const": "error"}})
_GENERATED_CHUNK = thing(candidates=_CANDIDATES, usageMetadata=_GEMINI_USAGE)
EVENTS: Mapping[str, Schema] = {
    "chat": _event(_CHUNK, named("OpenAIError"), ends="[DONE]"),
    "completion": _event(_CHUNK, named("OpenAIError"), ends="[DONE]"),
    "responses": _event(_TYPED),
    "response": _event(_TYPED),
    "messages": _event(_ANTHROPIC_EVENT, named("AnthropicError")),
    "stream_generate": _event({**_GENERATED_CHUNK, "not": thing("error")}, named("GeminiError")),
    **dict.fromkeys(
        ("image", "image_edit", "speech", "transcription"), _event(_TYPED, named("OpenAIError"), ends="[DONE]")
    ),
}
"""Of one event, by operation, where the answer may be streamed."""

ERRORS = {"openai": named("OpenAIError"), "anthropic": named("AnthropicError"), "gemini": named("GeminiError")}
_WHOLE = {**_TEXT, "pattern": "^[0-9]+$"}
_DOLLARS = {**_TEXT, "pattern": r"^[0-9]+\.[0-9]{9}$"}
_DURATION = {**_TEXT, "pattern": "^[0-9]+(ms|s)$"}


def _header(about: str, schema: Schema = _TEXT, *, always: bool = False) -> Schema:
    return {"description": about, "schema": schema, "required": always}


HEADERS: Mapping[str, Schema] = {
    "x-request-id": _header("The request's id: the client's own where it is a plain token", always=True),
    "request-id": _header("The same, where Anthropic's SDK looks for it", always=True),
    "x-content-type-options": _header("nosniff", always=True),
    "x-akr-key-id": _header("Which key served"),
    "x-akr-provider": _header("Which provider served"),
    "x-akr-attempts": _header("How many attempts were made", _WHOLE),
    "x-akr-overhead-us": _header("Microseconds spent here; of a stream, before its first event", _WHOLE),
    "x-akr-cost-usd": _header("What it cost, where that is known; not on streams", _DOLLARS),
    "x-akr-token-cap": _header("The token cap that a hard budget put in", _WHOLE),
    "x-akr-store": _header("away: the store was, and the request was held in a share that was set aside for that"),
    "x-akr-token-count": _header("estimate: nobody was asked; counted by what was learned"),
    "openai-processing-ms": _header("Milliseconds until the answer, or the first event of it", _WHOLE),
    **{
        f"x-ratelimit-{what}-{of}": _header(f"Of the client's own {of} limit: {told}", schema)
        for of in ("requests", "tokens", "concurrency")
        for what, told, schema in (
            ("limit", "how much it is", _WHOLE),
            ("remaining", "what is left, as of half a second ago at most", _WHOLE),
            ("reset", "when all of it is there again", _DURATION),
        )
    },
    "x-should-retry": _header(
        "Whether the same request is worth sending again; official SDKs go by it", {"enum": ["true", "false"]},
        always=True,
    ),
    "retry-after": _header("Seconds until there may be room, rounded up", _WHOLE),
    "retry-after-ms": _header("Milliseconds until there may be room", _WHOLE),
}  # fmt: skip
_OF_ALL = ("x-request-id", "x-content-type-options")
_OF_ANSWERS = tuple(name for name in HEADERS if name.startswith(("x-akr-", "x-ratelimit-")))
_OF_ERRORS = (*(name for name in HEADERS if name.startswith("x-ratelimit-")), *list(HEADERS)[-3:])


def success_headers(dialect: str, operation: str) -> dict[str, Schema]:
    """The headers of an answer."""
    names = _OF_ALL if operation in ("models", "model") else (*_OF_ALL, *_OF_ANSWERS)
    return _referred(
        (
            *names,
            *_own(dialect),
            *(("openai-processing-ms",) if "x-akr-key-id" in names and dialect == "openai" else ()),
        )
    )


def error_headers(dialect: str) -> dict[str, Schema]:
    """The headers of an error."""
    return _referred((*_OF_ALL, *_own(dialect), *_OF_ERRORS))


def _own(dialect: str) -> tuple[str, ...]:
    return ("request-id",) if dialect == "anthropic" else ()


def _referred(names: tuple[str, ...]) -> dict[str, Schema]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
