"""The Gemini dialect's requests: decoded, checked, understood."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct, field

from apikeyrouter.simulator.calls import Call, InvalidRequest, Prompt, ToolUse
from apikeyrouter.simulator.http_server import Request
from apikeyrouter.simulator.prompts import demanded_form, sample_arguments
from apikeyrouter.simulator.tokens import (
    TOKENS_PER_FILE,
    TOKENS_PER_IMAGE,
    Markers,
    read_markers,
    text_bytes,
    tokens_of_bytes,
)

__all__ = ["PATH", "parse_gemini"]

PATH = re.compile(r"/v1(?:beta)?/(?:models|tunedModels)/([^/:]+):(\w+)")
_METHODS = {
    "generateContent": "generate", "streamGenerateContent": "generate", "embedContent": "embeddings",
    "batchEmbedContents": "embeddings", "countTokens": "count_tokens",
}  # fmt: skip


class _Blob(Struct, rename="camel"):
    mime_type: str
    data: str


class _Part(Struct, rename="camel"):
    text: str = ""
    inline_data: _Blob | None = None
    file_data: Raw = Raw()
    function_call: Raw = Raw()
    function_response: Raw = Raw()
    thought: bool = False


class _Content(Struct):
    parts: list[_Part] = []
    role: str = "user"


class _Config(Struct, rename="camel"):
    max_output_tokens: int | None = None
    candidate_count: int = 1
    stop_sequences: list[str] = []
    response_schema: Raw = Raw()
    response_json_schema: Raw = Raw()


class _Calling(Struct, rename="camel"):
    mode: str = "AUTO"
    allowed_function_names: list[str] = []


class _ToolConfig(Struct, rename="camel"):
    function_calling_config: _Calling = field(default_factory=_Calling)


class _Function(Struct):
    """The API takes both spellings, and the SDK writes the second."""

    name: str
    parameters: Any = None
    schema: Any = field(name="parametersJsonSchema", default=None)
    schema_snake: Any = field(name="parameters_json_schema", default=None)


class _Tool(Struct, rename="camel"):
    function_declarations: list[_Function] = []


class _Generate(Struct, rename="camel"):
    contents: list[_Content]
    system_instruction: _Content | None = None
    generation_config: _Config = field(default_factory=_Config)
    tools: list[_Tool] = []
    tool_config: _ToolConfig = field(default_factory=_ToolConfig)


class _Embed(Struct):
    content: _Content


class _Batch(Struct):
    requests: list[_Embed]


class _Count(Struct, rename="camel"):
    contents: list[_Content] = []
    generate_content_request: _Generate | None = None


def parse_gemini(request: Request) -> Call:
    """Any method of ``/v1beta/models/{model}:{method}``; raises :class:`InvalidRequest`."""
    found = PATH.fullmatch(request.path)
    assert found is not None
    model, method = unquote(found[1]), found[2]
    if method in ("embedContent", "batchEmbedContents"):
        return _embedding(request.body, model, many=method[0] == "b")
    if method == "countTokens":
        counted = _decode(request.body, _Count)
        inner = counted.generate_content_request
        contents = inner.contents if inner is not None else counted.contents
        return Call("count_tokens", model, _measure(contents).tokens(), read_markers(""))
    return _generate(_decode(request.body, _Generate), request, model, stream=method.startswith("stream"))


def _generate(body: _Generate, request: Request, model: str, *, stream: bool) -> Call:
    if not body.contents:
        raise InvalidRequest("* GenerateContentRequest.contents: contents is not specified")
    config = body.generation_config
    if config.max_output_tokens is not None and config.max_output_tokens < 1:
        raise InvalidRequest("max_output_tokens must be positive.")
    system = [body.system_instruction] if body.system_instruction is not None else []
    markers = read_markers(_last_user_text(body.contents))
    tools = [function for tool in body.tools for function in tool.function_declarations]
    return Call(
        "generate",
        model,
        _measure(body.contents, *system, extra=sum(len(msgspec.json.encode(tool)) for tool in tools)).tokens(),
        markers,
        stream=stream,
        cap=config.max_output_tokens,
        choices=config.candidate_count,
        style="sse" if "alt=sse" in request.query else "array",
        tool=_forced_tool(tools, body.tool_config.function_calling_config, markers),
        form=demanded_form(config.response_json_schema or config.response_schema),
        prefix=(model, "\n".join(part.text for content in body.contents for part in content.parts)[:4096]),
    )


def _embedding(body: bytes, model: str, *, many: bool) -> Call:
    contents = [e.content for e in _decode(body, _Batch).requests] if many else [_decode(body, _Embed).content]
    size = sum(text_bytes(part.text) for content in contents for part in content.parts)
    call = Call("embeddings", model, max(1, tokens_of_bytes(size)), read_markers(_last_user_text(contents)))
    call.choices = len(contents)
    call.style = "batch" if many else ""
    return call


def _decode(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid JSON payload received. {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"Invalid JSON payload received. {error}") from error


def _measure(contents: list[_Content], *more: _Content, extra: int = 0) -> Prompt:
    size, flat = extra, 0
    for content in [*contents, *more]:
        for part in content.parts:
            size += text_bytes(part.text) + len(part.function_call) + len(part.function_response)
            if part.inline_data is not None:
                flat += TOKENS_PER_IMAGE if part.inline_data.mime_type.startswith("image/") else TOKENS_PER_FILE
            elif part.file_data:
                flat += TOKENS_PER_FILE
    return Prompt(size, len(contents), flat)


def _last_user_text(contents: list[_Content]) -> str:
    for content in reversed(contents):
        if content.role == "user":
            return " ".join(part.text for part in content.parts if part.text)
    return ""


def _forced_tool(tools: list[_Function], calling: _Calling, markers: Markers) -> ToolUse | None:
    if not tools or (calling.mode != "ANY" and not (markers.tool and calling.mode == "AUTO")):
        return None
    for tool in tools:
        if not calling.allowed_function_names or tool.name in calling.allowed_function_names:
            return ToolUse(tool.name, sample_arguments(tool.schema or tool.schema_snake or tool.parameters or {}))
    raise InvalidRequest("allowed_function_names should be a subset of the declared functions.")
