"""Ids of reservations: in the order of time, and telling which process made them."""

import os
import time

__all__ = ["made_at_ms", "new_rid", "process_of", "process_tag"]

TIME_BYTES, TAG_BYTES, RANDOM_BYTES = 6, 3, 7
DRAWN_AT_ONCE = 256
_tails: list[bytes] = []
"""What follows the time in the next ids: this process's tag, and what is random."""
_tag = os.urandom(TAG_BYTES)


def new_rid() -> bytes:
    """A new reservation id: 48 bits of Unix milliseconds, 24 of the process that makes it, then random."""
    try:
        tail = _tails.pop()
    except IndexError:
        drawn = os.urandom(RANDOM_BYTES * DRAWN_AT_ONCE)
        _tails.extend([_tag + drawn[at : at + RANDOM_BYTES] for at in range(0, len(drawn), RANDOM_BYTES)])
        tail = _tails.pop()
    return (time.time_ns() // 1_000_000).to_bytes(TIME_BYTES, "big") + tail


def made_at_ms(rid: bytes) -> int:
    """When an id was made, by its maker's clock: Unix milliseconds."""
    return int.from_bytes(rid[:TIME_BYTES], "big")


def process_tag() -> str:
    """What the ids of this process have in common (hex). Two processes have the same one time in 16 million."""
    return _tag.hex()


def process_of(rid: bytes) -> str:
    """The tag of the process that made an id (hex)."""
    return rid[TIME_BYTES : TIME_BYTES + TAG_BYTES].hex()


def _begin_anew() -> None:
    """A forked child makes ids of its own."""
    global _tag
    _tag = os.urandom(TAG_BYTES)
    _tails.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
