"""What the translations share: data URLs, JSON text, refusals."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.json_body import JsonError

__all__ = [
    "arguments_object",
    "as_list",
    "as_mapping",
    "blocks_of",
    "data_url",
    "json_text",
    "optional",
    "read_data_url",
    "refuse_all",
    "refuse_unknown",
    "said_arguments",
    "text_of",
]

Body = dict[str, Any]
_DATA_URL = re.compile(r"data:([\w.+/-]+)(?:;[\w=.+-]+)*;base64,(.*)", re.DOTALL)


def refuse_all(body: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Raise InvalidRequestError for the first of these members that is given and not empty."""
    for name, why in reasons.items():
        value = body.get(name)
        if value is not None and value is not False and value != {} and value != []:
            raise InvalidRequestError(why, field=name)


def refuse_unknown(body: Mapping[str, Any], known: frozenset[str], where: str = "") -> None:
    """Raise InvalidRequestError for the first member that is given and that nobody here knows: it might matter."""
    for name, value in body.items():
        if name not in known and value is not None:
            raise InvalidRequestError("is not translated", field=where + name)


def as_mapping(value: Any, field: str) -> Mapping[str, Any]:
    """An object; InvalidRequestError for anything else."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError("must be an object", field=field)
    return value


def optional(value: Any, field: str) -> Mapping[str, Any]:
    """An object, or nothing (an empty one); InvalidRequestError for anything else."""
    return {} if value is None else as_mapping(value, field)


def as_list(value: Any, field: str) -> list[Any]:
    """A list, empty for None; InvalidRequestError for anything else."""
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise InvalidRequestError("must be a list", field=field)
    return list(value)


def blocks_of(content: Any, field: str) -> list[Mapping[str, Any]]:
    """Content as a list of parts: text becomes one text part, None and "" none."""
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = [as_mapping(part, field) for part in as_list(content, field)]
    if any(not isinstance(part.get("text", ""), str) for part in parts):
        raise InvalidRequestError("must be a string", field=f"{field}.text")
    return parts


def text_of(content: Any, field: str) -> str:
    """The text of content that may hold nothing else. Raises InvalidRequestError."""
    texts = []
    for part in blocks_of(content, field):
        if not isinstance(part.get("text"), str):
            raise InvalidRequestError(f"a part of type {part.get('type')!r} has no place here", field=field)
        texts.append(part["text"])
    return "\n".join(texts)


def read_data_url(url: str) -> tuple[str, str] | None:
    """(media type, base64) of a data URL; None for any other URL."""
    found = _DATA_URL.fullmatch(url)
    return (found.group(1), found.group(2)) if found else None


def data_url(media_type: str, data: str) -> str:
    """The same, put together."""
    return f"data:{media_type};base64,{data}"


def arguments_object(text: Any, field: str) -> dict[str, Any]:
    """Arguments of a tool call as an object: chat has them as JSON text, "" is none. Raises InvalidRequestError."""
    if isinstance(text, Mapping):
        return dict(text)
    try:
        arguments = msgspec.json.decode(text or "{}")
    except (*JsonError, TypeError) as exc:
        raise InvalidRequestError("is not JSON", field=field) from exc
    if not isinstance(arguments, dict):
        raise InvalidRequestError("must be a JSON object", field=field)
    return arguments


def said_arguments(text: Any) -> dict[str, Any]:
    """Arguments that a model wrote, as an object. What is not one is wrapped, as Anthropic's guide to streamed tool
    input advises: nothing is lost, and nobody takes it for arguments."""
    try:
        return arguments_object(text, "")
    except InvalidRequestError:
        return {"INVALID_JSON": str(text)}


def json_text(value: Any) -> str:
    """A value as compact JSON text."""
    return msgspec.json.encode(value).decode()
