"""What kind of text a request is, from a small sample of its bytes: tokens per byte differ fivefold between kinds.

A token of Russian takes seven bytes and one of base64 one and a half, at any one model; what is learned is therefore
learned per kind. The sample is every n-th byte, so that a long request costs no more than a short one.
"""

from enum import IntEnum

from apikeyrouter.domain.interfaces.wire import ParsedRequest

__all__ = ["Kind", "kind_of"]

SAMPLE_BITS = 8
"""A sample has between 2^8 and 2^9 bytes."""
TEXT_BYTES_MIN = 64
"""Shorter requests are all scaffold, and count as prose."""
SCAFFOLD_BYTES = 64
"""JSON around one message."""
SPACES_IN_CODE = 0.7
"""How far the spaces of code are no tokens of their own: a run of them is one."""
_STEPS = (1, 0, 3, 2, 1, 0)
"""What makes a step prime to 2 and 3, by its remainder of 6: else it would see the same byte of every character."""
_HIGH = bytes(range(0x80, 0x100))
_CONTINUATION = bytes(range(0x80, 0xC0))


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


def kind_of(parsed: ParsedRequest) -> tuple[Kind, float]:
    """The kind of a request, and the part of its bytes that counts."""
    if parsed.media:
        return Kind.MEDIA, 1.0
    body, text = parsed.body, parsed.text_bytes
    size = len(body)
    if text < TEXT_BYTES_MIN or not body:
        return Kind.PROSE, 1.0
    if 2 * size > 3 * text + 2 * SCAFFOLD_BYTES * (parsed.messages + 1) and body.isascii():
        escaped = body.count(b"\\u")  # ä as \u00e4: six bytes for two or three
        if escaped * 8 > text:
            return (Kind.TWO_BYTES if 5 * escaped > 2 * text else Kind.THREE_BYTES), 1.0
    sample = body[:: _STEPS[(size >> SAMPLE_BITS) % 6] + (size >> SAMPLE_BITS)] if size >> (SAMPLE_BITS + 1) else body
    length = len(sample)
    if not sample.isascii():
        plain = len(sample.translate(None, _HIGH))
        high = length - plain
        if 4 * high > length:
            leads = len(sample.translate(None, _CONTINUATION)) - plain
            return (Kind.TWO_BYTES if 5 * leads > 2 * high else Kind.THREE_BYTES), 1.0
    spaces = sample.count(b" ")
    if 25 * spaces < length:
        return (Kind.QUOTED if 25 * sample.count(b'"') >= length else Kind.DENSE), 1.0
    if 128 * sample.count(b"\\") > length:  # line feeds, in JSON
        return Kind.CODE, 1.0 - SPACES_IN_CODE * spaces / length
    return Kind.PROSE, 1.0
