"""What is sent and answered: about one kilobyte each way, with a usage that costs a known number of nano-dollars."""

import json

__all__ = [
    "ANSWER", "ANSWER_HEADERS", "COMPLETION_TOKENS", "COST_NANOUSD", "INPUT_USD", "MODEL", "OUTPUT_USD", "PATH",
    "PROMPT_TOKENS", "RPM", "STREAM_EVENTS", "TPM",
    "request_body", "stream_events",
]  # fmt: skip

MODEL = "gpt-4o-mini"
PATH = "/v1/chat/completions"
PROMPT_TOKENS, COMPLETION_TOKENS = 200, 60
INPUT_USD, OUTPUT_USD = 0.15, 0.60
"""Dollars per million tokens."""
COST_NANOUSD = PROMPT_TOKENS * 150 + COMPLETION_TOKENS * 600
"""What one answer costs: 0.15 $ per million tokens are 150 nano-dollars per token."""
RPM, TPM = 10_000_000, 140_000_000
"""Limits of the quota group: more than a benchmark can use, so that nothing is denied."""
STREAM_EVENTS = 64
"""Events of one streamed answer that carry text."""
_USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
_SAID = "The quick brown fox jumps over the lazy dog, and nobody minds. "

ANSWER: bytes = json.dumps(
    {
        "id": "chatcmpl-BenchBenchBenchBenchBenchBe",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": _SAID * 7, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_0000000000",
    }
).encode()
"""The fixed answer of the upstream that costs nothing."""

ANSWER_HEADERS: tuple[tuple[str, str], ...] = (
    ("x-request-id", "req_00000000000000000000000000000000"),
    ("openai-processing-ms", "1"),
    ("openai-version", "2020-10-01"),
    ("x-ratelimit-limit-requests", str(RPM)),
    ("x-ratelimit-limit-tokens", str(TPM)),
    ("x-ratelimit-remaining-requests", str(RPM - 1)),
    ("x-ratelimit-remaining-tokens", str(TPM - 400)),
    ("x-ratelimit-reset-requests", "6ms"),
    ("x-ratelimit-reset-tokens", "1ms"),
)


def request_body(*, stream: bool = False, kilobytes: int = 1) -> bytes:
    """A chat request of about so many kilobytes, with a cap on its output, written as the official SDKs write it."""
    messages = [
        {"role": "system", "content": "You are a concise assistant. " + _SAID * 3},
        {"role": "user", "content": _SAID * (10 + 16 * (kilobytes - 1))},
    ]
    body = {"model": MODEL, "messages": messages, "temperature": 0.2, "max_tokens": 100}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def stream_events() -> list[bytes]:
    """The events of a streamed answer, in order: STREAM_EVENTS with text, the end, the usage, and the mark."""
    pieces = [({"content": " word"}, None) for _ in range(STREAM_EVENTS)]
    events = [_event([{"index": 0, "delta": delta, "finish_reason": why}], None) for delta, why in pieces]
    events.append(_event([{"index": 0, "delta": {}, "finish_reason": "stop"}], None))
    events.append(_event([], _USAGE))
    events.append(b"data: [DONE]\n\n")
    return events


def _event(choices: list[dict[str, object]], usage: object) -> bytes:
    chunk = {
        "id": "chatcmpl-BenchBenchBenchBenchBenchBe",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": choices,
        "usage": usage,
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
