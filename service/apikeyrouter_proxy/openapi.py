"""The data plane in the OpenAPI description, by hand: FastAPI does not know of it."""

from typing import Any

from apikeyrouter_proxy.routes import MODELS_PREFIX, ROUTES

__all__ = ["with_data_plane"]

_SECURITY: list[dict[str, list[str]]] = [{"clientToken": []}]
_ANSWER = {"description": "As the provider answers, with routing_metadata added to JSON objects"}
_ERRORS: dict[str, dict[str, str]] = {
    "400": {"description": "The request is wrong, or larger than any limit could admit"},
    "401": {"description": "The client token is missing or not known"},
    "403": {"description": "This client may not do this"},
    "404": {"description": "No such model"},
    "429": {"description": "A limit or budget has no room; x-should-retry and retry-after say what to do"},
    "503": {"description": "The store or every provider is away"},
}


def with_data_plane(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with the data plane's paths and the client token."""
    schema.setdefault("components", {}).setdefault("securitySchemes", {})["clientToken"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "A client token of the configuration; also x-api-key or x-goog-api-key",
    }
    for route in ROUTES.values():
        schema["paths"][route.path] = {route.method.lower(): _operation(route.summary, posts=route.method == "POST")}
    schema["paths"][MODELS_PREFIX + "{model}"] = {
        "get": {
            **_operation("One model", posts=False),
            "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
        }
    }
    return schema


def _operation(summary: str, *, posts: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": summary,
        "tags": ["data plane"],
        "security": _SECURITY,
        "responses": {"200": _ANSWER, **_ERRORS},
    }
    if posts:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    return made
