"""A generateContent request as chat: `chat_to_generate` the other way round. Names may be camelCase or snake_case."""

from collections.abc import Mapping
from typing import Any

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.translation.parts import (
    Body,
    as_list,
    as_mapping,
    data_url,
    json_text,
    optional,
    refuse_unknown,
)

__all__ = ["generate_to_chat"]

_NUMBERS = {
    "temperature": "temperature", "top_p": "top_p", "seed": "seed", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "candidate_count": "n", "max_output_tokens": "max_tokens",
}  # fmt: skip
_REFUSED = {
    "response_logprobs": "log probabilities are not translated",
    "speech_config": "chat gives no sound this way",
    "routing_config": "chat does not choose its model",
}
_KNOWN = frozenset(
    {
        "model", "contents", "system_instruction", "tools", "tool_config", "generation_config", "cached_content",
        "safety_settings", "labels", "service_tier", "store",
    }
)  # fmt: skip
"""Safety settings are Gemini's own filter, and have no equal; nor have labels."""
_KNOWN_CONFIG = frozenset(
    {
        *_NUMBERS, *_REFUSED, "stop_sequences", "response_mime_type", "response_schema", "response_json_schema",
        "thinking_config", "response_modalities", "top_k", "media_resolution", "logprobs",
        "enable_enhanced_civic_answers", "audio_timestamp",
    }
)  # fmt: skip
_CHOICES = {"AUTO": "auto", "ANY": "required", "NONE": "none", "VALIDATED": "auto"}
_AUDIO_FORMATS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mp3": "mp3", "audio/mpeg": "mp3"}
_LEVELS = {"low": "low", "minimal": "low", "medium": "medium", "high": "high"}


def generate_to_chat(body: Mapping[str, Any], *, model: str, stream: bool) -> Body:
    """The body of a chat request. Raises InvalidRequestError naming what chat cannot say."""
    given = _snake(body)
    refuse_unknown(given, _KNOWN)
    if given.get("cached_content"):
        raise InvalidRequestError("chat has no cached contents", field="cachedContent")
    chat: Body = {"model": model, "messages": [*_system(given.get("system_instruction")), *_messages(given)]}
    config = _snake(optional(given.get("generation_config"), "generationConfig"))
    refuse_unknown(config, _KNOWN_CONFIG, "generationConfig.")
    if any(str(kind).upper() != "TEXT" for kind in as_list(config.get("response_modalities"), "generationConfig")):
        raise InvalidRequestError("only text is translated", field="generationConfig.responseModalities")
    for name, why in _REFUSED.items():
        if config.get(name):
            raise InvalidRequestError(why, field=f"generationConfig.{name}")
    chat.update((own, config[name]) for name, own in _NUMBERS.items() if config.get(name) is not None)
    if config.get("stop_sequences"):
        chat["stop"] = as_list(config["stop_sequences"], "generationConfig.stopSequences")
    _format(chat, config)
    _tools(chat, given)
    level = _snake(optional(config.get("thinking_config"), "generationConfig.thinkingConfig")).get("thinking_level")
    if level and str(level).lower() in _LEVELS:
        chat["reasoning_effort"] = _LEVELS[str(level).lower()]
    if stream:
        chat["stream"] = True
    return chat


def _snake(body: Mapping[str, Any]) -> Body:
    """The same members under their snake_case names, one level deep."""
    return {"".join("_" + c.lower() if c.isupper() else c for c in name): value for name, value in body.items()}


def _format(chat: Body, config: Mapping[str, Any]) -> None:
    schema = config.get("response_json_schema") or config.get("response_schema")
    if schema is not None:
        wanted = {"name": "answer", "schema": _plain_schema(schema), "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": wanted}
    elif config.get("response_mime_type") == "application/json":
        chat["response_format"] = {"type": "json_object"}


def _plain_schema(schema: Any) -> Any:
    """Gemini's own schemas name types in capitals (`OBJECT`); JSON Schema does not."""
    if isinstance(schema, Mapping):
        return {
            name: value.lower() if name == "type" and isinstance(value, str) else _plain_schema(value)
            for name, value in schema.items()
        }
    return [_plain_schema(item) for item in schema] if isinstance(schema, list) else schema


# --- tools -----------------------------------------------------------------------------------------------------------


def _tools(chat: Body, given: Mapping[str, Any]) -> None:
    tools: list[Body] = []
    for tool in as_list(given.get("tools"), "tools"):
        named = _snake(as_mapping(tool, "tools"))
        others = named.keys() - {"function_declarations"}
        if others:
            raise InvalidRequestError(f"{sorted(others)[0]!r} has no equal in chat", field="tools")
        tools += [_function(entry) for entry in as_list(named.get("function_declarations"), "tools")]
    if not tools:
        return
    chat["tools"] = tools
    wanted = _snake(optional(given.get("tool_config"), "toolConfig")).get("function_calling_config")
    if wanted:
        chat["tool_choice"] = _tool_choice(_snake(as_mapping(wanted, "toolConfig")))


def _function(declaration: Any) -> Body:
    given = _snake(as_mapping(declaration, "tools"))
    function: Body = {"name": given.get("name")}
    if given.get("description"):
        function["description"] = given["description"]
    schema = given.get("parameters_json_schema") or given.get("parameters")
    function["parameters"] = _plain_schema(schema) if schema else {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _tool_choice(wanted: Mapping[str, Any]) -> Any:
    names = as_list(wanted.get("allowed_function_names"), "toolConfig")
    if len(names) == 1:
        return {"type": "function", "function": {"name": names[0]}}
    if names:
        raise InvalidRequestError("chat can demand one function, or any", field="toolConfig")
    return _CHOICES.get(str(wanted.get("mode")), "auto")


# --- contents --------------------------------------------------------------------------------------------------------


def _system(instruction: Any) -> list[Body]:
    if not instruction:
        return []
    if isinstance(instruction, str):
        return [{"role": "system", "content": instruction}]
    parts = as_list(as_mapping(instruction, "systemInstruction").get("parts"), "systemInstruction")
    text = "\n".join(str(as_mapping(part, "systemInstruction").get("text", "")) for part in parts)
    return [{"role": "system", "content": text}]


def _messages(given: Mapping[str, Any]) -> list[Body]:
    found: list[Body] = []
    calls: dict[str, list[str]] = {}
    for content in as_list(given.get("contents"), "contents"):
        turn = as_mapping(content, "contents")
        parts = [_snake(as_mapping(part, "contents.parts")) for part in as_list(turn.get("parts"), "contents.parts")]
        role = turn.get("role", "user")
        if role == "model":
            found.append(_model(parts, calls))
        elif role in ("user", "function"):
            found += _user(parts, calls)
        else:
            raise InvalidRequestError(f"{role!r} is no role", field="contents.role")
    return found


def _model(parts: list[Body], calls: dict[str, list[str]]) -> Body:
    """A turn of the model's; `calls` remembers the ids of its calls by function, for their results."""
    said = [part for part in parts if not part.get("thought")]
    texts = [part["text"] for part in said if isinstance(part.get("text"), str)]
    made: Body = {"role": "assistant", "content": "".join(texts) if texts else None}
    tool_calls = []
    for part in said:
        if "function_call" in part:
            tool_calls.append(_tool_call(part, calls))
        elif "text" not in part:
            raise InvalidRequestError(f"{next(iter(part), 'nothing')!r} has no equal in chat", field="contents.parts")
    if tool_calls:
        made["tool_calls"] = tool_calls
    elif made["content"] is None:
        made["content"] = ""
    return made


def _tool_call(part: Body, calls: dict[str, list[str]]) -> Body:
    call = as_mapping(part["function_call"], "contents.parts.functionCall")
    name = str(call.get("name"))
    known = calls.setdefault(name, [])
    id_ = call.get("id") or f"call_{name}_{len(known)}"
    known.append(id_)
    function = {"name": name, "arguments": json_text(call.get("args") or {})}
    made: Body = {"id": id_, "type": "function", "function": function}
    if part.get("thought_signature"):
        made["extra_content"] = {"google": {"thought_signature": part["thought_signature"]}}
    return made


def _user(parts: list[Body], calls: dict[str, list[str]]) -> list[Body]:
    results = [_result(part, calls) for part in parts if "function_response" in part]
    said = [_part(part) for part in parts if "function_response" not in part]
    if not said:
        return results
    plain = said[0]["text"] if len(said) == 1 and said[0]["type"] == "text" else said
    return [*results, {"role": "user", "content": plain}]


def _result(part: Body, calls: dict[str, list[str]]) -> Body:
    answer = as_mapping(part["function_response"], "contents.parts.functionResponse")
    waiting = calls.get(str(answer.get("name")), [])
    id_ = answer.get("id") or (waiting[0] if waiting else None)
    if id_ is None:
        raise InvalidRequestError("answers no call before it", field="contents.parts.functionResponse")
    if id_ in waiting:
        waiting.remove(id_)
    response = answer.get("response") or {}
    only_output = isinstance(response, Mapping) and response.keys() == {"output"}
    plain = response["output"] if only_output and isinstance(response["output"], str) else json_text(response)
    return {"role": "tool", "tool_call_id": id_, "content": plain}


def _part(part: Body) -> Body:
    if isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if "inline_data" not in part:
        raise InvalidRequestError(f"{next(iter(part), 'nothing')!r} has no equal in chat", field="contents.parts")
    blob = _snake(as_mapping(part["inline_data"], "contents.parts.inlineData"))
    media_type, data = str(blob.get("mime_type")), str(blob.get("data"))
    if media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": data_url(media_type, data)}}
    if media_type in _AUDIO_FORMATS:
        return {"type": "input_audio", "input_audio": {"data": data, "format": _AUDIO_FORMATS[media_type]}}
    return {"type": "file", "file": {"filename": "document", "file_data": data_url(media_type, data)}}
