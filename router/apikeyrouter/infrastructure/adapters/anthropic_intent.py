"""An intent in Anthropic's words: the rules of `providers.md` §6, one function a rule."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from apikeyrouter.domain.models.request_intent import RequestIntent
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.json_body import JsonError

MAX_TOKENS_DEFAULT = 4096
"""`max_tokens` when the caller names no cap: every Claude model allows it."""

DROPPED = frozenset(
    {
        "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "seed", "store", "n",
        "modalities", "stream_options", "prompt_cache_key", "safety_identifier", "verbosity", "max_completion_tokens",
        "user", "stop", "parallel_tool_calls", "response_format", "reasoning_effort", "stream", "model", "messages",
    }
)  # fmt: skip
"""OpenAI's parameters that are translated below or have no equal at Anthropic and change no answer's shape."""

_SAMPLING = ("temperature", "top_p", "top_k")
_NO_SAMPLING = re.compile(r"claude-(?:[a-z]+-)?(?:4[-.][789]|[5-9])(?:\D|$)", re.IGNORECASE)
"""Claude 4.7 and later refuse sampling parameters, even at their defaults."""

_DATA_URL = re.compile(r"data:([\w.+/-]+);base64,(.*)", re.DOTALL)
_EFFORTS = {"none": None, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max"}
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


def encode(intent: RequestIntent, *, stream: bool) -> bytes:
    """The body of a Messages request. Raises InvalidRequestError for what Anthropic cannot do."""
    parameters = intent.parameters
    system, messages = _conversation(intent.to_wire_messages())
    body: dict[str, Any] = {"model": intent.model, "max_tokens": _max_tokens(parameters), "messages": messages}
    if system:
        body["system"] = system
    body.update((name, value) for name, value in parameters.items() if name not in DROPPED and value is not None)
    body["max_tokens"] = _max_tokens(parameters)
    _sampling(body, intent.model)
    _tools(body, parameters)
    _output(body, parameters)
    if "user" in parameters:
        body.setdefault("metadata", {"user_id": str(parameters["user"])})
    stop = parameters.get("stop")
    if stop:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    if stream:
        body["stream"] = True
    return msgspec.json.encode(body)


def _max_tokens(parameters: Mapping[str, Any]) -> int:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if parameters.get(name) is not None:
            return int(parameters[name])
    return MAX_TOKENS_DEFAULT


def _sampling(body: dict[str, Any], model: str) -> None:
    for name in _SAMPLING if _NO_SAMPLING.search(model) else ():
        body.pop(name, None)
    if isinstance(body.get("temperature"), (int, float)):
        body["temperature"] = min(max(body["temperature"], 0), 1)


def _output(body: dict[str, Any], parameters: Mapping[str, Any]) -> None:
    if (parameters.get("n") or 1) > 1:
        raise InvalidRequestError("Anthropic gives one answer per request", field="parameters.n")
    config = dict(body.get("output_config") or {})
    wanted = parameters.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_schema":
        inner = wanted.get("json_schema") if isinstance(wanted, Mapping) else None
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        config["format"] = {"type": "json_schema", "schema": schema or {}}
    elif kind == "json_object":
        raise InvalidRequestError(
            "json_object has no equal at Anthropic; use json_schema", field="parameters.response_format"
        )
    effort = _EFFORTS.get(str(parameters.get("reasoning_effort")))
    if effort is not None:
        config["effort"] = effort
    if config:
        body["output_config"] = config


def _tools(body: dict[str, Any], parameters: Mapping[str, Any]) -> None:
    if "tools" in body:
        body["tools"] = [_tool(tool) for tool in body["tools"]]
    choice = body.pop("tool_choice", None)
    if isinstance(choice, str):
        choice = {"type": _CHOICES.get(choice, "auto")}
    elif isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):
        choice = {"type": "tool", "name": choice["function"].get("name")}
    if parameters.get("parallel_tool_calls") is False and body.get("tools"):
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice is not None and body.get("tools"):
        body["tool_choice"] = choice


def _tool(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        return tool
    made: dict[str, Any] = {"name": function.get("name")}
    if function.get("description"):
        made["description"] = function["description"]
    made["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
    if function.get("strict"):
        made["strict"] = True
    return made


def _conversation(messages: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
    """(system, turns): leading system and developer messages are hoisted, tool results join one user turn."""
    leading = 0
    while leading < len(messages) and messages[leading]["role"] in ("system", "developer"):
        leading += 1
    turns: list[dict[str, Any]] = []
    for message in messages[leading:]:
        _add_turn(turns, message)
    if not turns:
        raise InvalidRequestError("must have a message besides system ones", field="messages")
    return _system(messages[:leading]), turns


def _system(messages: list[dict[str, Any]]) -> Any:
    if len(messages) == 1 and isinstance(messages[0]["content"], str):
        return messages[0]["content"]
    return [block for message in messages for block in _blocks(message["content"])]


def _add_turn(turns: list[dict[str, Any]], message: dict[str, Any]) -> None:
    role = message["role"]
    if role == "tool":
        result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": _result(message)}
        if turns and turns[-1]["role"] == "user" and _are_results(turns[-1]["content"]):
            turns[-1]["content"].append(result)
        else:
            turns.append({"role": "user", "content": [result]})
    elif role == "assistant":
        turns.append({"role": "assistant", "content": _assistant(message)})
    elif role == "user":
        content = message["content"]
        turns.append({"role": "user", "content": content if isinstance(content, str) else _blocks(content)})
    else:
        text = "".join(block.get("text", "") for block in _blocks(message["content"]))
        turns.append({"role": "user", "content": f"<system>{text}</system>"})


def _are_results(content: Any) -> bool:
    return isinstance(content, list) and all(block.get("type") == "tool_result" for block in content)


def _result(message: dict[str, Any]) -> Any:
    content = message["content"]
    return content if isinstance(content, str) else _blocks(content)


def _assistant(message: dict[str, Any]) -> Any:
    calls = list(message.get("tool_calls") or ())
    if message.get("function_call"):
        calls.append({"id": "call_0", "function": message["function_call"]})
    if not calls and isinstance(message["content"], str):
        return message["content"]
    return _blocks(message["content"]) + [_tool_use(call) for call in calls]


def _tool_use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequestError("each needs a function", field="messages.tool_calls")
    text = function.get("arguments") or "{}"
    try:
        arguments = msgspec.json.decode(text) if isinstance(text, str) else text
    except JsonError as exc:
        raise InvalidRequestError("is not JSON", field="messages.tool_calls.function.arguments") from exc
    return {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": arguments}


def _blocks(content: Any) -> list[dict[str, Any]]:
    """Content as Anthropic's blocks; empty text is left out, the API refuses it."""
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    blocks = [_block(part) for part in content]
    return [block for block in blocks if block.get("type") != "text" or block.get("text")]


def _block(part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "refusal"):
        return {"type": "text", "text": part.get("text") or part.get("refusal") or ""}
    if kind in ("image_url", "input_image"):
        return {"type": "image", "source": _image_source(part.get("image_url"))}
    if kind == "file":
        return {"type": "document", "source": _file_source(part.get("file"))}
    if kind == "input_audio":
        raise InvalidRequestError("Anthropic takes no audio", field="messages.content")
    return part


def _image_source(image: Any) -> dict[str, Any]:
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str) or not url:
        raise InvalidRequestError("an image needs a url", field="messages.content.image_url")
    data = _DATA_URL.fullmatch(url)
    if data is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": data.group(1), "data": data.group(2)}


def _file_source(file: Any) -> dict[str, Any]:
    data = file.get("file_data") if isinstance(file, Mapping) else None
    found = _DATA_URL.fullmatch(data) if isinstance(data, str) else None
    if found is None:
        raise InvalidRequestError("only base64 file_data can be sent to Anthropic", field="messages.content.file")
    return {"type": "base64", "media_type": found.group(1), "data": found.group(2)}
