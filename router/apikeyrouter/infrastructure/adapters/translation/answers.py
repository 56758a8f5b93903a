"""A complete answer, in the words of chat, written in each dialect."""

import struct
import time
from base64 import b64encode
from typing import Any

import msgspec

from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.domain.models.wire import Answer
from apikeyrouter.infrastructure.adapters.translation.parts import said_arguments

__all__ = [
    "chat_id",
    "chat_usage",
    "completion_id",
    "gemini_finish",
    "gemini_usage",
    "message_id",
    "message_stop",
    "message_usage",
    "write_chat",
    "write_completion",
    "write_embeddings",
    "write_generate",
    "write_message",
]

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use",
          "content_filter": "refusal"}  # fmt: skip
_FINISHES = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "function_call": "STOP",
             "content_filter": "SAFETY"}  # fmt: skip


def message_stop(finish_reason: str | None) -> str:
    """A finish reason as `stop_reason`."""
    return _STOPS.get(finish_reason or "stop", "end_turn")


def gemini_finish(finish_reason: str | None) -> str:
    """A finish reason as `finishReason`."""
    return _FINISHES.get(finish_reason or "stop", "OTHER")


def chat_id(id_: str) -> str:
    """An answer's id as chat names it."""
    return id_ if id_.startswith("chatcmpl-") else "chatcmpl-" + id_.removeprefix("msg_")


def completion_id(id_: str) -> str:
    """An answer's id as completions name it."""
    return "cmpl-" + id_.removeprefix("chatcmpl-").removeprefix("msg_").removeprefix("cmpl-")


def message_id(id_: str) -> str:
    """An answer's id as Messages names it."""
    return id_ if id_.startswith("msg_") else "msg_" + id_.removeprefix("chatcmpl-")


def chat_usage(usage: Usage) -> dict[str, Any]:
    """Usage as chat tells it: all counts inclusive."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def message_usage(usage: Usage) -> dict[str, Any]:
    """Usage as Messages tells it: input without what was read from, or written to, the cache."""
    written = usage.cache_write_tokens + usage.cache_write_long_tokens
    return {
        "input_tokens": usage.input_tokens - usage.cache_read_tokens - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "output_tokens": usage.output_tokens,
    }


def gemini_usage(usage: Usage) -> dict[str, Any]:
    """Usage as Gemini tells it: candidates without thoughts."""
    told = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": usage.output_tokens - usage.reasoning_tokens,
        "totalTokenCount": usage.total_tokens,
    }
    if usage.reasoning_tokens:
        told["thoughtsTokenCount"] = usage.reasoning_tokens
    if usage.cache_read_tokens:
        told["cachedContentTokenCount"] = usage.cache_read_tokens
    return told


def write_chat(answer: Answer, model: str) -> bytes:
    """A `chat.completion`."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": answer.refusal or None}
    if not (answer.tool_calls or answer.refusal):
        message["content"] = answer.text
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = list(answer.tool_calls)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason or "stop"}
    body: dict[str, Any] = {
        "id": chat_id(answer.id),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answer.model or model,
        "system_fingerprint": None,
        "choices": [choice],
    }
    if answer.usage is not None:
        body["usage"] = chat_usage(answer.usage)
    return msgspec.json.encode(body)


def write_completion(answer: Answer, model: str) -> bytes:
    """A `text_completion`. A refusal is its text, as there is no other place for one."""
    choice = {
        "index": 0,
        "text": answer.text or answer.refusal,
        "logprobs": None,
        "finish_reason": answer.finish_reason or "stop",
    }
    body: dict[str, Any] = {
        "id": completion_id(answer.id),
        "object": "text_completion",
        "created": int(time.time()),
        "model": answer.model or model,
        "system_fingerprint": None,
        "choices": [choice],
    }
    if answer.usage is not None:
        body["usage"] = chat_usage(answer.usage)
    return msgspec.json.encode(body)


def write_message(answer: Answer, model: str) -> bytes:
    """A Messages answer. Thoughts carry no signature, so they are not given as blocks that could come back."""
    text = answer.text or answer.refusal
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for call in answer.tool_calls:
        function = call.get("function") or {}
        arguments = said_arguments(function.get("arguments"))
        blocks.append({"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": arguments})
    body = {
        "id": message_id(answer.id),
        "type": "message",
        "role": "assistant",
        "model": answer.model or model,
        "content": blocks,
        "stop_reason": message_stop(answer.finish_reason),
        "stop_sequence": None,
        "usage": message_usage(answer.usage or Usage(input_tokens=0, output_tokens=0)),
    }
    return msgspec.json.encode(body)


def write_generate(answer: Answer, model: str) -> bytes:
    """A generateContent answer."""
    return msgspec.json.encode(gemini_answer(answer, model))


def gemini_answer(answer: Answer, model: str) -> dict[str, Any]:
    """The same, before it is JSON: a chunk of a stream has this shape too."""
    parts: list[dict[str, Any]] = []
    if answer.reasoning:
        parts.append({"text": answer.reasoning, "thought": True})
    if answer.text:
        parts.append({"text": answer.text})
    for call in answer.tool_calls:
        function = call.get("function") or {}
        arguments = said_arguments(function.get("arguments"))
        part: dict[str, Any] = {"functionCall": {"id": call.get("id"), "name": function.get("name"), "args": arguments}}
        parts.append(part)
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if answer.finish_reason:
        candidate["finishReason"] = gemini_finish(answer.finish_reason)
    if answer.refusal:
        candidate["finishMessage"] = answer.refusal
    body: dict[str, Any] = {"candidates": [candidate], "modelVersion": answer.model or model, "responseId": answer.id}
    if answer.usage is not None:
        body["usageMetadata"] = gemini_usage(answer.usage)
    return body


def write_embeddings(answer: Answer, model: str, *, packed: bool = False) -> bytes:
    """An embedding answer in OpenAI's shape. `packed`: vectors as base64 of little-endian 32-bit floats."""
    data = [
        {"object": "embedding", "index": number, "embedding": _packed(vector) if packed else vector}
        for number, vector in enumerate(answer.embeddings)
    ]
    used = answer.usage.input_tokens if answer.usage is not None else 0
    usage = {"prompt_tokens": used, "total_tokens": used}
    return msgspec.json.encode({"object": "list", "data": data, "model": answer.model or model, "usage": usage})


def _packed(vector: list[float]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
