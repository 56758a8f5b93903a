"""A JSON array that grows while it is read, cut into its members: how Gemini streams without `alt=sse`."""

import re

from apikeyrouter.infrastructure.adapters.sse import EVENT_BYTES_MAX, Event, EventTooLongError, SSEParser
from apikeyrouter.infrastructure.adapters.stream_reader import Frames

__all__ = ["EitherFrames", "JSONArrayFrames"]

_STRUCTURE = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'["\\]')
_OPENS, _CLOSES, _QUOTE = b"{[", b"}]", b'"'


class JSONArrayFrames:
    """Cuts `[{…},{…}]` into one event per member; brackets and commas between them travel in `raw`.

    Keeps at most one unfinished member; every byte is looked at once.
    """

    __slots__ = ("_depth", "_escaped", "_in_string", "_limit", "_size", "closed", "pending")

    def __init__(self, *, limit: int = EVENT_BYTES_MAX) -> None:
        self._limit = limit
        self._depth = 0
        self._in_string = self._escaped = False
        self._size = 0
        self.pending: list[bytes] = []
        self.closed = False
        """Whether the array's last bracket has come."""

    def feed(self, chunk: bytes) -> list[Event]:
        """The members that `chunk` completes, and the closing bracket. Raises EventTooLongError."""
        events: list[Event] = []
        start = place = 0
        while (found := self._next(chunk, place)) >= 0:
            place = found + 1
            if self._ends_member(chunk[found]):
                events.append(self._event(chunk[start:place]))
                start = place
        rest = chunk[start:]
        if self.closed and rest:
            events.append(Event(rest, None, b""))
        else:
            self._keep(rest)
        return events

    def end(self) -> Event | None:
        """What is left when the stream closes; None when nothing is."""
        left = self._take(b"")
        return _event(left) if left.strip(b" \r\n\t,[]") else None

    def _next(self, chunk: bytes, place: int) -> int:
        """Where the next byte with a meaning is; -1 when there is none. Follows strings and their escapes."""
        while True:
            if self._escaped:
                if place >= len(chunk):
                    return -1
                self._escaped = False
                place += 1
            found = (_IN_STRING if self._in_string else _STRUCTURE).search(chunk, place)
            if found is None:
                return -1
            place = found.end()
            if found[0] == b"\\":
                self._escaped = True
            elif found[0] == _QUOTE:
                self._in_string = not self._in_string
            else:
                return found.start()

    def _ends_member(self, byte: int) -> bool:
        """Count one bracket; whether a member, or the array, is complete with it."""
        if byte in _OPENS:
            self._depth += 1
            return False
        self._depth = max(0, self._depth - 1)
        self.closed = self.closed or self._depth == 0
        return self._depth <= 1

    def _event(self, raw: bytes) -> Event:
        return _event(self._take(raw))

    def _take(self, raw: bytes) -> bytes:
        whole = b"".join([*self.pending, raw])
        self.pending.clear()
        self._size = 0
        return whole

    def _keep(self, left: bytes) -> None:
        if not left:
            return
        self._size += len(left)
        if self._size > self._limit:
            raise EventTooLongError(f"an event exceeds {self._limit} bytes")
        self.pending.append(left)


def _event(raw: bytes) -> Event:
    """A member without what separates it from the one before; None as data where there is none (the last bracket)."""
    start = raw.find(b"{")
    return Event(raw, raw[start:] if start >= 0 else None, b"")


class EitherFrames:
    """Server-sent events or a JSON array, as the first byte tells."""

    __slots__ = ("_chosen", "pending")

    def __init__(self) -> None:
        self._chosen: Frames | None = None
        self.pending: list[bytes] = []

    @property
    def array(self) -> JSONArrayFrames | None:
        """The array's frames, if it is one."""
        return self._chosen if isinstance(self._chosen, JSONArrayFrames) else None

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes. Raises EventTooLongError."""
        if self._chosen is None:
            first = chunk.lstrip(b" \r\n\t")[:1]
            if not first:
                return []
            self._chosen = JSONArrayFrames() if first == b"[" else SSEParser()
        return self._chosen.feed(chunk)

    def end(self) -> Event | None:
        """What is left at the end of the stream, read as an event."""
        return None if self._chosen is None else self._chosen.end()
