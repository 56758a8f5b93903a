"""`GET /v1/models` in the shape of either dialect."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import msgspec

from apikeyrouter.infrastructure.surface.problems import refuse

__all__ = ["model_body", "models_body"]

Models = Iterable[tuple[str, tuple[str, ...]]]
"""Model ids with the providers that serve them."""
_NO_DATE = "1970-01-01T00:00:00Z"
"""When a model was released is not known here, and both shapes require a date."""


def models_body(models: Models, *, anthropic: bool) -> bytes:
    """The list, whole: there are no further pages."""
    data = [_entry(name, providers, anthropic=anthropic) for name, providers in models]
    if not anthropic:
        return msgspec.json.encode({"object": "list", "data": data})
    ids = [entry["id"] for entry in data] or [None]
    return msgspec.json.encode({"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]})


def model_body(models: Models, name: str, *, anthropic: bool) -> bytes:
    """One model. Raises RequestRefused (404)."""
    wanted = unquote(name)
    for known, providers in models:
        if known == wanted:
            return msgspec.json.encode(_entry(known, providers, anthropic=anthropic))
    raise refuse(404, "invalid_request_error", "model_not_found", f"there is no model {wanted[:100]!r}")


def _entry(name: str, providers: tuple[str, ...], *, anthropic: bool) -> dict[str, Any]:
    if anthropic:
        return {"type": "model", "id": name, "display_name": name, "created_at": _NO_DATE}
    return {"id": name, "object": "model", "created": 0, "owned_by": ",".join(providers)}
