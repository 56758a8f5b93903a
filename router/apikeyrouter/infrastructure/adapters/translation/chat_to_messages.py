"""A chat request as Anthropic's Messages: the rules of `providers.md` §6, one function a rule."""

import re
from collections.abc import Mapping
from typing import Any

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.translation.parts import (
    Body,
    arguments_object,
    as_list,
    as_mapping,
    blocks_of,
    optional,
    read_data_url,
    refuse_all,
)

__all__ = ["MAX_TOKENS_DEFAULT", "chat_to_messages"]

MAX_TOKENS_DEFAULT = 4096
"""`max_tokens` when the caller names no cap: every Claude model allows it."""

_LEFT_OUT = frozenset(
    {
        "frequency_penalty", "presence_penalty", "seed", "store", "stream_options", "prompt_cache_key", "verbosity",
        "prediction", "modalities", "prompt_cache_retention", "prompt_cache_options",
    }
)  # fmt: skip
"""Hints and knobs without an equal that change no answer's shape."""
_TRANSLATED = frozenset(
    {
        "model", "messages", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "stop", "user",
        "safety_identifier", "metadata", "tools", "tool_choice", "functions", "function_call", "parallel_tool_calls",
        "response_format", "reasoning_effort", "service_tier", "output_config", "thinking", "logprobs", "top_logprobs",
        "logit_bias", "audio", "web_search_options",
    }
)  # fmt: skip
"""What the functions below deal with. Anything else is Anthropic's own and goes on as it is."""
_REFUSED = {
    "logprobs": "Anthropic gives no log probabilities",
    "top_logprobs": "Anthropic gives no log probabilities",
    "logit_bias": "Anthropic takes no bias",
    "audio": "Anthropic gives no sound",
    "web_search_options": "has no equal at Anthropic; use its web search tool",
}
_SAMPLING = ("temperature", "top_p", "top_k")
_NO_SAMPLING = re.compile(r"claude-(?:[a-z]+-)?(?:4[-.][789]|[5-9])(?:\D|$)", re.IGNORECASE)
"""Claude 4.7 and later refuse sampling parameters, even at their defaults."""
_NO_PREFILL = re.compile(r"claude-(?:[a-z]+-)?(?:4[-.][6789]|[5-9])(?:\D|$)", re.IGNORECASE)
"""Claude 4.6 and later refuse a last message of the assistant's, and think as they see fit."""
_NO_FORCED_TOOL = re.compile(r"claude-(?:opus-5[-.]5|(?:fable|mythos)-5[-.]1)(?:\D|$)", re.IGNORECASE)
"""Models that choose by themselves whether to call a tool (`providers.md` §6)."""
_BUDGETED = re.compile(r"claude-(?:3-7|(?:[a-z]+-)4(?:[-.][0-5])?(?:-\d{8}|-latest|$))", re.IGNORECASE)
"""Claude 3.7 to 4.5 think within a budget of tokens."""
_OLD = re.compile(r"claude-(?:3(?!-7)|2|instant)", re.IGNORECASE)
"""Claude 3.5 and before do not think."""
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max"}
_BUDGETS = {"low": 1024, "medium": 4096, "high": 16384, "max": 32000}
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}


def chat_to_messages(chat: Mapping[str, Any]) -> Body:
    """The body of a Messages request. Raises InvalidRequestError naming what Anthropic cannot do."""
    refuse_all(chat, _REFUSED)
    model = str(chat["model"])
    if (chat.get("n") or 1) != 1:
        raise InvalidRequestError("Anthropic gives one answer per request", field="n")
    system, turns = _conversation(as_list(chat.get("messages"), "messages"))
    if turns[-1]["role"] == "assistant" and _NO_PREFILL.search(model):
        raise InvalidRequestError("the last one cannot be the assistant's for this model", field="messages")
    body: Body = {"model": model, "max_tokens": MAX_TOKENS_DEFAULT, "messages": turns}
    if system:
        body["system"] = system
    passed = {name: value for name, value in chat.items() if name not in _TRANSLATED | _LEFT_OUT}
    body.update((name, value) for name, value in passed.items() if value is not None)
    _sampling(body, model)
    _tools(body, chat)
    _output(body, chat)
    _thinking(body, chat, model)
    _caps(body, chat)
    _identity(body, chat)
    if chat.get("stream"):
        body["stream"] = True
    return body


def _caps(body: Body, chat: Mapping[str, Any]) -> None:
    """Without a cap of the caller's there is room for what is thought as well."""
    given = (chat.get(name) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    cap = next((cap for cap in given if cap is not None), None)
    thinking = body.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
    if cap is None:
        body["max_tokens"] = MAX_TOKENS_DEFAULT + (budget if isinstance(budget, int) else 0)
    else:
        body["max_tokens"] = cap
        if isinstance(budget, int) and isinstance(cap, int) and budget >= cap:
            _shrink(body, cap)
    stop = chat.get("stop")
    if stop:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else as_list(stop, "stop")


def _shrink(body: Body, cap: int) -> None:
    """A budget must stay below the cap, and is at least 1,024 tokens; where that is impossible, nothing is thought."""
    if cap > _BUDGETS["low"]:
        body["thinking"] = {"type": "enabled", "budget_tokens": max(_BUDGETS["low"], cap // 2)}
    else:
        body.pop("thinking")


def _sampling(body: Body, model: str) -> None:
    for name in _SAMPLING if _NO_SAMPLING.search(model) else ():
        body.pop(name, None)
    temperature = body.get("temperature")
    if isinstance(temperature, int | float):
        body["temperature"] = min(max(temperature, 0), 1)


def _output(body: Body, chat: Mapping[str, Any]) -> None:
    config = dict(optional(chat.get("output_config"), "output_config"))
    wanted = chat.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_schema":
        schema = as_mapping(as_mapping(wanted, "response_format").get("json_schema"), "response_format.json_schema")
        config["format"] = {"type": "json_schema", "schema": schema.get("schema") or {}}
    elif kind == "json_object":
        raise InvalidRequestError("json_object has no equal at Anthropic; use json_schema", field="response_format")
    effort = _EFFORTS.get(str(chat.get("reasoning_effort")))
    if effort is not None and not _OLD.search(body["model"]) and not _BUDGETED.search(body["model"]):
        config.setdefault("effort", effort)
    if config:
        body["output_config"] = config


def _thinking(body: Body, chat: Mapping[str, Any], model: str) -> None:
    """An effort means thinking: by itself in newer models, within a budget in older ones."""
    if chat.get("thinking") is not None:
        body["thinking"] = chat["thinking"]
        return
    effort = _EFFORTS.get(str(chat.get("reasoning_effort")))
    if effort is None or _OLD.search(model):
        return
    if _BUDGETED.search(model):
        body["thinking"] = {"type": "enabled", "budget_tokens": _BUDGETS[effort]}
        for name in _SAMPLING:
            body.pop(name, None)  # while it thinks, only the defaults are allowed
    else:
        body["thinking"] = {"type": "adaptive"}


def _identity(body: Body, chat: Mapping[str, Any]) -> None:
    named = chat.get("metadata")
    user = chat.get("safety_identifier") or chat.get("user")
    if isinstance(named, Mapping) and named.keys() == {"user_id"}:
        body["metadata"] = dict(named)
    elif user:
        body["metadata"] = {"user_id": str(user)}
    tier = _TIERS.get(str(chat.get("service_tier")))
    if tier is not None:
        body["service_tier"] = tier


# --- tools -----------------------------------------------------------------------------------------------------------


def _tools(body: Body, chat: Mapping[str, Any]) -> None:
    tools = [_tool(tool) for tool in as_list(chat.get("tools"), "tools")]
    legacy = [{"type": "function", "function": function} for function in as_list(chat.get("functions"), "functions")]
    tools += [_tool(tool) for tool in legacy]
    if not tools:
        return
    body["tools"] = tools
    choice = _tool_choice(chat.get("tool_choice", chat.get("function_call")))
    if chat.get("parallel_tool_calls") is False:
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice = {**choice, "disable_parallel_tool_use": True}
    if choice is not None:
        if choice["type"] in ("any", "tool") and _NO_FORCED_TOOL.search(body["model"]):
            raise InvalidRequestError("this model cannot be made to call a tool; use auto", field="tool_choice")
        body["tool_choice"] = choice


def _tool_choice(choice: Any) -> dict[str, Any] | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise InvalidRequestError(f"must be one of {', '.join(_CHOICES)}", field="tool_choice")
        return {"type": _CHOICES[choice]}
    named = as_mapping(choice, "tool_choice")
    if named.get("type") in ("auto", "any", "tool", "none") and "function" not in named:
        return dict(named)  # Anthropic's own form
    function = named.get("function", named)
    if named.get("type") not in (None, "function") or not isinstance(function, Mapping) or not function.get("name"):
        raise InvalidRequestError("has no equal at Anthropic", field="tool_choice")
    return {"type": "tool", "name": function["name"]}


def _tool(tool: Any) -> dict[str, Any]:
    given = as_mapping(tool, "tools")
    function = given.get("function")
    if not isinstance(function, Mapping):
        if given.get("type") == "custom" and "custom" in given:
            raise InvalidRequestError("Anthropic takes no tools with free-form input", field="tools")
        return dict(given)  # Anthropic's own form
    made: dict[str, Any] = {"name": function.get("name")}
    if function.get("description"):
        made["description"] = function["description"]
    made["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
    if function.get("strict"):
        made["strict"] = True
    return made


# --- messages --------------------------------------------------------------------------------------------------------


def _conversation(messages: list[Any]) -> tuple[Any, list[Body]]:
    """(system, turns): leading system and developer messages are hoisted, tool results join one user turn."""
    listed = [as_mapping(message, "messages") for message in messages]
    leading = 0
    while leading < len(listed) and listed[leading].get("role") in ("system", "developer"):
        leading += 1
    turns: list[Body] = []
    for message in listed[leading:]:
        _add_turn(turns, message)
    if not turns:
        raise InvalidRequestError("must have a message besides system ones", field="messages")
    return _system(listed[:leading]), turns


def _system(messages: list[Mapping[str, Any]]) -> Any:
    if len(messages) == 1 and isinstance(messages[0].get("content"), str):
        return messages[0]["content"]
    return [block for message in messages for block in _blocks(message.get("content"))]


def _add_turn(turns: list[Body], message: Mapping[str, Any]) -> None:
    role = message.get("role")
    if role in ("tool", "function"):
        result = {
            "type": "tool_result",
            "tool_use_id": message.get("tool_call_id") or LEGACY_CALL_ID,
            "content": _result(message),
        }
        if turns and turns[-1]["role"] == "user" and _are_results(turns[-1]["content"]):
            turns[-1]["content"].append(result)
        else:
            turns.append({"role": "user", "content": [result]})
    elif role == "assistant":
        turns.append({"role": "assistant", "content": _assistant(message)})
    elif role == "user":
        content = message.get("content")
        turns.append({"role": "user", "content": content if isinstance(content, str) else _blocks(content)})
    elif role in ("system", "developer"):
        text = "".join(block.get("text", "") for block in _blocks(message.get("content")))
        turns.append({"role": "user", "content": f"<system>{text}</system>"})
    else:
        raise InvalidRequestError(f"{role!r} is no role", field="messages.role")


LEGACY_CALL_ID = "call_0"
"""The id of a `function_call`, which has none of its own."""


def _are_results(content: Any) -> bool:
    return isinstance(content, list) and all(block.get("type") == "tool_result" for block in content)


def _result(message: Mapping[str, Any]) -> Any:
    content = message.get("content")
    return content if isinstance(content, str) else _blocks(content)


def _assistant(message: Mapping[str, Any]) -> Any:
    calls = as_list(message.get("tool_calls"), "messages.tool_calls")
    if message.get("function_call"):
        calls.append({"id": LEGACY_CALL_ID, "function": message["function_call"]})
    content = message.get("content")
    if not calls and isinstance(content, str):
        return content
    said = message.get("refusal")
    blocks = _blocks(content) or ([{"type": "text", "text": said}] if isinstance(said, str) and said else [])
    return blocks + [_tool_use(call) for call in calls]


def _tool_use(call: Any) -> Body:
    function = as_mapping(call, "messages.tool_calls").get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequestError("each needs a function", field="messages.tool_calls")
    arguments = arguments_object(function.get("arguments"), "messages.tool_calls.function.arguments")
    return {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": arguments}


def _blocks(content: Any) -> list[Body]:
    """Content as Anthropic's blocks; empty text is left out, the API refuses it."""
    blocks = [_block(part) for part in blocks_of(content, "messages.content")]
    return [block for block in blocks if block.get("type") != "text" or block.get("text")]


def _block(part: Mapping[str, Any]) -> Body:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "refusal"):
        return {"type": "text", "text": part.get("text") or part.get("refusal") or ""}
    if kind in ("image_url", "input_image"):
        return {"type": "image", "source": _image_source(part.get("image_url"))}
    if kind in ("file", "input_file"):
        return _document(part.get("file", part))
    if kind == "input_audio":
        raise InvalidRequestError("Anthropic takes no audio", field="messages.content")
    return dict(part)


def _image_source(image: Any) -> Body:
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str) or not url:
        raise InvalidRequestError("an image needs a url", field="messages.content.image_url")
    data = read_data_url(url)
    if data is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": data[0], "data": data[1]}


def _document(file: Any) -> Body:
    data = file.get("file_data") if isinstance(file, Mapping) else None
    found = read_data_url(data) if isinstance(data, str) else None
    if found is None:
        raise InvalidRequestError("only base64 file_data can be sent to Anthropic", field="messages.content.file")
    made: Body = {"type": "document", "source": {"type": "base64", "media_type": found[0], "data": found[1]}}
    if file.get("filename"):
        made["title"] = file["filename"]
    return made
