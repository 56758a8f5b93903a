"""Streams and bodies as providers send them (`providers.md` §3.1), for tests that cut and bend them."""

import json
from typing import Any


def chat_chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    """One chunk of OpenAI's chat stream, framed."""
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_764_000_000,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        "usage": None,
    }
    return b"data: " + json.dumps({**chunk, **more}, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


CHAT_USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 7,
    "total_tokens": 19,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
CHAT_TEXT = 'Grüße, "usage" 世界 \\ 😀 "error"'
CHAT_STREAM = b"".join(
    [
        chat_chunk({"role": "assistant", "content": ""}),
        *[chat_chunk({"content": piece}) for piece in ("Grüße, ", '"usage" ', "世界 \\ ", '😀 "error"')],
        b": keep-alive\n\n",
        chat_chunk({}, "stop"),
        chat_chunk({}, choices=[], usage=CHAT_USAGE),
        b"data: [DONE]\n\n",
    ]
)


def named(name: str, data: dict[str, Any]) -> bytes:
    """One event with a name, as Anthropic and the Responses API send it."""
    body = json.dumps({"type": name, **data}, separators=(",", ":"), ensure_ascii=False).encode()
    return b"event: " + name.encode() + b"\ndata: " + body + b"\n\n"


MESSAGE_STREAM = b"".join(
    [
        named(
            "message_start",
            {
                "message": {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "content": [],
                    "usage": {
                        "input_tokens": 10,
                        "cache_creation_input_tokens": 30,
                        "cache_read_input_tokens": 5,
                        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
                        "output_tokens": 1,
                    },
                }
            },
        ),
        named("ping", {}),
        named("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        named("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "Grüße "}}),
        named("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "世界"}}),
        named("content_block_stop", {"index": 0}),
        named(
            "message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 25, "output_tokens": 9}}
        ),
        named("message_stop", {}),
    ]
)

RESPONSES_STREAM = b"".join(
    [
        named("response.created", {"sequence_number": 0, "response": {"id": "r", "status": "in_progress"}}),
        named("response.in_progress", {"sequence_number": 1, "response": {"id": "r", "status": "in_progress"}}),
        named("response.output_item.added", {"sequence_number": 2, "output_index": 0, "item": {"type": "message"}}),
        named("response.output_text.delta", {"sequence_number": 3, "delta": "Grüße"}),
        named("response.output_text.delta", {"sequence_number": 4, "delta": ' "x"'}),
        named(
            "response.completed",
            {
                "sequence_number": 5,
                "response": {
                    "id": "r",
                    "status": "completed",
                    "usage": {
                        "input_tokens": 11,
                        "input_tokens_details": {"cached_tokens": 3},
                        "output_tokens": 6,
                        "output_tokens_details": {"reasoning_tokens": 1},
                    },
                },
            },
        ),
    ]
)


def gemini_chunk(parts: list[dict[str, Any]], finish: str | None = None, **usage: int) -> dict[str, Any]:
    """One chunk of Gemini's stream, before it is framed."""
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    chunk: dict[str, Any] = {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "responseId": "resp-1"}
    return {**chunk, "usageMetadata": usage} if usage else chunk


GEMINI_TEXT = 'Grüße, "usageMetadata" 世界 \\ 😀 [{]}'
GEMINI_CHUNKS = [
    gemini_chunk([{"text": "hm", "thought": True}], promptTokenCount=12, totalTokenCount=12),
    gemini_chunk([{"text": "Grüße, "}], promptTokenCount=12, candidatesTokenCount=2, thoughtsTokenCount=3),
    gemini_chunk([{"text": '"usageMetadata" 世界 '}]),
    gemini_chunk(
        [{"text": "\\ 😀 [{]}"}],
        "STOP",
        promptTokenCount=12,
        cachedContentTokenCount=4,
        candidatesTokenCount=7,
        thoughtsTokenCount=3,
        totalTokenCount=22,
    ),
]
GEMINI_STREAM = b"".join(
    b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\r\n\r\n" for chunk in GEMINI_CHUNKS
)
GEMINI_ARRAY = (
    b"["
    + b"\n,\r\n".join(json.dumps(chunk, indent=2, ensure_ascii=False).encode() for chunk in GEMINI_CHUNKS)
    + b"\n]\n"
)
