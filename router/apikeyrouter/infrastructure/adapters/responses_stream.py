"""Streams of OpenAI's Responses API: named events, no `[DONE]`; its last event says so (`providers.md` §3.1)."""

import re

import msgspec

from apikeyrouter.domain.interfaces.wire import StreamDelta, StreamStep
from apikeyrouter.infrastructure.adapters.json_body import JsonError
from apikeyrouter.infrastructure.adapters.sse import Event
from apikeyrouter.infrastructure.adapters.stream_reader import EventReader, string_bytes, whole_events
from apikeyrouter.infrastructure.adapters.usage_reader import OpenAIUsage

__all__ = ["FINISH_REASONS", "ResponsesReader", "response_delta"]

FINISH_REASONS = {"completed": "stop", "max_output_tokens": "length"}
"""A response's status, or why it is incomplete, in the words of chat."""

_TEXT_DELTA = b"event: response.output_text.delta\ndata: {"
_TEXT = b'"delta":"'
_TYPE = re.compile(rb'"type"\s*:\s*"([\w.]{1,80})"')
_NOT_YET = frozenset({b"response.created", b"response.queued", b"response.in_progress", b"ping", b"keepalive"})
_LAST = frozenset({b"response.completed", b"response.incomplete", b"response.failed", b"response.cancelled"})


class _Failed(msgspec.Struct, gc=False):
    code: str | int | None = None
    message: str | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Item(msgspec.Struct, gc=False):
    type: str = ""
    call_id: str | None = None
    name: str | None = None


class _Response(msgspec.Struct, gc=False):
    usage: OpenAIUsage | None = None
    status: str | None = None
    error: _Failed | None = None
    incomplete_details: _Incomplete | None = None
    service_tier: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    response: _Response | None = None
    delta: str | None = None
    output_index: int = 0
    item: _Item | None = None


_EVENT = msgspec.json.Decoder(_Event)


class ResponsesReader(EventReader):
    """Reads one stream of the Responses API."""

    __slots__ = ()

    def _plain(self, chunk: bytes) -> bytes | None:
        events = whole_events(chunk, _TEXT_DELTA, 3)
        size = place = 0
        for _ in range(events):
            start = chunk.find(_TEXT, place)
            if start < 0:
                return None
            place = start + len(_TEXT)
            size += string_bytes(chunk, place)
        self.output_bytes += size
        return chunk if events else None

    def _read(self, event: Event, step: StreamStep) -> bytes:
        raw, data, name = event
        if data is None:
            return raw
        if data[:6] == b"[DONE]":
            self._end_here(step)
            return raw
        if self._is_cut(data, step):
            return b""
        kind = name or _kind(data)
        if kind == b"error" or (kind == b"" and b'"error"' in data):
            return self._fail(data, step)
        if kind in _LAST:
            return self._finish(kind, raw, data, step)
        if kind not in _NOT_YET:
            self._begun = True
        if kind.endswith(b".delta"):
            start = data.find(_TEXT)
            self.output_bytes += string_bytes(data, start + len(_TEXT)) if start >= 0 else _delta_bytes(data)
        return raw

    def _finish(self, kind: bytes, raw: bytes, data: bytes, step: StreamStep) -> bytes:
        try:
            response = _EVENT.decode(data).response or _Response()
        except JsonError:
            response = _Response()
        if response.usage is not None:
            self.usage = response.usage.read(response.service_tier)
        if kind == b"response.failed":
            error = {"code": response.error.code, "message": response.error.message} if response.error else {}
            return self._fail(msgspec.json.encode({"error": error}), step)
        reason = (response.incomplete_details.reason if response.incomplete_details else None) or response.status
        reason = reason or kind[9:].decode("ascii")
        self.finish_reason = FINISH_REASONS.get(reason, reason)
        self._begun = True
        self._end_here(step)
        return raw


def _kind(data: bytes) -> bytes:
    found = _TYPE.search(data)
    return found.group(1) if found else b""


def _delta_bytes(data: bytes) -> int:
    try:
        return len((_EVENT.decode(data).delta or "").encode("utf-8", "surrogatepass"))
    except JsonError:
        return 0


def response_delta(name: bytes, data: bytes) -> StreamDelta | None:
    """What one event adds to the answer: text, refusal, reasoning, a function call; None when that is nothing."""
    kind = name or _kind(data)
    try:
        event = _EVENT.decode(data)
    except JsonError:
        return None
    text = event.delta or ""
    if kind == b"response.output_text.delta":
        return StreamDelta(text=text)
    if kind == b"response.refusal.delta":
        return StreamDelta(refusal=text)
    if kind in (b"response.reasoning_text.delta", b"response.reasoning_summary_text.delta"):
        return StreamDelta(reasoning=text)
    if kind == b"response.function_call_arguments.delta":
        return StreamDelta(tool_calls=({"index": event.output_index, "function": {"arguments": text}},))
    item = event.item
    if kind == b"response.output_item.added" and item is not None and item.type == "function_call":
        function = {"name": item.name, "arguments": ""}
        call = {"index": event.output_index, "id": item.call_id, "type": "function", "function": function}
        return StreamDelta(tool_calls=(call,))
    return None
