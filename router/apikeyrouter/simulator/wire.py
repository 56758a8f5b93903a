"""How a good answer is spoilt on the wire: frames and bodies rewritten by a failure, and how the answer then ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import Enum

from apikeyrouter.simulator.calls import Frame
from apikeyrouter.simulator.failures import Failure

__all__ = ["End", "spoil_body", "spoil_frames"]

BROKEN_JSON = b'data: {"id":"broken\n\n'
KEEP_ALIVE = b": keep-alive\n\n"


class End(Enum):
    """How an answer ends on the wire."""

    CLEAN = "clean"
    CLOSE = "close"
    CUT = "cut"
    STALL = "stall"


_ENDS_AFTER_CHUNKS = {
    "truncate": End.CLEAN,
    "stall_mid_stream": End.STALL,
    "cut_mid_stream": End.CUT,
    "cut_mid_body": End.CLOSE,
    "error_mid_stream": End.CLEAN,
    "malformed_json": End.CLEAN,
}


_NAME = re.compile(rb"^event: [^\n]*\n", re.MULTILINE)
_ENDS_AT_BYTE = {"end_at_byte": End.CLEAN, "cut_at_byte": End.CUT}


def spoil_frames(frames: Iterator[Frame], failure: Failure, error_frame: bytes) -> Iterator[Frame | End]:
    """``frames`` as failure sends them; an :class:`End` comes last (a good end is ``CLEAN``)."""
    name = failure.name
    if name in ("error_first_event", "empty_body"):
        if name == "error_first_event":
            yield Frame(error_frame, 0)
        yield End.CLEAN
    elif name in _ENDS_AT_BYTE:
        yield from _end_at_byte(frames, failure)
    elif name in _ENDS_AFTER_CHUNKS:
        yield from _end_early(frames, failure, error_frame)
    else:
        yield from _rewrite(frames, name)
        yield End.CLEAN


def _end_early(frames: Iterable[Frame], failure: Failure, error_frame: bytes) -> Iterator[Frame | End]:
    left, tokens = failure.after_chunks, 0
    for frame in frames:
        if frame.content and left == 0:
            break
        left -= frame.content
        tokens = frame.tokens
        yield frame
    spoilt = {"error_mid_stream": error_frame, "malformed_json": BROKEN_JSON}.get(failure.name)
    if spoilt is not None:
        yield Frame(spoilt, tokens)
    yield _ENDS_AFTER_CHUNKS[failure.name]


def _end_at_byte(frames: Iterable[Frame], failure: Failure) -> Iterator[Frame | End]:
    """What is in the middle of being sent was produced."""
    left = failure.after_chunks
    for frame in frames:
        if len(frame.data) > left:
            yield frame._replace(data=frame.data[:left])
            break
        left -= len(frame.data)
        yield frame
    yield _ENDS_AT_BYTE[failure.name]


def _rewrite(frames: Iterator[Frame], name: str) -> Iterator[Frame]:
    if name == "truncate_terminator":
        yield from _all_but_last(frames)
        return
    for frame in frames:
        if name == "comments":
            yield Frame(KEEP_ALIVE, frame.tokens)
        if name == "unnamed":
            yield frame._replace(data=_NAME.sub(b"", frame.data))
        elif name == "crlf":
            yield frame._replace(data=frame.data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        elif name == "split_utf8":
            yield from (frame._replace(data=piece) for piece in _split_characters(frame.data))
        else:
            yield frame


def _all_but_last(frames: Iterator[Frame]) -> Iterator[Frame]:
    held: Frame | None = None
    for frame in frames:
        if held is not None:
            yield held
        held = frame


def spoil_body(body: bytes, failure: Failure, error_body: bytes) -> tuple[int | None, list[bytes], End]:
    """A whole body as failure sends it: the promised size (None: chunked), its pieces, and the end."""
    half = body[: len(body) // 2]
    name = failure.name
    if name in ("truncate", "truncate_terminator", "cut_mid_body", "end_at_byte"):
        return len(body), [half], End.CLOSE
    if name in ("cut_mid_stream", "cut_at_byte"):
        return len(body), [half], End.CUT
    if name == "stall_mid_stream":
        return len(body), [half], End.STALL
    if name in ("error_first_event", "error_mid_stream"):
        return len(error_body), [error_body], End.CLEAN
    if name == "malformed_json":
        return len(half), [half], End.CLEAN
    if name == "empty_body":
        return 0, [], End.CLEAN
    if name == "comments":
        return len(body) + 2, [b"\n\n", body], End.CLEAN
    if name == "split_utf8":
        return None, _split_characters(body), End.CLEAN
    return len(body), [body], End.CLEAN


def _split_characters(data: bytes) -> list[bytes]:
    """``data`` cut after the first byte of each multi-byte character."""
    cuts = [at + 1 for at, byte in enumerate(data) if byte >= 0xC0]
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
