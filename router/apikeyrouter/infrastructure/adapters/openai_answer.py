"""Complete answers of OpenAI's operations, read: chat, completions, responses and embeddings."""

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import Any

import msgspec

from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.domain.models.wire import Answer
from apikeyrouter.infrastructure.adapters.json_body import JsonError
from apikeyrouter.infrastructure.adapters.responses_stream import FINISH_REASONS
from apikeyrouter.infrastructure.adapters.usage_reader import OpenAIUsage

__all__ = ["read_answer", "read_usage"]


class _UsageOnly(msgspec.Struct, gc=False):
    usage: OpenAIUsage | None = None
    service_tier: str | None = None


class _Content(msgspec.Struct, gc=False):
    """A part of content: chat's (Mistral nests `thinking`), or one of a response's item."""

    type: str = ""
    text: str = ""
    refusal: str = ""
    thinking: list["_Content"] | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | list[_Content] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, object]] | None = None
    function_call: dict[str, object] | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Item(msgspec.Struct, gc=False):
    """An item of a response's output."""

    type: str = ""
    content: list[_Content] | None = None
    summary: list[_Content] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Vector(msgspec.Struct, gc=False):
    embedding: list[float] | str | None = None


class _Answer(_UsageOnly, gc=False):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    output: list[_Item] | None = None
    data: list[_Vector] | None = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None


_USAGE = msgspec.json.Decoder(_UsageOnly)
_ANSWER = msgspec.json.Decoder(_Answer)


def read_usage(body: bytes, *, tells_cost: bool) -> Usage | None:
    """Usage of a complete answer; None when it has none or the bytes are no answer."""
    try:
        answer = _USAGE.decode(body)
    except JsonError:
        return None
    return _usage(answer, tells_cost)


def read_answer(body: bytes, decoded: Mapping[str, Any] | None = None, *, tells_cost: bool) -> Answer:
    """The answer, its first choice; an empty one when the bytes are none. `decoded`: what the bytes say, if known."""
    try:
        answer = _ANSWER.decode(body) if decoded is None else msgspec.convert(decoded, _Answer)
    except JsonError:
        return Answer(usage=read_usage(body, tells_cost=tells_cost))
    usage = _usage(answer, tells_cost)
    model, id_ = answer.model or "", answer.id or ""
    if answer.choices:
        return _chat(answer.choices[0], usage, model, id_)
    if answer.output is not None:
        return _response(answer, answer.output, usage, model, id_)
    vectors = tuple(_vector(entry.embedding) for entry in answer.data or ())
    return Answer(usage=usage, model=model, id=id_, embeddings=vectors)


def _usage(told: _UsageOnly, tells_cost: bool) -> Usage | None:
    return None if told.usage is None else told.usage.read(told.service_tier, tells_cost=tells_cost)


def _chat(choice: _Choice, usage: Usage | None, model: str, id_: str) -> Answer:
    message = choice.message or _Message()
    parts = message.content if isinstance(message.content, list) else []
    text = "".join([part.text for part in parts]) if parts else message.content
    thought = "".join([inner.text for part in parts for inner in part.thinking or ()])
    calls = list(message.tool_calls or ())
    if message.function_call:
        calls.append({"type": "function", "function": message.function_call})
    return Answer(
        text=text if isinstance(text, str) else choice.text or "",
        reasoning=thought or message.reasoning_content or message.reasoning or "",
        refusal=message.refusal or "",
        tool_calls=tuple(calls),
        finish_reason=choice.finish_reason,
        usage=usage,
        model=model,
        id=id_,
    )


def _response(answer: _Answer, output: list[_Item], usage: Usage | None, model: str, id_: str) -> Answer:
    said = [part for item in output for part in item.content or () if item.type == "message"]
    calls = tuple(_function_call(item) for item in output if item.type == "function_call")
    reason = (answer.incomplete_details.reason if answer.incomplete_details else None) or answer.status
    finish = FINISH_REASONS.get(reason or "", reason)
    return Answer(
        text="".join([part.text for part in said]),
        reasoning="".join([part.text for item in output if item.type == "reasoning" for part in item.summary or ()]),
        refusal="".join([part.refusal for part in said]),
        tool_calls=calls,
        finish_reason="tool_calls" if calls and finish == "stop" else finish,
        usage=usage,
        model=model,
        id=id_,
    )


def _function_call(item: _Item) -> dict[str, object]:
    """A response's function call in the shape of chat."""
    return {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}


def _vector(embedding: list[float] | str | None) -> list[float]:
    """The vector; in `base64` it is 32-bit floats, little endian."""
    if not isinstance(embedding, str):
        return embedding or []
    try:
        packed = base64.b64decode(embedding, validate=True)
        return list(struct.unpack(f"<{len(packed) // 4}f", packed))
    except (binascii.Error, ValueError, struct.error):
        return []
