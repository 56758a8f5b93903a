"""The OpenAI dialect's requests: decoded, checked, understood."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from apikeyrouter.simulator.calls import Call, InvalidRequest, ToolUse
from apikeyrouter.simulator.prompts import (
    Content,
    Message,
    Part,
    demanded_form,
    given,
    last_user_text,
    measure,
    sample_arguments,
    text_of,
)
from apikeyrouter.simulator.tokens import Markers, read_markers, text_bytes, tokens_of_bytes

__all__ = ["parse_chat", "parse_completion", "parse_embeddings", "parse_response"]

CHOICES_MAX = 128
CACHED_PREFIX_CHARACTERS = 4_096
Cap = Annotated[int, Meta(ge=1)]
_BodyT = TypeVar("_BodyT", bound=Struct)


class _StreamOptions(Struct):
    include_usage: bool = False


class _Chat(Struct):
    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: Cap | None = None
    max_completion_tokens: Cap | None = None
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = 1
    tools: Raw = Raw()
    tool_choice: Raw = Raw()
    response_format: Raw = Raw()


class _Completion(Struct):
    model: str
    prompt: str | list[str | int | list[int]] = ""
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: Cap | None = 16
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = 1
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None


class _Embeddings(Struct):
    model: str
    input: str | list[str | int | list[int]]


class _InputItem(Struct):
    type: str = "message"
    role: str = "user"
    content: Content = None
    arguments: str = ""
    output: Raw = Raw()


class _Response(Struct):
    model: str
    input: str | list[_InputItem] = ""
    instructions: str | None = None
    stream: bool | None = False
    max_output_tokens: Cap | None = None
    previous_response_id: str | None = None
    store: bool | None = True
    tools: Raw = Raw()
    tool_choice: Raw = Raw()
    text: Raw = Raw()


_chat = msgspec.json.Decoder(_Chat)
_completion = msgspec.json.Decoder(_Completion)
_embeddings = msgspec.json.Decoder(_Embeddings)
_response = msgspec.json.Decoder(_Response)


def parse_chat(body: bytes) -> Call:
    """``POST /v1/chat/completions``."""
    chat = _decode(_chat, body)
    if chat.max_tokens is not None and chat.max_completion_tokens is not None:
        raise InvalidRequest("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
    markers = read_markers(last_user_text(chat.messages))
    cap = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    prompt = measure(chat.messages, tools=chat.tools)
    return Call(
        endpoint="chat",
        model=chat.model,
        input_tokens=prompt.tokens(),
        markers=markers,
        stream=bool(chat.stream),
        cap=cap,
        choices=chat.n or 1,
        include_usage=chat.stream_options is not None and chat.stream_options.include_usage,
        tool=_forced_tool(chat.tools, chat.tool_choice, markers),
        form=demanded_form(chat.response_format, "json_schema", "schema"),
        prefix=(chat.model, _prefix(chat.messages)),
    )


def parse_completion(body: bytes) -> Call:
    """``POST /v1/completions``."""
    completion = _decode(_completion, body)
    text, tokens = _text_input(completion.prompt)
    return Call(
        endpoint="completions",
        model=completion.model,
        input_tokens=tokens,
        markers=read_markers(text),
        stream=bool(completion.stream),
        cap=completion.max_tokens,
        choices=max(completion.n or 1, completion.best_of or 1),
        include_usage=completion.stream_options is not None and completion.stream_options.include_usage,
    )


def parse_embeddings(body: bytes) -> Call:
    """``POST /v1/embeddings``; ``choices`` is the number of inputs."""
    embeddings = _decode(_embeddings, body)
    text, tokens = _text_input(embeddings.input)
    count = 1
    if isinstance(embeddings.input, list) and embeddings.input and not isinstance(embeddings.input[0], int):
        count = len(embeddings.input)
    return Call("embeddings", embeddings.model, tokens, read_markers(text), choices=count)


def parse_response(body: bytes) -> Call:
    """``POST /v1/responses``."""
    response = _decode(_response, body)
    items = [_InputItem(content=response.input)] if isinstance(response.input, str) else response.input
    messages = [_as_message(item) for item in items]
    markers = read_markers(last_user_text(messages))
    return Call(
        endpoint="responses",
        model=response.model,
        input_tokens=measure(messages, system=response.instructions, tools=response.tools).tokens(),
        markers=markers,
        stream=bool(response.stream),
        cap=response.max_output_tokens,
        include_usage=True,
        tool=_forced_tool(response.tools, response.tool_choice, markers),
        form=demanded_form(response.text, "format", "schema"),
        previous=response.previous_response_id or "",
        stored=response.store is not False,
        prefix=(response.model, _prefix(messages)),
    )


def _as_message(item: _InputItem) -> Message:
    if item.type == "message":
        return Message(item.role, item.content)
    return Message("assistant", [Part(type=item.type, arguments=item.arguments, output=item.output)])


def _decode(decoder: msgspec.json.Decoder[_BodyT], body: bytes) -> _BodyT:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid request: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"We could not parse the JSON body of your request. ({error})") from error


def _prefix(messages: list[Message]) -> str:
    return "\n".join(text_of(message.content) for message in messages)[:CACHED_PREFIX_CHARACTERS]


def _text_input(value: str | list[str | int | list[int]]) -> tuple[str, int]:
    """The text of a prompt or embedding input, and its tokens (token ids count themselves)."""
    if isinstance(value, str):
        return value, max(1, tokens_of_bytes(text_bytes(value)))
    texts = [item for item in value if isinstance(item, str)]
    ids = sum(1 if isinstance(item, int) else len(item) for item in value if not isinstance(item, str))
    return " ".join(texts), max(1, ids + sum(tokens_of_bytes(text_bytes(text)) for text in texts))


def _forced_tool(tools: Raw, choice: Raw, markers: Markers) -> ToolUse | None:
    """The tool that ``tool_choice`` (or the prompt's ``[[tool]]``) forces, with sample arguments."""
    if not given(tools) or not (given(choice) or markers.tool):
        return None
    wanted: Any = msgspec.json.decode(choice) if given(choice) else "auto"
    if wanted == "none" or (wanted in ("auto", None) and not markers.tool):
        return None
    offered: Any = msgspec.json.decode(tools)
    functions = [_function(tool) for tool in offered or [] if isinstance(tool, dict)]
    name = _function(wanted).get("name") if isinstance(wanted, dict) else None
    for function in functions:
        if "name" in function and name in (None, function["name"]):
            return ToolUse(str(function["name"]), sample_arguments(function.get("parameters") or {}))
    if name is not None:
        raise InvalidRequest(f"Tool choice {name!r} is not among the tools.")
    return None


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """The function of a tool: nested in chat, flat in responses."""
    nested = tool.get("function")
    return nested if isinstance(nested, dict) else tool
