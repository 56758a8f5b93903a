"""Lanes with few places: what calls of this process gave back is told at once, and before others are asked for."""

import asyncio
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from apikeyrouter.domain.components.pool import Option

__all__ = ["ENDS_SECONDS_MAX", "FewPlaces"]

ENDS_SECONDS_MAX = 0.2
"""How long a request waits until the ledger knows of those that have ended."""


class Teller(Protocol):
    """Who tells a ledger how reservations ended."""

    async def told(self, *, seconds: float) -> bool:
        """Wait until what has ended by now is told; whether it is, after at most `seconds`."""
        ...


class FewPlaces:
    """Which places were given back, and not told yet. One event loop owns it."""

    def __init__(self, lanes: AbstractSet[str] = frozenset()) -> None:
        """`lanes`: those with few places, as they are at any time."""
        self._lanes = lanes
        self.tellers: list[Teller] = []
        self.coming: dict[str, int] = {}
        """By lane, how many."""
        self._ended: dict[bytes, Sequence[str]] = {}

    def gives_back(self, rid: bytes, lanes: Iterable[str]) -> bool:
        """A reservation of these lanes ended; whether a place is missed."""
        if not self._lanes:
            return False
        found = [lane for lane in lanes if lane in self._lanes]
        if found and rid not in self._ended:
            self._ended[rid] = found
            for lane in found:
                self.coming[lane] = self.coming.get(lane, 0) + 1
        return bool(found)

    def told(self, rid: bytes) -> None:
        """The end of a reservation was told, or cannot be."""
        for lane in self._ended.pop(rid, ()) if self._ended else ():
            self.coming[lane] -= 1
            if not self.coming[lane]:
                del self.coming[lane]

    async def before(self, options: Iterable[Option]) -> None:
        """Where a place for one of these is about to be free, wait, not long, until all that has ended is told."""
        if any(lane in self.coming for option in options for lane in option.lanes):
            await asyncio.gather(*(teller.told(seconds=ENDS_SECONDS_MAX) for teller in self.tellers))

    def begin_anew(self) -> None:
        """What was to be told belongs to a loop that has ended, or to a parent process."""
        self.coming.clear()
        self._ended.clear()
