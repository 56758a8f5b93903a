"""One reader for every dialect's streams: framing, where the answer begins, how it ends. A dialect says what an event
means; bytes pass untouched, and what can only be text is not decoded.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import msgspec

from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.domain.models.wire import StreamStep
from apikeyrouter.infrastructure.adapters.json_body import JsonError
from apikeyrouter.infrastructure.adapters.sse import Event, EventTooLongError, SSEParser
from apikeyrouter.infrastructure.adapters.stream_failures import truncated, unreadable

__all__ = ["Classify", "EventReader", "Frames", "string_bytes", "whole_events"]

Classify = Callable[[int, Mapping[str, str], bytes], Failure]


class Frames(Protocol):
    """Cuts bytes into events; `pending` is what has come of an unfinished one."""

    pending: list[bytes]

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes. Raises EventTooLongError."""
        ...

    def end(self) -> Event | None:
        """What is left at the end of the stream, read as an event."""
        ...


class EventReader(ABC):
    """Reads one stream. Implements `StreamReader`; a subclass reads one dialect's events."""

    __slots__ = ("_begun", "_classify", "_done", "_frames", "_pending", "finish_reason", "output_bytes", "usage")

    terminator: ClassVar[bytes | None] = None
    """What is supplied when the provider left its last event out although it gave a finish reason. None: a stream
    without its last event is a truncation."""

    def __init__(self, classify: Classify, frames: Frames | None = None) -> None:
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.output_bytes = 0
        self._classify = classify
        self._frames: Frames = frames or SSEParser()
        self._pending = self._frames.pending
        self._begun = False
        self._done = False

    @abstractmethod
    def _read(self, event: Event, step: StreamStep) -> bytes:
        """What to pass on of one event. Notes usage, finish reason, failure, the beginning and the end."""

    def _plain(self, chunk: bytes) -> bytes | None:
        """What to pass on of a chunk of whole events that add text and nothing else, after counting it; None for any
        other chunk. Only asked once the answer has begun."""
        return None

    def feed(self, chunk: bytes) -> StreamStep:
        """Read bytes as they come, split anywhere. After the last event nothing more is passed on."""
        if self._begun and not self._pending and not self._done:
            out = self._plain(chunk)
            if out is not None:
                return StreamStep(out=out, substantive=True)
        step = StreamStep(substantive=self._begun, done=self._done)
        if self._done:
            return step
        try:
            events = self._frames.feed(chunk)
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
        """The connection closed. Complete if the last event, or at least a finish reason, was seen; else truncated."""
        step = StreamStep(substantive=self._begun, done=self._done)
        if self._done:
            return step
        left = self._frames.end()
        if left is not None and _is_whole(left.data):
            step.out = self._last(self._read(left, step))
        if step.failure is None and not step.done:
            if self.finish_reason is not None and self.terminator is not None:
                step.out += self._supplied()
                step.done = self._done = True
            else:
                step.failure = truncated()
        step.substantive = self._begun
        return step

    def _supplied(self) -> bytes:
        return self.terminator or b""

    def _last(self, out: bytes) -> bytes:
        """An event that lacked its blank line, with it."""
        return out.rstrip(b"\r\n") + b"\n\n" if out else b""

    def _read_all(self, events: list[Event], step: StreamStep) -> bytes:
        parts = []
        for event in events:
            parts.append(self._read(event, step))
            if step.done or step.failure is not None:
                break
        return b"".join(parts)

    def _end_here(self, step: StreamStep) -> None:
        self._done = step.done = True

    def _is_cut(self, data: bytes, step: StreamStep) -> bool:
        """Whether an event that is passed on undecoded cannot be a JSON object; then that is the failure."""
        if data.rstrip()[-1:] == b"}":
            return False
        step.failure = unreadable("an event is not JSON")
        return True

    def _fail(self, data: bytes, step: StreamStep) -> bytes:
        """An error event is a failure, and is not passed on."""
        step.failure = self._classify(200, {}, data)
        return b""


def _is_whole(data: bytes | None) -> bool:
    """Whether the last event lacks nothing but its blank line. Half an event is neither passed on nor read."""
    if data is None or data[:6] == b"[DONE]":
        return data is not None
    try:
        msgspec.json.decode(data)
    except JsonError:
        return False
    return True


def whole_events(chunk: bytes, prefix: bytes, lines: int) -> int:
    """How many whole events of `lines` lines (the blank one included) the chunk is, each with this prefix; else 0."""
    if not chunk.startswith(prefix) or not chunk.endswith(b"}\n\n") or b"\r" in chunk:
        return 0
    if chunk.find(b"\n", len(prefix)) == len(chunk) - 2:
        return 1
    events = chunk.count(b"\n\n")
    return events if chunk.count(b"\n") == lines * events and chunk.count(b"\n\n" + prefix) == events - 1 else 0


def string_bytes(data: bytes, start: int) -> int:
    """Bytes of the JSON string that starts at `start`; escapes count as written (an upper count)."""
    stop = data.find(b'"', start)
    while stop > 0 and data[stop - 1] == 92 and _is_escaped(data, stop):
        stop = data.find(b'"', stop + 1)
    return max(0, stop - start)


def _is_escaped(data: bytes, position: int) -> bool:
    slashes = 0
    while data[position - 1 - slashes] == 92:
        slashes += 1
    return slashes % 2 == 1
