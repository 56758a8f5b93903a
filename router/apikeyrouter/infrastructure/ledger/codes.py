"""Reply codes of the scripts, named once on this side (`lua/include/codes.lua` is the other; a test compares them)."""

from enum import IntEnum


class Code(IntEnum):
    """First element of every reply."""

    ADMITTED = 1
    REPLAYED = 2
    DENIED = 3
    CONFLICT = 4
    UNMATCHED = 5
    OK = 6
    STALE_CONFIG = 7
    NO_CELL = 8
    UNKNOWN_SCOPE = 9
    CALENDAR_NEEDED = 10
    BAD_ARGUMENT = 11
    BAD_SCHEMA = 12
