"""Ids of reservations: in the order of time, and telling which process made them and which cell they are of."""

import os
import time

__all__ = ["made_at_ms", "new_rid", "process_of", "process_tag"]

TIME_BYTES, TAG_BYTES, RANDOM_BYTES = 6, 3, 6
DRAWN_AT_ONCE = 256
_tails: dict[int, list[bytes]] = {}
"""By cell, what follows the time in the next ids: this process's tag, the cell's number, and what is random."""
_tag = os.urandom(TAG_BYTES)


def new_rid(cell: int = 0) -> bytes:
    """A new reservation id: 48 bits of Unix milliseconds, 24 of the process that makes it, 8 of its cell, 48 random."""
    try:
        tail = _tails[cell].pop()
    except LookupError:
        drawn, head = os.urandom(RANDOM_BYTES * DRAWN_AT_ONCE), _tag + bytes((cell,))
        tails = [head + drawn[at : at + RANDOM_BYTES] for at in range(0, len(drawn), RANDOM_BYTES)]
        tail = tails.pop()
        _tails[cell] = tails
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
