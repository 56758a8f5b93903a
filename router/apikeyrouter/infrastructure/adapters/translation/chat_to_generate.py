"""A chat request as Gemini's generateContent, and an embedding request as its embedContent."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.json_body import JsonError
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

__all__ = ["chat_to_generate", "embedding_to_embed"]

STOPS_MAX = 5
"""Stop sequences that Gemini takes (API reference; K)."""
_LEFT_OUT = frozenset(
    {
        "store", "stream_options", "prompt_cache_key", "verbosity", "prediction", "user", "safety_identifier",
        "metadata", "service_tier", "prompt_cache_retention", "prompt_cache_options", "logit_bias", "stream",
    }
)  # fmt: skip
_TRANSLATED = frozenset(
    {
        "model", "messages", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "stop", "temperature",
        "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "tools", "tool_choice", "functions",
        "function_call", "parallel_tool_calls", "response_format", "reasoning_effort", "logprobs", "top_logprobs",
        "modalities", "audio", "web_search_options", "generationConfig",
    }
)  # fmt: skip
_REFUSED = {
    "logprobs": "log probabilities are not translated",
    "top_logprobs": "log probabilities are not translated",
    "logit_bias": "Gemini takes no bias",
    "audio": "sound is not translated",
    "web_search_options": "has no equal at Gemini; use its search tool",
}
_NUMBERS = {
    "temperature": "temperature", "top_p": "topP", "top_k": "topK", "seed": "seed", "n": "candidateCount",
    "presence_penalty": "presencePenalty", "frequency_penalty": "frequencyPenalty",
}  # fmt: skip
_CHOICES = {"auto": "AUTO", "required": "ANY", "none": "NONE"}
_BUDGETS = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 32768}
"""Tokens to think with, as Google's own OpenAI-compatible endpoint maps them (K)."""
_LEVELS = {"none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}
_HAS_BUDGET = re.compile(r"gemini-2\.5", re.IGNORECASE)
_HAS_LEVELS = re.compile(r"gemini-(?:[3-9]|\d\d)", re.IGNORECASE)
_FETCHED = re.compile(r"https://(?:generativelanguage\.googleapis\.com|(?:www\.)?youtube\.com|youtu\.be)/|gs://")
"""Addresses that Gemini reads by itself."""
_AUDIO_TYPES = {"wav": "audio/wav", "mp3": "audio/mp3", "flac": "audio/flac", "opus": "audio/opus", "aac": "audio/aac"}


def chat_to_generate(chat: Mapping[str, Any]) -> Body:
    """The body of a generateContent request. Raises InvalidRequestError naming what Gemini cannot do."""
    refuse_all(chat, _REFUSED)
    if chat.get("parallel_tool_calls") is False and (chat.get("tools") or chat.get("functions")):
        raise InvalidRequestError("Gemini may always call several tools at once", field="parallel_tool_calls")
    system, contents = _conversation(as_list(chat.get("messages"), "messages"))
    body: Body = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": system}
    passed = {name: value for name, value in chat.items() if name not in _TRANSLATED | _LEFT_OUT}
    body.update((name, value) for name, value in passed.items() if value is not None)
    _tools(body, chat)
    config = {
        **_numbers(chat),
        **_format(chat),
        **_thinking(chat),
        **optional(chat.get("generationConfig"), "generationConfig"),
    }
    if config:
        body["generationConfig"] = config
    return body


def _numbers(chat: Mapping[str, Any]) -> Body:
    config = {own: chat[name] for name, own in _NUMBERS.items() if chat.get(name) is not None}
    if config.get("candidateCount") == 1:
        del config["candidateCount"]
    given = (chat.get(name) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    cap = next((cap for cap in given if cap is not None), None)
    if cap is not None:
        config["maxOutputTokens"] = cap
    stop = chat.get("stop")
    stops = [stop] if isinstance(stop, str) else as_list(stop, "stop")
    if len(stops) > STOPS_MAX:
        raise InvalidRequestError(f"Gemini takes at most {STOPS_MAX}", field="stop")
    if stops:
        config["stopSequences"] = stops
    return config


def _format(chat: Mapping[str, Any]) -> Body:
    modalities = as_list(chat.get("modalities"), "modalities")
    if any(modality != "text" for modality in modalities):
        raise InvalidRequestError("only text is translated", field="modalities")
    wanted = chat.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    if kind == "json_schema":
        schema = as_mapping(as_mapping(wanted, "response_format").get("json_schema"), "response_format.json_schema")
        return {"responseMimeType": "application/json", "responseJsonSchema": schema.get("schema") or {}}
    return {}


def _thinking(chat: Mapping[str, Any]) -> Body:
    effort, model = str(chat.get("reasoning_effort")), str(chat.get("model"))
    if effort not in _BUDGETS:
        return {}
    if _HAS_BUDGET.search(model):
        return {"thinkingConfig": {"thinkingBudget": _BUDGETS[effort]}}
    return {"thinkingConfig": {"thinkingLevel": _LEVELS[effort]}} if _HAS_LEVELS.search(model) else {}


# --- tools -----------------------------------------------------------------------------------------------------------


def _tools(body: Body, chat: Mapping[str, Any]) -> None:
    functions = []
    own = []
    for tool in as_list(chat.get("tools"), "tools"):
        given = as_mapping(tool, "tools")
        if isinstance(given.get("function"), Mapping):
            functions.append(given["function"])
        elif "type" in given:
            raise InvalidRequestError(f"a tool of type {given['type']!r} has no equal at Gemini", field="tools")
        else:
            own.append(dict(given))  # Gemini's own form
    functions += [as_mapping(function, "functions") for function in as_list(chat.get("functions"), "functions")]
    if functions:
        own.append({"functionDeclarations": [_declaration(function) for function in functions]})
    if own:
        body["tools"] = own
    choice = chat.get("tool_choice", chat.get("function_call"))
    if choice is not None and functions:
        body["toolConfig"] = {"functionCallingConfig": _tool_choice(choice)}


def _declaration(function: Mapping[str, Any]) -> Body:
    made: Body = {"name": function.get("name")}
    if function.get("description"):
        made["description"] = function["description"]
    if function.get("parameters"):
        made["parametersJsonSchema"] = function["parameters"]
    return made


def _tool_choice(choice: Any) -> Body:
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise InvalidRequestError(f"must be one of {', '.join(_CHOICES)}", field="tool_choice")
        return {"mode": _CHOICES[choice]}
    named = as_mapping(choice, "tool_choice")
    function = named.get("function", named)
    if named.get("type") not in (None, "function") or not isinstance(function, Mapping) or not function.get("name"):
        raise InvalidRequestError("has no equal at Gemini", field="tool_choice")
    return {"mode": "ANY", "allowedFunctionNames": [function["name"]]}


# --- messages --------------------------------------------------------------------------------------------------------


def _conversation(messages: list[Any]) -> tuple[list[Body], list[Body]]:
    """(system parts, contents): leading system and developer messages are hoisted, results of one turn are one turn."""
    listed = [as_mapping(message, "messages") for message in messages]
    leading = 0
    while leading < len(listed) and listed[leading].get("role") in ("system", "developer"):
        leading += 1
    system = [part for message in listed[:leading] for part in _parts(message.get("content"))]
    contents: list[Body] = []
    names: dict[str, Any] = {}
    for message in listed[leading:]:
        _add(contents, names, message)
    if not contents:
        raise InvalidRequestError("must have a message besides system ones", field="messages")
    return system, contents


def _add(contents: list[Body], names: dict[str, Any], message: Mapping[str, Any]) -> None:
    role = message.get("role")
    if role in ("tool", "function"):
        part = _response(message, names)
        if contents and contents[-1]["role"] == "user" and "functionResponse" in contents[-1]["parts"][-1]:
            contents[-1]["parts"].append(part)
        else:
            contents.append({"role": "user", "parts": [part]})
    elif role == "assistant":
        contents.append({"role": "model", "parts": _model_parts(message, names)})
    elif role == "user":
        contents.append({"role": "user", "parts": _parts(message.get("content")) or [{"text": ""}]})
    elif role in ("system", "developer"):
        text = "".join(part.get("text", "") for part in _parts(message.get("content")))
        contents.append({"role": "user", "parts": [{"text": f"<system>{text}</system>"}]})
    else:
        raise InvalidRequestError(f"{role!r} is no role", field="messages.role")


def _model_parts(message: Mapping[str, Any], names: dict[str, Any]) -> list[Body]:
    parts = _parts(message.get("content"))
    calls = as_list(message.get("tool_calls"), "messages.tool_calls")
    if message.get("function_call"):
        calls.append({"function": message["function_call"]})
    for call in calls:
        function = as_mapping(call, "messages.tool_calls").get("function")
        if not isinstance(function, Mapping):
            raise InvalidRequestError("each needs a function", field="messages.tool_calls")
        names[str(call.get("id"))] = function.get("name")
        arguments = arguments_object(function.get("arguments"), "messages.tool_calls.function.arguments")
        made: Body = {"name": function.get("name"), "args": arguments}
        if call.get("id"):
            made["id"] = call["id"]
        part: Body = {"functionCall": made}
        signature = _signature(call)
        if signature:
            part["thoughtSignature"] = signature
        parts.append(part)
    return parts or [{"text": ""}]


def _signature(call: Mapping[str, Any]) -> Any:
    extra = call.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    return google.get("thought_signature") if isinstance(google, Mapping) else None


def _response(message: Mapping[str, Any], names: Mapping[str, Any]) -> Body:
    """A tool's result. Gemini wants the function's name, which chat tells by the id of the call only."""
    id_ = message.get("tool_call_id")
    if id_ is not None and not isinstance(id_, str):
        raise InvalidRequestError("must be a string", field="messages.tool_call_id")
    name = names.get(str(id_)) or message.get("name")
    if not name:
        raise InvalidRequestError(f"no call before it has the id {id_!r}", field="messages.tool_call_id")
    text = "".join(part.get("text", "") for part in _parts(message.get("content")))
    made: Body = {"name": name, "response": _result(text)}
    if id_:
        made["id"] = id_
    return {"functionResponse": made}


def _result(text: str) -> Body:
    """A JSON object as it is, any other text as `output`."""
    try:
        value = msgspec.json.decode(text)
    except JsonError:
        value = None
    return value if isinstance(value, dict) else {"output": text}


def _parts(content: Any) -> list[Body]:
    parts = [_part(part) for part in blocks_of(content, "messages.content")]
    return [part for part in parts if part != {"text": ""}]


def _part(part: Mapping[str, Any]) -> Body:
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text", "refusal"):
        return {"text": part.get("text") or part.get("refusal") or ""}
    if kind in ("image_url", "input_image"):
        image = part.get("image_url")
        return _by_url(image.get("url") if isinstance(image, Mapping) else image, "messages.content.image_url")
    if kind in ("file", "input_file"):
        file = part.get("file", part)
        return _by_url(file.get("file_data") if isinstance(file, Mapping) else None, "messages.content.file")
    if kind == "input_audio":
        sound = as_mapping(part.get("input_audio"), "messages.content.input_audio")
        media_type = _AUDIO_TYPES.get(str(sound.get("format")), f"audio/{sound.get('format')}")
        return {"inlineData": {"mimeType": media_type, "data": sound.get("data")}}
    source = part.get("source")
    if kind in ("image", "document") and isinstance(source, Mapping) and source.get("type") == "base64":
        return {"inlineData": {"mimeType": source.get("media_type"), "data": source.get("data")}}
    if kind is None:
        return dict(part)  # Gemini's own form
    raise InvalidRequestError(f"a part of type {kind!r} has no equal at Gemini", field="messages.content")


def _by_url(url: Any, field: str) -> Body:
    data = read_data_url(url) if isinstance(url, str) else None
    if data is not None:
        return {"inlineData": {"mimeType": data[0], "data": data[1]}}
    if isinstance(url, str) and _FETCHED.match(url):
        return {"fileData": {"fileUri": url}}
    raise InvalidRequestError("Gemini takes it as a data: URL", field=field)


# --- embeddings ------------------------------------------------------------------------------------------------------


def embedding_to_embed(payload: Mapping[str, Any], model: str) -> Body:
    """An embedding request: one text, or several at once. Raises InvalidRequestError."""
    given = payload.get("input")
    texts = [given] if isinstance(given, str) else as_list(given, "input")
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError("must be text, or a list of texts", field="input")
    requests = [_embed(text, payload, model) for text in texts]
    return requests[0] if isinstance(given, str) else {"requests": requests}


def _embed(text: str, payload: Mapping[str, Any], model: str) -> Body:
    made: Body = {"model": f"models/{model.removeprefix('models/')}", "content": {"parts": [{"text": text}]}}
    if payload.get("dimensions") is not None:
        made["outputDimensionality"] = payload["dimensions"]
    own = {name: payload[name] for name in ("taskType", "title") if payload.get(name) is not None}
    return {**made, **own}
