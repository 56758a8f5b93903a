"""What a stream's events add to the answer, for callers that want text and tool calls instead of bytes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from apikeyrouter.domain.models.wire import StreamDelta
from apikeyrouter.infrastructure.adapters.sse import EventTooLongError, SSEParser
from apikeyrouter.infrastructure.adapters.stream_reader import Frames

__all__ = ["Deltas"]

ReadEvent = Callable[[bytes, bytes], StreamDelta | None]
"""(name, data) of one event → what it adds; None: nothing."""


class Deltas:
    """Reads the events of one stream. Tool calls are numbered from 0 in the order in which they begin."""

    __slots__ = ("_frames", "_numbers", "_read_event")

    def __init__(self, read_event: ReadEvent, frames: Frames | None = None) -> None:
        self._read_event = read_event
        self._frames: Frames = frames or SSEParser()
        self._numbers: dict[Any, int] = {}

    def read(self, events: bytes) -> list[StreamDelta]:
        """What these events add; what cannot be read adds nothing."""
        try:
            found = self._frames.feed(events)
        except EventTooLongError:
            return []
        deltas = []
        for _, data, name in found:
            delta = self._read_event(name, data) if data is not None else None
            if delta is not None:
                deltas.append(self._numbered(delta) if delta.tool_calls else delta)
        return deltas

    def _numbered(self, delta: StreamDelta) -> StreamDelta:
        calls = tuple({**call, "index": self._number(call.get("index"))} for call in delta.tool_calls)
        return replace(delta, tool_calls=calls)

    def _number(self, index: object) -> int:
        """The number of a call that its provider counts as `index`; without one, each piece is a whole call."""
        key = index if isinstance(index, int) else ("whole", len(self._numbers))
        return self._numbers.setdefault(key, len(self._numbers))
