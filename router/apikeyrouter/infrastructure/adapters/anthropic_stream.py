"""Anthropic streams: named events, cumulative usage, `message_stop` last (`providers.md` §3.1)."""

import re
from collections.abc import Mapping

import msgspec

from apikeyrouter.domain.interfaces.wire import StreamDelta, StreamStep
from apikeyrouter.infrastructure.adapters.json_body import JsonError
from apikeyrouter.infrastructure.adapters.sse import Event
from apikeyrouter.infrastructure.adapters.stream_reader import Classify, EventReader, string_bytes, whole_events
from apikeyrouter.infrastructure.adapters.usage_reader import AnthropicUsage

__all__ = ["FINISH_REASONS", "MessageReader", "finish_reason", "message_delta"]

FINISH_REASONS: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""`stop_reason` in the words of chat (`providers.md` §6)."""

_DELTA = b"event: content_block_delta\ndata: {"
_TEXTS = (b'"text":"', b'"partial_json":"', b'"thinking":"')
_TYPE = re.compile(rb'"type"\s*:\s*"(\w{1,80})"')


class _Started(msgspec.Struct, gc=False):
    usage: AnthropicUsage | None = None


class _Change(msgspec.Struct, gc=False):
    stop_reason: str | None = None
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    id: str = ""
    name: str = ""
    text: str = ""


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    index: int = 0
    message: _Started | None = None
    usage: AnthropicUsage | None = None
    delta: _Change | None = None
    content_block: _Block | None = None


_EVENT = msgspec.json.Decoder(_Event)


def finish_reason(stop_reason: str | None) -> str | None:
    """A stop reason in the words of chat; an unknown one as it is."""
    return None if stop_reason is None else FINISH_REASONS.get(stop_reason, stop_reason)


class MessageReader(EventReader):
    """Reads one stream of the Messages API."""

    __slots__ = ("_counts",)
    terminator = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    def __init__(self, classify: Classify) -> None:
        super().__init__(classify)
        self._counts = AnthropicUsage()

    def _plain(self, chunk: bytes) -> bytes | None:
        events = whole_events(chunk, _DELTA, 3)
        if not events:
            return None
        for event in (chunk,) if events == 1 else chunk.split(b"\n\n")[:-1]:
            self.output_bytes += _text_bytes(event)
        return chunk

    def _read(self, event: Event, step: StreamStep) -> bytes:
        raw, data, name = event
        if data is None:
            return raw
        if self._is_cut(data, step):
            return b""
        kind = name
        if not name:
            kind = _kind(data)
            raw = b"event: " + kind + b"\n" + raw if kind else raw  # the SDK skips what has no name (§3.2)
        if kind == b"content_block_delta":
            self._begun = True
            self.output_bytes += _text_bytes(data)
        elif kind == b"content_block_start":
            self._begun = True
        elif kind == b"message_start" or kind == b"message_delta":
            self._count(data)
        elif kind == b"message_stop":
            self._end_here(step)
        elif kind == b"error":
            return self._fail(data, step)
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
            self.finish_reason = finish_reason(event.delta.stop_reason)
            self._begun = True


def _kind(data: bytes) -> bytes:
    found = _TYPE.search(data)
    return found.group(1) if found else b""


def _text_bytes(data: bytes) -> int:
    for mark in _TEXTS:
        start = data.find(mark)
        if start >= 0:
            return string_bytes(data, start + len(mark))
    try:
        delta = _EVENT.decode(data[data.find(b"{") :]).delta or _Change()
    except JsonError:
        return 0
    text = delta.text or delta.partial_json or delta.thinking or ""
    return len(text.encode("utf-8", "surrogatepass"))


def message_delta(name: bytes, data: bytes) -> StreamDelta | None:
    """What one event adds to the answer; None when that is nothing."""
    kind = name or _kind(data)
    if kind not in (b"content_block_start", b"content_block_delta", b"message_delta"):
        return None
    try:
        event = _EVENT.decode(data)
    except JsonError:
        return None
    block, change = event.content_block, event.delta
    if block is not None:
        return _begun(event.index, block)
    if change is None:
        return None
    if kind == b"message_delta":
        return StreamDelta(finish_reason=finish_reason(change.stop_reason))
    if change.partial_json is not None:
        return StreamDelta(tool_calls=({"index": event.index, "function": {"arguments": change.partial_json}},))
    return StreamDelta(text=change.text or "", reasoning=change.thinking or "")


def _begun(index: int, block: _Block) -> StreamDelta | None:
    if block.type == "tool_use":
        function = {"name": block.name, "arguments": ""}
        return StreamDelta(tool_calls=({"index": index, "id": block.id, "type": "function", "function": function},))
    return StreamDelta(text=block.text) if block.type == "text" and block.text else None
