"""The data plane in the OpenAPI description, by hand: FastAPI does not know of it."""

import re
from typing import Any

from apikeyrouter.infrastructure.surface.routes import ROUTES, ROUTES_WITH_NAMES, Route

__all__ = ["with_data_plane"]

MANAGEMENT = "/api/v1"
_NAMED = re.compile(r"\{(\w+)\}")
_SECURITY: list[dict[str, list[str]]] = [{"clientToken": []}]
_KINDS = ["application/json"]
_ANSWER = {"description": "As the provider answers, with routing_metadata added to JSON objects"}
_ERRORS: dict[str, dict[str, str]] = {
    "400": {"description": "The request is wrong, or larger than any limit could admit"},
    "401": {"description": "The client token is missing or not known"},
    "403": {"description": "This client may not do this"},
    "404": {"description": "No such model"},
    "408": {"description": "The body stopped coming"},
    "413": {"description": "The body is larger than PROXY_BODY_BYTES_MAX"},
    "429": {"description": "A limit or budget has no room; x-should-retry and retry-after say what to do"},
    "502": {"description": "The provider could not be reached"},
    "503": {"description": "The store or every provider is away, or the service stops (529 in Anthropic's dialect)"},
    "504": {"description": "The provider, or x-akr-timeout-ms, ran out of time"},
}
_REQUEST_HEADERS = {
    "x-akr-objective": "cost, reliability, fairness, quality, latency (speed), or a registered strategy",
    "x-akr-provider": "The id of the only provider that may serve this",
    "x-akr-team": "Whose budget it is, where the client's token names no team",
    "x-akr-timeout-ms": "How long the whole call may take",
    "x-akr-wait-ms": "How long it may wait for room instead of being answered with 429",
    "x-akr-priority": "interactive or batch: which of those that wait goes first; never better than the client's",
    "x-request-id": "Echoed where it is a plain token of at most 128 characters",
}
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
_LIST_ERRORS = ("401", "403", "404")
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
    schema.setdefault("components", {}).setdefault("securitySchemes", {})["clientToken"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "A client token of the configuration; also x-api-key or x-goog-api-key",
    }
    for route in (*ROUTES.values(), *ROUTES_WITH_NAMES):
        schema["paths"].setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return schema


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
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _NAMED.findall(route.path)
    ]
    made: dict[str, Any] = {
        "summary": route.summary,
        "tags": ["data plane"],
        "security": _SECURITY,
        "responses": {"200": _ANSWER, **(_ERRORS if posts else {code: _ERRORS[code] for code in _LIST_ERRORS})},
    }
    if posts:
        parameters += [
            {"name": name, "in": "header", "required": False, "description": told, "schema": {"type": "string"}}
            for name, told in _REQUEST_HEADERS.items()
        ]
        kinds = [*_KINDS, "multipart/form-data"] if "form" in route.summary else _KINDS
        made["requestBody"] = {"required": True, "content": {kind: {"schema": {"type": "object"}} for kind in kinds}}
    if parameters:
        made["parameters"] = parameters
    return made
