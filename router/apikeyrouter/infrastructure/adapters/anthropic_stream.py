"""Anthropic streams, read as they pass: named events, cumulative usage, `message_stop` last (`providers.md` §3.1)."""

import re

import msgspec

from apikeyrouter.domain.interfaces.wire import StreamDelta, StreamStep
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.json_body import JsonError
from apikeyrouter.infrastructure.adapters.openai_stream import Classify, _string_bytes
from apikeyrouter.infrastructure.adapters.sse import Event, EventTooLongError, SSEParser
from apikeyrouter.infrastructure.adapters.stream_failures import truncated, unreadable
from apikeyrouter.infrastructure.adapters.usage_reader import AnthropicUsage


class _Started(msgspec.Struct, gc=False):
    usage: AnthropicUsage | None = None


class _Change(msgspec.Struct, gc=False):
    stop_reason: str | None = None
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    message: _Started | None = None
    usage: AnthropicUsage | None = None
    delta: _Change | None = None
    content_block: msgspec.Raw = msgspec.Raw()


_EVENT = msgspec.json.Decoder(_Event)
_TYPE = re.compile(rb'"type"\s*:\s*"(\w{1,80})"')
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_DELTA = b"event: content_block_delta\ndata: "
_TEXTS = (b'"text":"', b'"partial_json":"', b'"thinking":"')


class AnthropicStream:
    """Reads one stream of the Messages API. Implements `StreamReader`."""

    __slots__ = ("_begun", "_classify", "_counts", "_done", "_parser", "finish_reason", "output_bytes", "usage")

    def __init__(self, classify: Classify) -> None:
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.output_bytes = 0
        self._classify = classify
        self._counts = AnthropicUsage()
        self._parser = SSEParser()
        self._begun = False
        self._done = False

    def feed(self, chunk: bytes) -> StreamStep:
        """Read bytes as they come, split anywhere. After `message_stop` nothing more is passed on."""
        if self._begun and not self._done and self._parser.idle and _is_one_delta(chunk):
            self.output_bytes += _text_bytes(chunk)
            return StreamStep(out=chunk, substantive=True)
        step = StreamStep(substantive=self._begun, done=self._done)
        if self._done:
            return step
        try:
            events = self._parser.feed(chunk)
        except EventTooLongError as exc:
            step.failure = unreadable(str(exc))
            return step
        if len(events) == 1:
            step.out = self._read(events[0], step)
        elif events:
            step.out = self._read_all(events, step)
        step.substantive = self._begun
        return step

    def end(self) -> StreamStep:
        """The connection closed. Complete if `message_stop` or a stop reason was seen; otherwise a truncation."""
        step = StreamStep(substantive=self._begun, done=self._done)
        if self._done:
            return step
        left = self._parser.end()
        if left is not None:
            out = self._read(left, step)
            step.out = out.rstrip(b"\r\n") + b"\n\n" if out else b""
        if step.failure is None and not step.done:
            if self.finish_reason is not None:
                step.out += _STOP
                step.done = self._done = True
            else:
                step.failure = truncated()
        step.substantive = self._begun
        return step

    def _read_all(self, events: list[Event], step: StreamStep) -> bytes:
        parts = []
        for event in events:
            parts.append(self._read(event, step))
            if step.done or step.failure is not None:
                break
        return b"".join(parts)

    def _read(self, event: Event, step: StreamStep) -> bytes:
        raw, data, name = event
        if data is None:
            return raw
        kind = name or _kind(data)
        if kind == b"content_block_delta":
            self._begun = True
            self.output_bytes += _text_bytes(data)
        elif kind == b"content_block_start":
            self._begun = True
        elif kind == b"message_start" or kind == b"message_delta":
            self._count(data)
        elif kind == b"message_stop":
            self._done = step.done = True
        elif kind == b"error":
            step.failure = self._classify(200, {}, data)
            return b""
        return raw

    def _count(self, data: bytes) -> None:
        try:
            event = _EVENT.decode(data)
        except JsonError:
            return
        counts = event.usage or (event.message.usage if event.message else None)
        if counts is not None:
            self._counts.merged(counts)
            self.usage = self._counts.read() or self.usage
        if event.delta is not None and event.delta.stop_reason:
            self.finish_reason = event.delta.stop_reason
            self._begun = True


def _is_one_delta(chunk: bytes) -> bool:
    """The usual chunk: one `content_block_delta`, with LF line ends, its text where it is looked for."""
    return (
        chunk.startswith(_DELTA)
        and chunk.find(b"\n", len(_DELTA)) == len(chunk) - 2
        and chunk.endswith(b"\n\n")
        and b"\r" not in chunk
    )


def _kind(data: bytes) -> bytes:
    found = _TYPE.search(data)
    return found.group(1) if found else b""


def _text_bytes(data: bytes) -> int:
    for start_mark in _TEXTS:
        start = data.find(start_mark)
        if start >= 0:
            return _string_bytes(data, start + len(start_mark))
    try:
        delta = _EVENT.decode(data[data.find(b"{") :]).delta or _Change()
    except JsonError:
        return 0
    text = delta.text or delta.partial_json or delta.thinking or ""
    return len(text.encode("utf-8", "surrogatepass"))


def read_deltas(events: bytes) -> list[StreamDelta]:
    """What whole events add to the answer. Tool calls come as `{"content_block":…}` and `{"partial_json":…}`."""
    found = []
    for _, data, name in SSEParser().feed(events):
        delta = _delta(name or _kind(data), data) if data is not None else None
        if delta is not None:
            found.append(delta)
    return found


def _delta(kind: bytes, data: bytes) -> StreamDelta | None:
    if kind not in (b"content_block_start", b"content_block_delta", b"message_delta"):
        return None
    try:
        event = _EVENT.decode(data)
    except JsonError:
        return None
    change = event.delta
    if kind == b"content_block_start":
        block = bytes(event.content_block)
        return StreamDelta(tool_calls=data) if b'"tool_use"' in block else None
    if change is None:
        return None
    if kind == b"message_delta":
        return StreamDelta(finish_reason=change.stop_reason)
    calls = data if change.partial_json is not None else b""
    return StreamDelta(text=change.text or "", reasoning=change.thinking or "", tool_calls=calls)
