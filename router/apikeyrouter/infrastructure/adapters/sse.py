"""Server-sent events, read incrementally from bytes that may be cut anywhere.

Source: WHATWG HTML, "Server-sent events", §9.2.5: lines end with CR, LF or CRLF; a blank line ends an event; `data`
lines are joined by LF; comments start with a colon; one byte order mark may lead. Shapes seen at providers:
`providers.md` §3.1.
"""

import re
from typing import NamedTuple

EVENT_BYTES_MAX = 16 * 1024 * 1024
"""Longest event kept, in bytes. A longer one is a protocol error, not a reason to use up memory."""

_BOM = b"\xef\xbb\xbf"
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r(?=[^\n]))")
"""Two line ends. A CR at the end of what is known is left: the LF that may follow belongs to it."""

_MAYBE_BLANK_LINE = re.compile(rb"[\r\n][\r\n]")
_OVERLAP = 3
"""Bytes of what is pending that can belong to a blank line completed by the next chunk: CR LF CR."""


class Event(NamedTuple):
    """One event: `raw` bytes as they came (blank line included), its `data` (None: it had none) and its `name`."""

    raw: bytes
    data: bytes | None
    name: bytes


class EventTooLongError(ValueError):
    """An event exceeds EVENT_BYTES_MAX."""


class SSEParser:
    """Cuts a byte stream into events. Keeps at most one unfinished event (`pending`, the same list for its whole life);
    work is linear in the bytes fed.
    """

    __slots__ = ("_limit", "_size", "_started", "pending")

    def __init__(self, *, limit: int = EVENT_BYTES_MAX) -> None:
        self._limit = limit
        self.pending: list[bytes] = []
        self._size = 0
        self._started = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes. Raises EventTooLongError."""
        if not self._started:
            chunk = self._without_bom(chunk)
        if self.pending:
            if not self._may_complete(chunk):
                self._keep(chunk)
                return []
            self.pending.append(chunk)
            chunk = self._take()
        return self._cut_any(chunk) if b"\r" in chunk else self._cut_lf(chunk)

    def end(self) -> Event | None:
        """What is left when the stream closes without a last blank line, read as an event; None when nothing is."""
        left = self._take()
        return _read(left, _fold(left)) if left.strip(b"\r\n") else None

    def _without_bom(self, chunk: bytes) -> bytes:
        chunk = self._take() + chunk
        if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
            self._keep(chunk)
            return b""
        self._started = True
        return chunk.removeprefix(_BOM)

    def _may_complete(self, chunk: bytes) -> bool:
        return _MAYBE_BLANK_LINE.search(self.pending[-1][-_OVERLAP:] + chunk) is not None

    def _take(self) -> bytes:
        left = b"".join(self.pending)
        self.pending.clear()
        self._size = 0
        return left

    def _keep(self, left: bytes) -> None:
        if not left:
            return
        self._size += len(left)
        if self._size > self._limit:
            raise EventTooLongError(f"an event exceeds {self._limit} bytes")
        self.pending.append(left)

    def _cut_lf(self, text: bytes) -> list[Event]:
        frames = text.split(b"\n\n")
        self._keep(frames.pop())
        return [_read(frame + b"\n\n", frame) for frame in frames]

    def _cut_any(self, text: bytes) -> list[Event]:
        events = []
        start = 0
        for blank in _BLANK_LINE.finditer(text):
            events.append(_read(text[start : blank.end()], _fold(text[start : blank.start()])))
            start = blank.end()
        self._keep(text[start:])
        return events


def _fold(frame: bytes) -> bytes:
    return frame.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in frame else frame


def _read(raw: bytes, frame: bytes) -> Event:
    """Name and data of one event; `frame` has LF line ends only. The two usual shapes are read without a loop."""
    name = b""
    rest = frame
    if frame.startswith(b"event: "):
        name, _, rest = frame[7:].partition(b"\n")
    if rest.startswith(b"data: ") and b"\n" not in rest:
        return Event(raw, rest[6:], name)
    return _read_lines(raw, frame)


def _read_lines(raw: bytes, frame: bytes) -> Event:
    name = b""
    data: list[bytes] = []
    for line in frame.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return Event(raw, b"\n".join(data) if data else None, name)
