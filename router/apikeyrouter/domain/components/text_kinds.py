"""What a request's text is made of, from a small sample of its bytes: tokens per byte differ fivefold between texts.

A token of Russian takes seven bytes and one of base64 one and a half, at any one model; and of two pieces of code the
one with more digits and signs takes more. So what is learned is learned per kind of text, and of what the text is made
of. The sample is eight stretches of the body, so that a long request costs no more than a short one.
"""

from enum import IntEnum

import msgspec

from apikeyrouter.domain.interfaces.wire import ParsedRequest

__all__ = ["PARTS", "Kind", "Shape", "shape_of"]

PARTS = 7
"""Numbers that say what a text is made of; see `Shape`."""
MEDIA_TOKENS = 1000
"""Expected tokens of one image or sound, before learning (`providers.md` §4.2)."""
MESSAGE_TOKENS = 4
"""Control tokens of one chat message (role and separators), OpenAI cookbook; K."""
REQUEST_TOKENS = 3
STRETCHES, STRETCH_BYTES = 8, 64
WHOLE_BYTES_MAX = 768
"""A body up to this size is looked at whole: that costs no more than taking a sample."""
MARKS_IN_CODE = 8
"""One byte of so many is a mark, in code, markup and tables; prose has fewer."""
MARKS_OUTSIDE = 0.5
"""And of the JSON around the text."""
TEXT_BYTES_MIN = 64
"""Shorter requests are all scaffold, and count as prose."""
SCAFFOLD_BYTES = 64
"""JSON around one message."""
_CAPITAL, _LETTER, _DIGIT, _SPACE, _MARK, _LEAD, _FOLLOWING = b"Aa0 .lf"


def _classes() -> bytes:
    """A letter for every byte: what it is."""
    table = bytearray([_MARK]) * 256
    for first, last, stands_for in (
        (b"A", b"Z", _CAPITAL), (b"a", b"z", _LETTER), (b"0", b"9", _DIGIT), (b" ", b" ", _SPACE),
        (b"\x80", b"\xbf", _FOLLOWING), (b"\xc0", b"\xff", _LEAD),
    ):  # fmt: skip
        for byte in range(first[0], last[0] + 1):
            table[byte] = stands_for
    return bytes(table)


_CLASSES = _classes()


class Kind(IntEnum):
    """Texts whose tokens have about the same length."""

    PROSE = 0
    CODE = 1
    DENSE = 2
    """Hardly any spaces: base64, hashes, digits."""
    QUOTED = 3
    """Hardly any spaces, but quotes: JSON."""
    TWO_BYTES = 4
    """Cyrillic, Greek, Hebrew, Arabic, …"""
    THREE_BYTES = 5
    """Chinese, Japanese, Korean, Hindi, …"""
    MEDIA = 6
    """With images, sounds or files."""


class Shape(msgspec.Struct, frozen=True):
    """A text's kind, and its PARTS: tokens of framing (and of media, as expected), bytes, and of those bytes how many
    are capitals, digits, marks, pairs of marks, and spaces."""

    kind: Kind
    parts: tuple[float, ...]


def shape_of(parsed: ParsedRequest) -> Shape:
    """The shape of a request."""
    framing = parsed.messages * MESSAGE_TOKENS + REQUEST_TOKENS + parsed.media * MEDIA_TOKENS
    body, text = parsed.body, parsed.text_bytes
    if text < TEXT_BYTES_MIN or not body:
        return Shape(Kind.MEDIA if parsed.media else Kind.PROSE, (framing, text, 0.0, 0.0, 0.0, 0.0, 0.0))
    sample, outside = _sample(body), 1 - text / len(body) if text < len(body) else 0.0
    if 2 * len(body) > 3 * text + 2 * SCAFFOLD_BYTES * (parsed.messages + 1) and b"\\u" in sample and body.isascii():
        sample = sample.decode("raw_unicode_escape", "ignore").encode("utf-8", "surrogatepass")
        outside = 0.0
    told = sample.translate(_CLASSES)
    count, per_byte = told.count, text / len(told)
    spaces, marks = count(b" "), count(b".")
    kind = Kind.MEDIA if parsed.media else _kind(sample, told, spaces, marks - MARKS_OUTSIDE * outside * len(told))
    return Shape(
        kind,
        (
            framing, text, count(b"A") * per_byte, count(b"0") * per_byte, marks * per_byte, count(b"..") * per_byte,
            spaces * per_byte,
        ),
    )  # fmt: skip


def _sample(body: bytes) -> bytes:
    if len(body) <= WHOLE_BYTES_MAX:
        return body
    spare = len(body) - STRETCH_BYTES
    step = spare // (STRETCHES - 1)
    return b"".join([body[at : at + STRETCH_BYTES] for at in range(0, step * STRETCHES, step)])


def _kind(sample: bytes, told: bytes, spaces: int, marks: float) -> Kind:
    length = len(told)
    if not sample.isascii():
        leads = told.count(b"l")
        high = leads + told.count(b"f")
        if 4 * high > length:
            return Kind.TWO_BYTES if 5 * leads > 2 * high else Kind.THREE_BYTES
    if 25 * spaces < length:
        return Kind.QUOTED if 25 * sample.count(b'"') >= length else Kind.DENSE
    return Kind.CODE if MARKS_IN_CODE * marks > length else Kind.PROSE
