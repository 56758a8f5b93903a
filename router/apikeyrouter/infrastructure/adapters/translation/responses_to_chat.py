"""A request of the Responses API as chat. What it would keep, or go on from, exists nowhere else and is refused."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.translation.parts import (
    Body,
    as_list,
    as_mapping,
    blocks_of,
    json_text,
    optional,
    refuse_all,
    refuse_unknown,
)

__all__ = ["responses_to_chat"]

_PASSED = (
    "model", "stream", "temperature", "top_p", "parallel_tool_calls", "user", "safety_identifier", "prompt_cache_key",
    "service_tier",
)  # fmt: skip
_REFUSED = {
    "previous_response_id": "the provider that serves this model keeps no responses; send the conversation in input",
    "conversation": "the provider that serves this model keeps no conversations; send it in input",
    "store": "the provider that serves this model keeps no responses; leave it out, or say false",
    "background": "the provider that serves this model makes no responses in the background",
    "prompt": "the provider that serves this model keeps no prompts",
    "context_management": "is not translated",
    "top_logprobs": "log probabilities are not translated",
    "moderation": "is not translated",
}
_LEFT_OUT = frozenset(
    {
        "metadata", "truncation", "include", "max_tool_calls", "stream_options", "prompt_cache_retention",
        "prompt_cache_options",
    }
)  # fmt: skip
"""What comes back as it came, or means nothing where no tools of the provider's are called."""
_KNOWN = frozenset(
    {
        *_PASSED, *_REFUSED, *_LEFT_OUT, "input", "instructions", "max_output_tokens", "tools", "tool_choice", "text",
        "reasoning",
    }
)  # fmt: skip
_CHOICES = frozenset({"auto", "none", "required"})
_ROLES = frozenset({"user", "assistant", "system", "developer"})
_LOGPROBS = "message.output_text.logprobs"


def responses_to_chat(body: Mapping[str, Any]) -> Body:
    """The body of a chat request. Raises InvalidRequestError naming what chat cannot say."""
    refuse_all(body, _REFUSED)
    refuse_unknown(body, _KNOWN)
    if _LOGPROBS in as_list(body.get("include"), "include"):
        raise InvalidRequestError("log probabilities are not translated", field="include")
    chat: Body = {name: body[name] for name in _PASSED if body.get(name) is not None}
    chat["messages"] = [*_instructions(body.get("instructions")), *_messages(body.get("input"))]
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = body["max_output_tokens"]
    _tools(chat, body)
    _text(chat, optional(body.get("text"), "text"))
    effort = optional(body.get("reasoning"), "reasoning").get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    return chat


def _text(chat: Body, text: Mapping[str, Any]) -> None:
    refuse_unknown(text, frozenset({"format", "verbosity"}), "text.")
    wanted = optional(text.get("format"), "text.format")
    kind = wanted.get("type")
    if kind == "json_schema":
        schema = {name: value for name, value in wanted.items() if name != "type" and value is not None}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif kind not in (None, "text"):
        raise InvalidRequestError(f"{kind!r} has no equal in chat", field="text.format")
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]


def _tools(chat: Body, body: Mapping[str, Any]) -> None:
    tools = [_tool(as_mapping(tool, "tools")) for tool in as_list(body.get("tools"), "tools")]
    if not tools:
        chat.pop("parallel_tool_calls", None)
        return
    chat["tools"] = tools
    choice = body.get("tool_choice")
    if choice is None:
        return
    if isinstance(choice, str) and choice in _CHOICES:
        chat["tool_choice"] = choice
        return
    named = choice if isinstance(choice, Mapping) else {}
    if named.get("type") != "function" or not named.get("name"):
        raise InvalidRequestError("has no equal in chat", field="tool_choice")
    chat["tool_choice"] = {"type": "function", "function": {"name": named["name"]}}


def _tool(tool: Mapping[str, Any]) -> Body:
    if tool.get("type") != "function":
        raise InvalidRequestError(f"{tool.get('type')!r} is not translated; only functions are", field="tools")
    function: Body = {"name": tool.get("name"), "parameters": tool.get("parameters") or {"type": "object"}}
    if tool.get("description"):
        function["description"] = tool["description"]
    if tool.get("strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


# --- input -----------------------------------------------------------------------------------------------------------


def _instructions(instructions: Any) -> list[Body]:
    if instructions is None or instructions == "":
        return []
    if not isinstance(instructions, str):
        raise InvalidRequestError("must be text", field="instructions")
    return [{"role": "system", "content": instructions}]


def _messages(given: Any) -> list[Body]:
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    found: list[Body] = []
    for item in as_list(given, "input"):
        told = as_mapping(item, "input")
        kind = told.get("type") or "message"
        read = _ITEMS.get(kind)
        if read is None:
            raise InvalidRequestError(f"an item of type {kind!r} is not translated", field="input")
        read(found, told)
    if not found:
        raise InvalidRequestError("is required", field="input")
    return found


def _message(found: list[Body], item: Mapping[str, Any]) -> None:
    role = item.get("role")
    if role not in _ROLES:
        raise InvalidRequestError(f"{role!r} is no role", field="input.role")
    content = item.get("content")
    if isinstance(content, str):
        found.append({"role": role, "content": content})
        return
    parts = [_part(part) for part in blocks_of(content, "input.content")]
    if role != "user" and all(part["type"] == "text" for part in parts):
        found.append({"role": role, "content": "".join(part["text"] for part in parts)})
    else:
        found.append({"role": role, "content": parts})


def _call(found: list[Body], item: Mapping[str, Any]) -> None:
    """A call joins what the assistant said right before it, and its other calls of that turn."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": None})
    function = {"name": item.get("name"), "arguments": item.get("arguments") or ""}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    found[-1].setdefault("tool_calls", []).append(call)


def _result(found: list[Body], item: Mapping[str, Any]) -> None:
    output = item.get("output")
    if isinstance(output, list):
        parts = [_part(part) for part in blocks_of(output, "input.output")]
        if any(part["type"] != "text" for part in parts):
            raise InvalidRequestError("only text is translated", field="input.output")
        output = "".join(part["text"] for part in parts)
    text = output if isinstance(output, str) else json_text(output)
    found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})


def _nothing(found: list[Body], item: Mapping[str, Any]) -> None:
    """Thoughts of earlier turns, which mean nothing to others."""


_ITEMS: Mapping[str, Callable[[list[Body], Mapping[str, Any]], None]] = MappingProxyType(
    {"message": _message, "function_call": _call, "function_call_output": _result, "reasoning": _nothing}
)


def _part(part: Mapping[str, Any]) -> Body:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.get("text") or ""}
    if kind == "refusal":
        return {"type": "text", "text": str(part.get("refusal") or "")}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        image = {"url": part["image_url"]}
        if part.get("detail") in ("low", "high"):
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_file" and isinstance(part.get("file_data"), str):
        file = {name: part[name] for name in ("filename", "file_data") if part.get(name)}
        return {"type": "file", "file": file}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    if kind in ("input_image", "input_file"):
        raise InvalidRequestError("must be sent whole, not by id or address", field="input.content")
    raise InvalidRequestError(f"a part of type {kind!r} has no equal in chat", field="input.content")
