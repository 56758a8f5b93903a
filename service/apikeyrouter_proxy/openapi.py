"""The data plane in the OpenAPI description, by hand: FastAPI does not know of it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apikeyrouter.infrastructure.surface.routes import GEMINI, OPENAI, ROUTES, ROUTES_WITH_NAMES, Route
from apikeyrouter_proxy.openapi_answers import ANSWERS, ERRORS, EVENTS, HEADERS, SCHEMAS, error_headers, success_headers
from apikeyrouter_proxy.openapi_requests import FORMS, REQUESTS, named

__all__ = ["with_data_plane"]

MANAGEMENT = "/api/v1"
_NAMED = re.compile(r"\{(\w+)\}")
_SECURITY: list[dict[str, list[str]]] = [{"clientToken": []}]
_JSON, _EVENTS, _FORM = "application/json", "text/event-stream", "multipart/form-data"
_POST_ERRORS: dict[str, str] = {
    "400": "The request is wrong, or larger than any limit could admit",
    "401": "The client token is missing or not known",
    "403": "This client, or a policy, does not allow it",
    "404": "No such model, or nothing of that id that this client had made",
    "408": "The body stopped coming",
    "413": "The body is larger than PROXY_BODY_BYTES_MAX",
    "415": "The body is compressed",
    "429": "A limit or budget has no room; x-should-retry and retry-after say what to do",
    "431": "There are too many headers",
    "4XX": "The provider refuses the request itself: its own status and words, without what they say of our keys",
    "500": "A mistake of the router; its log says which",
    "502": "The provider could not be reached, or its answer is none",
    "503": "The store or every provider is away, or the service stops",
    "504": "The provider, x-akr-timeout-ms or the SDK's own patience ran out of time",
    "529": "As 503: what Anthropic's SDK knows as overloaded",
}
_LIST_ERRORS = ("400", "401", "403", "404", "500")
_REQUEST_HEADERS = {
    "x-akr-objective": "cost, reliability, fairness, quality, latency (speed), or a registered strategy",
    "x-akr-provider": "The id of the only provider that may serve this",
    "x-akr-team": "Whose budget it is, where the client's token names no team",
    "x-akr-session": "Requests of one session go where its prompt cache is",
    "x-akr-timeout-ms": "How long the whole call may take",
    "x-akr-wait-ms": "How long it may wait for room instead of being answered with 429",
    "x-akr-dry-run": "true: only tell what would happen; nothing is held, sent or counted",
    "x-akr-priority": "interactive or batch: which of those that wait goes first; never better than the client's",
    "x-request-id": "Echoed where it is a plain token of at most 128 characters",
}
_OF_GEMINI = {
    "embedContent": "embed_content",
    "batchEmbedContents": "batch_embed_contents",
    "countTokens": "count_content",
}
_SOUND_OR_TEXT = ("speech", "transcription", "translation")
_ANSWERED = "As the provider answers, with routing_metadata added to JSON objects"
_MANAGEMENT_ERRORS: dict[str, dict[str, str]] = {
    "400": {"description": "The request is wrong; the message names the field and never what was sent"},
    "401": {"description": "X-API-Key is missing or wrong"},
    "403": {"description": "This admin key's role is too small, or MANAGEMENT_API_KEY is not set"},
    "404": {"description": "No such thing, or MANAGEMENT_API_ENABLED=false"},
    "405": {"description": "Not with this method"},
    "409": {"description": "The name is taken, or it is declared elsewhere; `code` says which"},
    "412": {"description": "It is not as If-Match says"},
    "413": {"description": "The body is larger than a mebibyte"},
    "503": {"description": "The store is away"},
}
_ERROR_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": ["invalid_request_error", "api_error"]},
                "param": {"type": ["string", "null"], "description": "The field that is wrong"},
                "code": {"type": "string", "description": "The reason, for programs"},
            },
            "additionalProperties": False,
        }
    },
    "additionalProperties": False,
}
_FOREIGN_SCHEMAS = ("HTTPValidationError", "ValidationError")
"""Of a 422 that this service never answers: what is wrong is a 400."""


def with_data_plane(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with the data plane's paths, the client token, and management's errors as they are."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if "security" in operation:
                made = operation["responses"].get("201")
                if made is not None:
                    operation["responses"]["200"] = {**made, "description": "There is such a one already"}
                operation["responses"].update(
                    {status: {**told, "content": _ERROR_CONTENT} for status, told in _MANAGEMENT_ERRORS.items()}
                )
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    _describe_answers(schema["paths"], schemas)
    for name in _FOREIGN_SCHEMAS:
        schemas.pop(name, None)
    schemas["Error"] = _ERROR
    schemas.update(SCHEMAS)
    schema["components"]["headers"] = dict(HEADERS)
    schema["components"]["responses"] = _errors()
    schema.setdefault("components", {}).setdefault("securitySchemes", {})["clientToken"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "A client token of the configuration; also x-api-key or x-goog-api-key",
    }
    for route in (*ROUTES.values(), *ROUTES_WITH_NAMES):
        for place in _places(route):
            schema["paths"].setdefault(place.path, {})[place.method.lower()] = _operation(place)
    return schema


def _places(route: Route) -> tuple[Route, ...]:
    """Where a route is: Gemini's are also under `/v1/`, and its list of models under `/v1beta/`."""
    if route.operation == "models":
        return route, replace(route, path=route.path.replace("/v1/", "/v1beta/"), wire=GEMINI)
    if route.path.startswith("/v1beta/"):
        return route, replace(route, path=route.path.replace("/v1beta/", "/v1/"))
    return (route,)


def _describe_answers(paths: dict[str, Any], schemas: dict[str, Any]) -> None:
    """What management answers with 200 and 201, from the models of it."""
    from apikeyrouter_proxy.management.answer_schemas import answer_schemas

    answers, found = answer_schemas(taken=frozenset(schemas))
    schemas.update(found)
    for path, operations in paths.items():
        for method, operation in operations.items():
            told = answers.get((method, path.removeprefix(MANAGEMENT)))
            for status in ("200", "201") if "security" in operation and told is not None else ():
                if status in operation["responses"]:
                    operation["responses"][status].setdefault("content", {})["application/json"] = {"schema": told}


def _operation(route: Route) -> dict[str, Any]:
    posts = route.method == "POST"
    errors = tuple(_POST_ERRORS) if posts or route.stateful else _LIST_ERRORS
    dialects = tuple(ERRORS) if route.operation == "models" and route.wire is OPENAI else (route.wire.dialect,)
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _NAMED.findall(route.path)
    ]
    made: dict[str, Any] = {
        "summary": route.summary,
        "tags": ["data plane"],
        "security": _SECURITY,
        "responses": {
            **dict.fromkeys(("200",) if route.operation == "models" else ("200", "2XX"), _answer(route, dialects[0])),
            **{code: _error(code, dialects) for code in errors if code != "529" or "anthropic" in dialects},
        },
    }
    if posts or route.stateful:
        parameters += [
            {"name": name, "in": "header", "required": False, "description": told, "schema": {"type": "string"}}
            for name, told in _REQUEST_HEADERS.items()
        ]
    kind = _kind_of(route)
    if kind in REQUESTS or kind in FORMS:
        schemas = {_JSON: REQUESTS.get(kind), _FORM: FORMS.get(kind)}
        content = {name: {"schema": schema} for name, schema in schemas.items() if schema is not None}
        made["requestBody"] = {"required": True, "content": content}
    if parameters:
        made["parameters"] = parameters
    return made


def _kind_of(route: Route) -> str:
    """The operation, with a name of its own where Gemini's method differs from what others call so."""
    method = route.path.partition("{model}:")[2]
    if method in ("generateContent", "streamGenerateContent"):
        return "generate"
    return _OF_GEMINI.get(method, route.operation)


def _answer(route: Route, dialect: str) -> dict[str, Any]:
    """What is answered with 200: whole, as events, or as whatever the provider sends."""
    kind = "stream_generate" if route.operation == "stream_generate" else _kind_of(route)
    if kind == "models" and "{model}" in route.path:
        kind = "model"
    content: dict[str, Any] = {}
    if kind in ANSWERS:
        content[_JSON] = {"schema": ANSWERS[kind]}
    if kind in EVENTS:
        content[_EVENTS] = {"itemSchema": EVENTS[kind]}
    if kind not in ("models", "model"):
        content[_JSON] = {"schema": {"anyOf": [*_schemas(content), named("DryRun")]}}
    if kind in _SOUND_OR_TEXT:
        content["*/*"] = {"schema": {"type": "string", "format": "binary"}}
    return {"description": _ANSWERED, "headers": success_headers(dialect, kind), "content": content}


def _schemas(content: Mapping[str, Any]) -> list[Any]:
    return [content[_JSON]["schema"]] if _JSON in content else []


def _error(code: str, dialects: tuple[str, ...]) -> dict[str, Any]:
    """What is answered with that status."""
    if len(dialects) == 1:
        return {"$ref": f"#/components/responses/{dialects[0]}-{code}"}
    content = {_JSON: {"schema": {"anyOf": [ERRORS[dialect] for dialect in dialects]}}}
    return {"description": _POST_ERRORS[code], "headers": error_headers(dialects[0]), "content": content}


def _errors() -> dict[str, Any]:
    """Every error in every dialect."""
    return {
        f"{dialect}-{code}": {
            "description": told, "headers": error_headers(dialect), "content": {_JSON: {"schema": schema}}
        }
        for dialect, schema in ERRORS.items()
        for code, told in _POST_ERRORS.items()
    }  # fmt: skip
