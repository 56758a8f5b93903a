"""What a Gemini request makes the provider count. The reasons are `openai_content`'s; the sizes are Gemini's."""

import msgspec

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters.json_body import decode
from apikeyrouter.infrastructure.adapters.openai_content import AUDIO_BYTES_PER_TOKEN, Measure

__all__ = ["measure_embedding", "measure_generate"]

IMAGE_TOKENS_MAX = 6_192
"""Most tokens one image costs: scaled to at most 3,072 px, cut into at most 24 tiles of 258 tokens (image guide; K).
Gemini 3 counts at most 2,240."""

TOOLS_TOKENS_MAX = 1_024
"""Allowance for the provider's own text around function declarations."""

_UNCOUNTED = frozenset({"model", "contents", "systemInstruction", "system_instruction", "safetySettings", "labels"})


class _Blob(msgspec.Struct, gc=False, rename="camel"):
    mime_type: str = ""
    data: msgspec.Raw = msgspec.Raw()


class _Part(msgspec.Struct, gc=False):
    """A part; the SDKs write camelCase, the API takes snake_case too."""

    text: str = ""
    inline_camel: _Blob | None = msgspec.field(name="inlineData", default=None)
    inline_snake: msgspec.Raw = msgspec.field(name="inline_data", default=msgspec.Raw())
    file_camel: msgspec.Raw = msgspec.field(name="fileData", default=msgspec.Raw())
    file_snake: msgspec.Raw = msgspec.field(name="file_data", default=msgspec.Raw())
    call: msgspec.Raw = msgspec.field(name="functionCall", default=msgspec.Raw())
    answer: msgspec.Raw = msgspec.field(name="functionResponse", default=msgspec.Raw())


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _Tool(msgspec.Struct, gc=False):
    camel: msgspec.Raw = msgspec.field(name="functionDeclarations", default=msgspec.Raw())
    snake: msgspec.Raw = msgspec.field(name="function_declarations", default=msgspec.Raw())


class _EmbedRequest(msgspec.Struct, gc=False):
    content: _Content | None = None


_CONTENTS = msgspec.json.Decoder(list[_Content])
_SYSTEM = msgspec.json.Decoder(_Content | None)
_TOOLS = msgspec.json.Decoder(list[_Tool] | None)
_CONTENT = msgspec.json.Decoder(_Content)
_REQUESTS = msgspec.json.Decoder(list[_EmbedRequest])


def measure_generate(fields: dict[str, bytes]) -> Measure:
    """Size of a generateContent or countTokens request. Raises InvalidRequestError naming the wrong part."""
    raw = fields.get("contents")
    if raw is None:
        raise InvalidRequestError("is required", field="contents")
    contents: list[_Content] = decode(_CONTENTS, raw, "contents")
    if not contents:
        raise InvalidRequestError("must not be empty", field="contents")
    total = Measure(raw=len(raw), messages=len(contents))
    for content in contents:
        _add(total, content)
    for name in ("systemInstruction", "system_instruction"):
        system = fields.get(name)
        if system is not None:
            total.raw += len(system)
            found = decode(_SYSTEM, system, name)
            if found is not None:
                _add(total, found)
    _add_members(total, fields)
    return total


def measure_embedding(fields: dict[str, bytes]) -> Measure:
    """Size of an embedContent or batchEmbedContents request."""
    if "requests" in fields:
        contents = [request.content for request in decode(_REQUESTS, fields["requests"], "requests")]
    elif "content" in fields:
        contents = [decode(_CONTENT, fields["content"], "content")]
    else:
        raise InvalidRequestError("is required", field="content")
    total = Measure(raw=sum(len(raw) for raw in fields.values()), messages=len(contents))
    for content in contents:
        if content is not None:
            _add(total, content)
    return total


def _add_members(total: Measure, fields: dict[str, bytes]) -> None:
    for name, raw in fields.items():
        if name not in _UNCOUNTED:
            total.raw += len(raw)
            if name in ("tools", "generationConfig", "generation_config"):
                total.text += len(raw)
    if "tools" in fields:
        total.extra += TOOLS_TOKENS_MAX
        listed = decode(_TOOLS, fields["tools"], "tools")
        if any(not (tool.camel or tool.snake) for tool in listed or ()):
            total.unbounded = total.open_ended = True  # search, code, URLs: the provider adds input by itself
    if "cachedContent" in fields or "cached_content" in fields:
        total.unbounded = True


def _add(total: Measure, content: _Content) -> None:
    for part in content.parts or ():
        if part.text:
            total.add_text(part.text)
        total.text += len(part.call) + len(part.answer)
        blob = part.inline_camel
        if blob is not None:
            _add_blob(total, blob)
        elif part.inline_snake or part.file_camel or part.file_snake:
            total.media += 1
            total.unbounded = True


def _add_blob(total: Measure, blob: _Blob) -> None:
    size = len(blob.data)
    if blob.mime_type.startswith("image/"):
        total.add_image(size, IMAGE_TOKENS_MAX)
    elif blob.mime_type.startswith("audio/"):
        total.add_image(size, size // AUDIO_BYTES_PER_TOKEN + 64)
    else:
        total.media += 1
        total.unbounded = True
