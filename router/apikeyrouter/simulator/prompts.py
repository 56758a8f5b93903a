"""Prompts of both dialects: how large they are, what the user said, and arguments for a tool call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from apikeyrouter.simulator.calls import Prompt
from apikeyrouter.simulator.tokens import TOKENS_PER_FILE, TOKENS_PER_IMAGE, text_bytes

__all__ = [
    "Content",
    "Message",
    "Part",
    "demanded_form",
    "given",
    "last_user_text",
    "measure",
    "sample_arguments",
    "text_of",
]

SCHEMA_DEPTH_MAX = 8


class Part(Struct):
    """One part of a message's content: any dialect's fields that the simulator looks at."""

    type: str = "text"
    text: str = ""
    refusal: str = ""
    content: Raw = Raw()
    input: Raw = Raw()
    arguments: str = ""
    output: Raw = Raw()
    cache_control: Raw = Raw()


Content = str | list[Part] | None


class Message(Struct):
    """One message of a chat: role, content, and tool calls kept as raw JSON."""

    role: str
    content: Content = None
    tool_calls: Raw = Raw()


_IMAGES = frozenset({"image_url", "image", "input_image"})
_FILES = frozenset({"file", "input_file", "document", "input_audio"})


def given(raw: Raw) -> bool:
    """Whether a raw field was there and not null."""
    return len(raw) > 0 and bytes(raw) != b"null"


def measure(messages: Iterable[Message], *, system: Content = None, tools: Raw = Raw()) -> Prompt:  # noqa: B008
    """The size of a prompt: text and JSON in bytes, images and files at a flat rate."""
    size = len(tools)
    flat, count = 0, 0
    for message in messages:
        count += 1
        size += len(message.tool_calls)
        content = message.content
        if isinstance(content, str):
            size += text_bytes(content)
        elif content is not None:
            parts_size, parts_flat = _measure_parts(content)
            size += parts_size
            flat += parts_flat
    if isinstance(system, str):
        size += text_bytes(system)
    elif system is not None:
        size += _measure_parts(system)[0]
    return Prompt(size, count, flat)


def _measure_parts(parts: list[Part]) -> tuple[int, int]:
    size, flat = 0, 0
    for part in parts:
        if part.type in _IMAGES:
            flat += TOKENS_PER_IMAGE
        elif part.type in _FILES:
            flat += TOKENS_PER_FILE
        else:
            size += text_bytes(part.text) + text_bytes(part.refusal) + text_bytes(part.arguments)
            size += len(part.content) + len(part.input) + len(part.output)
    return size, flat


def text_of(content: Content) -> str:
    """The text of a content, its parts joined."""
    if isinstance(content, str):
        return content
    return "" if content is None else " ".join(part.text for part in content if part.text)


def last_user_text(messages: list[Message]) -> str:
    """What the user said last."""
    for message in reversed(messages):
        if message.role == "user":
            return text_of(message.content)
    return ""


def sample_arguments(schema: object) -> str:
    """JSON arguments that satisfy the required part of a JSON schema (plainly: the usual types and enums)."""
    return msgspec.json.encode(_sample(schema, SCHEMA_DEPTH_MAX)).decode()


def demanded_form(raw: Raw, *path: str) -> str:
    """A sample of the JSON schema that stands at ``path`` in a member of a request; "" where there is none."""
    found: Any = msgspec.json.decode(raw) if given(raw) else None
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return sample_arguments(found) if isinstance(found, dict) else ""


def _sample(schema: object, depth: int) -> Any:
    if not isinstance(schema, dict) or depth == 0:
        return {}
    if schema.get("enum"):
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = str(schema.get("type", "object")).lower()
    if kind == "object":
        properties = schema.get("properties") or {}
        names = schema.get("required") or list(properties)
        return {name: _sample(properties.get(name, {"type": "string"}), depth - 1) for name in names}
    if kind == "array":
        return [_sample(schema.get("items", {"type": "string"}), depth - 1)]
    return {"string": "sample", "integer": 1, "number": 1.5, "boolean": True, "null": None}.get(kind)
