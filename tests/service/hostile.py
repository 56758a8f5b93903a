"""Upstreams that answer however they like: one good answer, and all that can be done to it on its way. Bytes only."""

import gzip
import json
import zlib
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

__all__ = ["ANSWERS", "Asked", "Hostile", "hostile", "told"]

TEXT = "Grüße, 世界! 🎈 so far so good"
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5", "gemini": "gemini-2.5-flash"}
GIANT_BYTES = 1 << 19
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One way to ask."""

    dialect: str
    stream: bool

    @property
    def path(self) -> str:
        """Where."""
        if self.dialect == "gemini":
            method = "streamGenerateContent?alt=sse" if self.stream else "generateContent"
            return f"/v1beta/models/{MODELS['gemini']}:{method}"
        return "/v1/messages" if self.dialect == "anthropic" else "/v1/chat/completions"

    @property
    def body(self) -> dict[str, Any]:
        """What."""
        if self.dialect == "gemini":
            return {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
        said = {"model": MODELS[self.dialect], "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
        return {**said, "stream": True} if self.stream else said


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _chat(stream: bool) -> bytes:
    head: dict[str, Any] = {"id": "chatcmpl-1", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    if not stream:
        choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        return _json({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": word}, None) for word in (TEXT[:9], TEXT[9:])]
    deltas.append(({}, "stop"))
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": why}]} for delta, why in deltas
    ]
    chunks.append({"choices": [], "usage": usage})
    head["object"] = "chat.completion.chunk"
    return b"".join(b"data: " + _json({**head, **chunk}) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def _message(stream: bool) -> bytes:
    message: dict[str, Any] = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None,
        "content": [{"type": "text", "text": TEXT}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 5, "output_tokens": 7},
    }  # fmt: skip
    if not stream:
        return _json(message)
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT[:9]}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT[9:]}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]
    return b"".join(b"event: " + event["type"].encode() + b"\ndata: " + _json(event) + b"\n\n" for event in events)


def _generate(stream: bool) -> bytes:
    def chunk(text: str, finish: str | None) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
        if finish:
            candidate["finishReason"] = finish
        usage = {"promptTokenCount": 5, "candidatesTokenCount": 7, "totalTokenCount": 12}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}

    if not stream:
        return _json(chunk(TEXT, "STOP"))
    return b"".join(b"data: " + _json(one) + b"\r\n\r\n" for one in (chunk(TEXT[:9], None), chunk(TEXT[9:], "STOP")))


ANSWERS = {"openai": _chat, "anthropic": _message, "gemini": _generate}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """What is done to a good answer. `cut`: the share of its bytes after which the connection ends; None: it is whole.

    `pieces`: how long the pieces are in which it comes, repeated.
    """

    status: int = 200
    prelude: bytes = b""
    version: bytes = b"1.1"
    framing: str = "length"
    coding: str = ""
    body: str = "good"
    header_bytes: int = 0
    cut: float | None = None
    pieces: tuple[int, ...] = (65536,)

    @property
    def harmless(self) -> bool:
        """Whether nothing was done that an HTTP client must not put up with."""
        framed = self.framing in ("length", "chunked", "until closed")
        return (
            self.status == 200 and framed and self.coding in ("", "gzip", "deflate") and self.cut is None
            and self.body in ("good", "padded") and self.header_bytes < 8192
        )  # fmt: skip

    @property
    def alters_text(self) -> bool:
        """Whether the text that comes through may be another."""
        return self.body in ("rubbish inside", "bad UTF-8")

    def closes(self) -> bool:
        """Whether the connection ends with the answer."""
        return (
            self.cut is not None or self.framing in ("until closed", "too long", "too short") or self.version == b"1.0"
        )

    def written(self, asked: Asked) -> list[bytes]:
        """The answer's bytes, in pieces."""
        body = _coded(self.coding, _mistreated(self.body, ANSWERS[asked.dialect](asked.stream), asked))
        kind = b"text/html" if self.body == "page" else b"text/event-stream" if asked.stream else b"application/json"
        head = b"HTTP/%b %d Whatever\r\nContent-Type: %b\r\n" % (self.version, self.status, kind)
        if self.coding:
            head += b"Content-Encoding: %b\r\n" % self.coding.removesuffix(" lie").encode()
        if self.header_bytes:
            head += b"X-Long: %b\r\n" % (b"x" * self.header_bytes)
        if self.framing.startswith("chunked") and self.version != b"1.0":
            said = head + b"Transfer-Encoding: chunked\r\n\r\n" + _chunked(self.framing, body)
        else:
            change = {"too short": -len(body) // 3, "too long": 50}.get(self.framing, 0)
            length = b"" if self.framing == "until closed" else b"Content-Length: %d\r\n" % (len(body) + change)
            said = head + length + b"\r\n" + body
        said = self.prelude + said
        if self.cut is not None:
            said = said[: int(len(said) * self.cut)]
        return _pieces(said, self.pieces)


def _mistreated(how: str, body: bytes, asked: Asked) -> bytes:
    middle = len(body) // 2
    if how == "page":
        return b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
    if how == "empty":
        return b""
    if how == "rubbish inside":
        return body[:middle] + b'\x00\xff{]"\n\ndata: }\n\n' + body[middle:]
    if how == "bad UTF-8":
        return body.replace("世".encode(), b"\xe4\xb8")
    if how == "padded":
        return (
            (b": " + b"x" * 99 + b"\n\n") * 50 + body if asked.stream and asked.dialect != "gemini" else b"\n " + body
        )
    if how == "giant line":
        return b"data: " + b"x" * GIANT_BYTES + body
    if how == "another's":
        others = {"openai": "anthropic", "anthropic": "gemini", "gemini": "openai"}
        return ANSWERS[others[asked.dialect]](asked.stream)
    if how == "numbers":
        return b"data: [1, null]\n\n" if asked.stream else b"[1, null]"
    if how == "deep":
        return b'data: {"a":' + b"[" * 5000 + b"\n\n" if asked.stream else b'{"a":' + b"[" * 5000
    return body


def _coded(coding: str, body: bytes) -> bytes:
    if coding == "gzip":
        return gzip.compress(body)
    if coding == "deflate":
        return zlib.compress(body)
    return body  # what it claims to be, it is not


def _chunked(framing: str, body: bytes) -> bytes:
    extension = b';name="value";other' if framing == "chunked" else b""
    said = b"".join(
        b"%x%b\r\n%b\r\n" % (len(body[at : at + 37]), extension, body[at : at + 37]) for at in range(0, len(body), 37)
    )
    if framing == "chunked, no end":
        return said
    if framing == "chunked, bad size":
        return said + b"zz\r\n"
    return said + b"0\r\nX-Trailer: 1\r\n\r\n"


def _pieces(said: bytes, sizes: tuple[int, ...]) -> list[bytes]:
    found, at, turn = [], 0, 0
    while at < len(said):
        size = sizes[turn % len(sizes)] if turn < 200 else len(said)
        found.append(said[at : at + size])
        at, turn = at + size, turn + 1
    return found


def hostile() -> st.SearchStrategy[Hostile]:
    """Any of them."""
    return st.builds(
        Hostile,
        status=st.sampled_from([200, 200, 200, 200, 200, 201, 301, 418, 500, 502]),
        prelude=st.sampled_from([b"", b"", CONTINUE, b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"]),
        version=st.sampled_from([b"1.1", b"1.1", b"1.0"]),
        framing=st.sampled_from(
            ["length", "length", "chunked", "chunked", "until closed", "too short", "too long", "chunked, no end",
             "chunked, bad size"]
        ),
        coding=st.sampled_from(["", "", "", "gzip", "deflate", "gzip lie", "br", "zstd", "what?"]),
        body=st.sampled_from(
            ["good", "good", "good", "padded", "page", "empty", "rubbish inside", "bad UTF-8", "giant line",
             "another's", "numbers", "deep"]
        ),
        header_bytes=st.sampled_from([0, 0, 0, 1000, 1 << 20]),
        cut=st.none() | st.none() | st.floats(0, 1),
        pieces=st.lists(st.sampled_from([1, 2, 3, 7, 64, 1000, 65536]), min_size=1, max_size=4).map(tuple),
    )  # fmt: skip


def told(asked: Asked, body: bytes) -> tuple[str, bool, bool]:
    """(text, whether it says that it is complete, whether it says that something was wrong) of a client's stream."""
    text, complete, wrong = "", False, False
    for line in body.decode("utf-8", "replace").splitlines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            complete = True
            continue
        try:
            event = json.loads(line[6:])
        except ValueError:
            continue
        if not isinstance(event, dict):
            continue
        wrong = wrong or "error" in event
        if asked.dialect == "openai":
            text += "".join((choice.get("delta") or {}).get("content") or "" for choice in event.get("choices") or ())
        elif asked.dialect == "anthropic":
            text += (event.get("delta") or {}).get("text") or ""
            complete = complete or event.get("type") == "message_stop"
        else:
            for candidate in event.get("candidates") or ():
                text += "".join(part.get("text", "") for part in candidate["content"]["parts"])
                complete = complete or "finishReason" in candidate
    return text, complete, wrong
