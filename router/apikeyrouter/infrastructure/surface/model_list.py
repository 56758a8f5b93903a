"""`GET /v1/models` in the shape of each dialect."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import msgspec

from apikeyrouter.infrastructure.surface.problems import refuse

__all__ = ["list_body"]

Models = Iterable[tuple[str, tuple[str, ...]]]
"""Model ids with the providers that serve them."""
_METHODS = ["generateContent", "streamGenerateContent", "embedContent", "countTokens"]
_NO_DATE = "1970-01-01T00:00:00Z"
"""When a model was released is not known here, and both shapes require a date."""


def list_body(models: Models, dialect: str, name: str = "") -> bytes:
    """All models (there are no further pages), or the one with that name. Raises RequestRefused (404)."""
    return _one(models, dialect, unquote(name)) if name else _all(models, dialect)


def _all(models: Models, dialect: str) -> bytes:
    data = [_entry(name, providers, dialect) for name, providers in models]
    if dialect == "gemini":
        return msgspec.json.encode({"models": data})
    if dialect == "openai":
        return msgspec.json.encode({"object": "list", "data": data})
    ids = [entry["id"] for entry in data] or [None]
    return msgspec.json.encode({"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]})


def _one(models: Models, dialect: str, wanted: str) -> bytes:
    for known, providers in models:
        if known == wanted:
            return msgspec.json.encode(_entry(known, providers, dialect))
    raise refuse(404, "invalid_request_error", "model_not_found", f"there is no model {wanted[:100]!r}")


def _entry(name: str, providers: tuple[str, ...], dialect: str) -> dict[str, Any]:
    if dialect == "anthropic":
        return {"type": "model", "id": name, "display_name": name, "created_at": _NO_DATE}
    if dialect == "gemini":
        return {"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": _METHODS}
    return {"id": name, "object": "model", "created": 0, "owned_by": ",".join(providers)}
