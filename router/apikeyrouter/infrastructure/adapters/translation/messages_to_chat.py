"""A Messages request as chat: `chat_to_messages` the other way round."""

import re
from collections.abc import Mapping
from typing import Any

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.translation.parts import (
    Body,
    as_list,
    as_mapping,
    blocks_of,
    data_url,
    json_text,
    optional,
    refuse_all,
    refuse_unknown,
    text_of,
)

__all__ = ["messages_to_chat"]

STOPS_MAX = 4
"""Stop sequences that chat takes (API reference)."""
_REFUSED = {
    "mcp_servers": "chat has no remote tool servers",
    "container": "chat has no containers",
    "context_management": "chat does not manage its context",
}
_PASSED = ("model", "temperature", "top_p", "stream")
_LEFT_OUT = frozenset({"top_k", "cache_control", "speed", "betas"})
"""Knobs and hints without an equal."""
_KNOWN = frozenset(
    {
        *_PASSED, *_REFUSED, *_LEFT_OUT, "messages", "system", "max_tokens", "stop_sequences", "tools", "tool_choice",
        "thinking", "output_config", "output_format", "metadata", "service_tier",
    }
)  # fmt: skip
_REASONS = re.compile(r"(?:^|/)(?:o\d|gpt-[5-9])", re.IGNORECASE)
"""Models that take a reasoning effort; others refuse it."""
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "xhigh"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_TIERS = {"auto": "auto", "standard_only": "default"}
_LOST = frozenset({"thinking", "redacted_thinking"})
"""Thoughts of earlier turns: chat cannot carry them back."""


def messages_to_chat(body: Mapping[str, Any]) -> Body:
    """The body of a chat request. Raises InvalidRequestError naming what chat cannot say."""
    refuse_all(body, _REFUSED)
    refuse_unknown(body, _KNOWN)
    chat: Body = {name: body[name] for name in _PASSED if body.get(name) is not None}
    chat["messages"] = [*_system(body.get("system")), *_messages(as_list(body.get("messages"), "messages"))]
    if body.get("max_tokens") is not None:
        chat["max_tokens"] = body["max_tokens"]
    stops = as_list(body.get("stop_sequences"), "stop_sequences")
    if len(stops) > STOPS_MAX:
        raise InvalidRequestError(f"chat takes at most {STOPS_MAX}", field="stop_sequences")
    if stops:
        chat["stop"] = stops
    _tools(chat, body)
    _output(chat, body)
    user = optional(body.get("metadata"), "metadata").get("user_id")
    if user:
        chat["user"] = user
    tier = _TIERS.get(str(body.get("service_tier")))
    if tier is not None:
        chat["service_tier"] = tier
    return chat


def _output(chat: Body, body: Mapping[str, Any]) -> None:
    config = optional(body.get("output_config"), "output_config")
    wanted = config.get("format") or body.get("output_format")
    if isinstance(wanted, Mapping) and wanted.get("type") == "json_schema":
        schema = {"name": "answer", "schema": wanted.get("schema") or {}, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if not _REASONS.search(str(chat.get("model"))):
        return
    effort = _EFFORTS.get(str(config.get("effort"))) or _effort_of(body.get("thinking"))
    if effort is not None:
        chat["reasoning_effort"] = effort


def _effort_of(thinking: Any) -> str | None:
    budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
    if not isinstance(budget, int):
        return None
    return "low" if budget < 4096 else "medium" if budget < 16384 else "high"


def _tools(chat: Body, body: Mapping[str, Any]) -> None:
    tools = [_tool(as_mapping(tool, "tools")) for tool in as_list(body.get("tools"), "tools")]
    if not tools:
        return
    chat["tools"] = tools
    choice = body.get("tool_choice")
    if choice is None:
        return
    named = as_mapping(choice, "tool_choice")
    kind = named.get("type")
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": named.get("name")}}
    elif kind in _CHOICES:
        chat["tool_choice"] = _CHOICES[kind]
    else:
        raise InvalidRequestError(f"{kind!r} has no equal in chat", field="tool_choice")
    if named.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False


def _tool(tool: Mapping[str, Any]) -> Body:
    if tool.get("type") not in (None, "custom"):
        raise InvalidRequestError(f"{tool.get('type')!r} has no equal in chat", field="tools")
    function: Body = {"name": tool.get("name")}
    if tool.get("description"):
        function["description"] = tool["description"]
    function["parameters"] = tool.get("input_schema") or {"type": "object", "properties": {}}
    if tool.get("strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


# --- messages --------------------------------------------------------------------------------------------------------


def _system(system: Any) -> list[Body]:
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    return [{"role": "system", "content": text_of([block], "system")} for block in as_list(system, "system")]


def _messages(messages: list[Any]) -> list[Body]:
    found: list[Body] = []
    for message in messages:
        given = as_mapping(message, "messages")
        role = given.get("role")
        if role == "assistant":
            found.append(_assistant(given))
        elif role == "user":
            found += _user(given)
        elif role == "system":
            found.append({"role": "system", "content": text_of(given.get("content"), "messages.content")})
        else:
            raise InvalidRequestError(f"{role!r} is no role", field="messages.role")
    return found


def _assistant(message: Mapping[str, Any]) -> Body:
    content = message.get("content")
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    blocks = [block for block in blocks_of(content, "messages.content") if block.get("type") not in _LOST]
    said = [block for block in blocks if block.get("type") != "tool_use"]
    made: Body = {"role": "assistant", "content": text_of(said, "messages.content") if said else None}
    calls = [_tool_call(block) for block in blocks if block.get("type") == "tool_use"]
    if calls:
        made["tool_calls"] = calls
    elif made["content"] is None:
        made["content"] = ""
    return made


def _tool_call(block: Mapping[str, Any]) -> Body:
    function = {"name": block.get("name"), "arguments": json_text(block.get("input") or {})}
    return {"id": block.get("id"), "type": "function", "function": function}


def _user(message: Mapping[str, Any]) -> list[Body]:
    """Tool results first, as chat wants them right after the calls; what else was said follows."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    blocks = blocks_of(content, "messages.content")
    found = [_result(block) for block in blocks if block.get("type") == "tool_result"]
    said = [_part(block) for block in blocks if block.get("type") != "tool_result"]
    if said:
        found.append({"role": "user", "content": said})
    return found


def _result(block: Mapping[str, Any]) -> Body:
    text = text_of(block.get("content"), "messages.content.tool_result")
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}


def _part(block: Mapping[str, Any]) -> Body:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": block.get("text", "")}
    source = block.get("source")
    if kind == "image" and isinstance(source, Mapping):
        return {"type": "image_url", "image_url": {"url": _image_url(source)}}
    if kind == "document" and isinstance(source, Mapping):
        return _document(block, source)
    raise InvalidRequestError(f"a block of type {kind!r} has no equal in chat", field="messages.content")


def _image_url(source: Mapping[str, Any]) -> str:
    if source.get("type") == "base64":
        return data_url(str(source.get("media_type")), str(source.get("data")))
    if source.get("type") == "url":
        return str(source.get("url"))
    raise InvalidRequestError("an image must be given as base64 or by url", field="messages.content.source")


def _document(block: Mapping[str, Any], source: Mapping[str, Any]) -> Body:
    if source.get("type") == "text":
        return {"type": "text", "text": str(source.get("data", ""))}
    if source.get("type") != "base64":
        raise InvalidRequestError("a document must be given as base64 or text", field="messages.content.source")
    file = {
        "filename": block.get("title") or "document.pdf",
        "file_data": data_url(str(source.get("media_type")), str(source.get("data"))),
    }
    return {"type": "file", "file": file}
