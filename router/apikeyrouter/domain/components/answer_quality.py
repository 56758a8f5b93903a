"""How good an answer is, by what can be seen without reading it: refused, empty, cut off, not in the form asked for."""

from collections.abc import Mapping
from typing import Any

import msgspec

from apikeyrouter.domain.interfaces.wire import ParsedRequest

DEPTH_MAX = 16
"""How deep a schema is followed; what lies below fits."""
_JSON: dict[str, Any] = {"type": "object"}
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
    "integer": (int,), "number": (int, float),
}  # fmt: skip


def fault_of(
    text: str, *, finish_reason: str | None, refusal: str = "", calls_tools: bool, capped: bool, schema: Any = None
) -> str:
    """What is wrong with an answer: refused, empty, truncated, schema; "" for nothing.

    `capped`: the request or we set an output cap, so that being cut off is no fault. `schema`: what JSON was asked
    for, None for none; an answer that calls tools need not have it.
    """
    if refusal or finish_reason == "content_filter":
        return "refused"
    if finish_reason == "length":
        return "" if capped else "truncated"
    if calls_tools or finish_reason == "tool_calls":
        return ""
    if not text.strip():
        return "empty"
    return "" if schema is None or fits(text, schema) else "schema"


def fits(text: str, schema: Any) -> bool:
    """Whether a text is JSON of a schema. Types, required members, items, enums and alternatives are looked at."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return _fits(value, schema, 0)


def _fits(value: object, schema: object, depth: int) -> bool:
    if not isinstance(schema, Mapping) or depth > DEPTH_MAX or "$ref" in schema:
        return True
    for several in ("anyOf", "oneOf"):
        choices = schema.get(several)
        if isinstance(choices, list) and not any(_fits(value, choice, depth + 1) for choice in choices):
            return False
    if not _is_of_type(value, schema.get("type")):
        return False
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if isinstance(value, dict):
        return _members_fit(value, schema, depth)
    items = schema.get("items")
    return not isinstance(value, list) or all(_fits(item, items, depth + 1) for item in value)


def _is_of_type(value: object, wanted: object) -> bool:
    names = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []
    known = [_TYPES[name.lower()] for name in names if isinstance(name, str) and name.lower() in _TYPES]
    if not known:
        return True
    if isinstance(value, bool):
        return any(bool in types for types in known)
    return any(isinstance(value, types) for types in known)


def _members_fit(value: dict[str, Any], schema: Mapping[str, Any], depth: int) -> bool:
    required, members = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and any(name not in value for name in required):
        return False
    if not isinstance(members, Mapping):
        return True
    return all(_fits(value[name], inner, depth + 1) for name, inner in members.items() if name in value)


def schema_asked_for(parsed: ParsedRequest | None, parameters: Mapping[str, Any] | None = None) -> Any:
    """The schema of the JSON that a request asks for, in any dialect; None: it asks for text."""
    if parsed is not None and parsed.fields:
        for name in ("response_format", "text", "output_format", "output_config", "generationConfig"):
            raw = parsed.fields.get(name)
            if raw is not None:
                try:
                    return _schema_in(msgspec.json.decode(raw))
                except msgspec.DecodeError:
                    return None
    return None if parameters is None else _schema_in(parameters.get("response_format"))


def _schema_in(told: object) -> Any:
    if not isinstance(told, Mapping):
        return None
    inner = told.get("format")
    if isinstance(inner, Mapping):
        return _schema_in(inner)
    for name in ("responseJsonSchema", "responseSchema"):
        if name in told:
            return told[name]
    if told.get("responseMimeType") == "application/json" or told.get("type") == "json_object":
        return _JSON
    if told.get("type") != "json_schema":
        return None
    nested = told.get("json_schema")
    found = nested.get("schema") if isinstance(nested, Mapping) else told.get("schema")
    return _JSON if found is None else found
