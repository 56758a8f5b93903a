"""The Anthropic dialect's requests: decoded, checked, understood."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from apikeyrouter.simulator.calls import Call, InvalidRequest, ToolUse
from apikeyrouter.simulator.http_server import Request
from apikeyrouter.simulator.prompts import (
    Content,
    Message,
    demanded_form,
    given,
    last_user_text,
    measure,
    sample_arguments,
    text_of,
)
from apikeyrouter.simulator.tokens import Markers, read_markers

__all__ = ["parse_messages"]

KNOWN_VERSIONS = frozenset({"2023-01-01", "2023-06-01", "2026-10-21"})
_SAMPLING_REFUSED_SINCE = "2026-10-21"


class _Messages(Struct):
    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    system: Content = None
    stream: bool | None = False
    tools: Raw = Raw()
    tool_choice: Raw = Raw()
    temperature: Raw = Raw()
    top_p: Raw = Raw()
    top_k: Raw = Raw()
    cache_control: Raw = Raw()
    output_config: Raw = Raw()


_messages = msgspec.json.Decoder(_Messages)


def parse_messages(request: Request) -> Call:
    """``POST /v1/messages`` and ``/v1/messages/count_tokens``; raises :class:`InvalidRequest`."""
    version = request.header(b"anthropic-version")
    if version not in KNOWN_VERSIONS:
        raise InvalidRequest(
            "anthropic-version: header is required" if version is None else "invalid anthropic-version"
        )
    body = _decode(request.body)
    is_count = request.path.endswith("/count_tokens")
    if body.max_tokens is None and not is_count:
        raise InvalidRequest("max_tokens: Field required")
    if version >= _SAMPLING_REFUSED_SINCE:
        _refuse_sampling(body)
    markers = read_markers(last_user_text(body.messages))
    prefix, prefix_tokens = _cached_prefix(body)
    return Call(
        endpoint="count_tokens" if is_count else "messages",
        model=body.model,
        input_tokens=measure(body.messages, system=body.system, tools=body.tools).tokens(),
        markers=markers,
        stream=bool(body.stream) and not is_count,
        cap=body.max_tokens,
        tool=_forced_tool(body.tools, body.tool_choice, markers),
        form=demanded_form(body.output_config, "format", "schema"),
        prefix=prefix,
        prefix_tokens=prefix_tokens,
    )


def _decode(body: bytes) -> _Messages:
    try:
        return _messages.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}") from error


def _refuse_sampling(body: _Messages) -> None:
    for name in ("temperature", "top_p", "top_k"):
        if given(getattr(body, name)):
            raise InvalidRequest(f"{name}: Extra inputs are not permitted")


def _cached_prefix(body: _Messages) -> tuple[tuple[str, str] | None, int]:
    """What ``cache_control`` asks to cache: everything up to its last block (or all), and the tokens of that."""
    texts: list[str] = []
    size, marked = 0, 0
    system = body.system if isinstance(body.system, list) else []
    parts = [*system, *(part for m in body.messages if isinstance(m.content, list) for part in m.content)]
    for part in parts:
        texts.append(part.text)
        if given(part.cache_control):
            marked = len(texts)
    if given(body.cache_control) and not marked:
        texts = [text_of(body.system), *(text_of(message.content) for message in body.messages)]
        marked = len(texts)
    if not marked:
        return None, 0
    prefix = "\n".join(texts[:marked])
    size = len(prefix.encode("utf-8", "replace"))
    return (body.model, prefix), size // 4


def _forced_tool(tools: Raw, choice: Raw, markers: Markers) -> ToolUse | None:
    """The tool that ``tool_choice`` (or the prompt's ``[[tool]]``) forces, with sample arguments."""
    if not given(tools) or not (given(choice) or markers.tool):
        return None
    wanted: Any = msgspec.json.decode(choice) if given(choice) else {"type": "auto"}
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind not in ("any", "tool") and not (markers.tool and kind == "auto"):
        return None
    offered: Any = msgspec.json.decode(tools)
    for tool in offered or []:
        if isinstance(tool, dict) and "name" in tool and wanted.get("name") in (None, tool["name"]):
            return ToolUse(str(tool["name"]), sample_arguments(tool.get("input_schema") or {}))
    raise InvalidRequest("tool_choice: no such tool")
