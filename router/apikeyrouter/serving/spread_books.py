"""The books of a namespace with several cells: one bookkeeper a cell, so that one that is away holds up no other."""

import asyncio
from collections import ChainMap
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from apikeyrouter.domain.models.accounting import CELL_AT, ReserveRequest, Settlement
from apikeyrouter.serving.bookkeeping import Bookkeeper, End, OpenHold, Release
from apikeyrouter.serving.few_places import FewPlaces
from apikeyrouter.serving.keeping import Keeper

__all__ = ["AnyBooks", "SpreadBooks"]


class SpreadBooks:
    """Several bookkeepers as one. What a reservation's id names, its cell's does."""

    def __init__(self, cells: Sequence[Bookkeeper]) -> None:
        self.cells = tuple(cells)
        self.keeper = SpreadKeeper([cell.keeper for cell in cells])

    def _of(self, rid: bytes) -> Bookkeeper:
        return self.cells[rid[CELL_AT]]

    @property
    def open(self) -> Mapping[bytes, OpenHold]:
        """What this process holds open, in every cell."""
        return ChainMap(*(cell.open for cell in self.cells))

    @property
    def settled(self) -> int:
        """Ends that were booked."""
        return sum(cell.settled for cell in self.cells)

    @property
    def unmatched(self) -> int:
        """Ends of which the store did not know the reservation."""
        return sum(cell.unmatched for cell in self.cells)

    @property
    def waiting(self) -> int:
        """Ends that the ledger has not confirmed yet."""
        return sum(cell.waiting for cell in self.cells)

    @property
    def waiting_seconds(self) -> float:
        """How long ends have waited that could not be delivered; 0: there are none."""
        return max(cell.waiting_seconds for cell in self.cells)

    def hear(
        self, *, booked: Callable[[], None] | None = None, standby: Callable[[End], None] | None = None,
        few: FewPlaces | None = None,
    ) -> None:  # fmt: skip
        """Who is told (see `Bookkeeper.hear`)."""
        for cell in self.cells:
            cell.hear(booked=booked, standby=standby, few=few)

    def start(self) -> None:
        """Begin flushing."""
        for cell in self.cells:
            cell.start()

    def begin_anew(self) -> None:
        """The loop that it ran on has ended."""
        for cell in self.cells:
            cell.begin_anew()

    def abandon(self) -> object:
        """What is noted here is a parent process's."""
        return [cell.abandon() for cell in self.cells]

    def held(self, request: ReserveRequest, index: int) -> OpenHold:
        """Note an admission."""
        return self._of(request.rid).held(request, index)

    def held_unheard(self, request: ReserveRequest, index: int) -> OpenHold:
        """Note what was admitted while its cell was away."""
        return self._of(request.rid).held_unheard(request, index)

    def forget(self, rid: bytes) -> None:
        """Leave it to its lease."""
        self._of(rid).forget(rid)

    def hand_in(self, end: Settlement | Release) -> None:
        """Note how a reservation ends."""
        self._of(end.rid).hand_in(end)

    def cancel(self, rid: bytes) -> None:
        """Have a reserve cancelled of which nobody knows whether it ran."""
        self._of(rid).cancel(rid)

    async def told(self, *, seconds: float) -> bool:
        """Wait until every cell knows of what has ended by now; whether they do, after at most `seconds`."""
        return all(await asyncio.gather(*(cell.told(seconds=seconds) for cell in self.cells)))

    async def flush(self, *, seconds: float) -> bool:
        """Wait until everything is booked; whether it is, after at most `seconds`."""
        return all(await asyncio.gather(*(cell.flush(seconds=seconds) for cell in self.cells)))

    async def close(self) -> None:
        """Stop flushing. What waits is kept on disk where there is a directory for it."""
        await asyncio.gather(*(cell.close() for cell in self.cells))

    async def take_over(self) -> int:
        """Deliver what dead processes had left on disk; how many ends that is."""
        return sum(await _each(cell.take_over() for cell in self.cells))

    def give_up(self, rids: Iterable[bytes], why: str) -> None:
        """End these calls."""
        for rid in list(rids):
            self._of(rid).give_up((rid,), why)


class SpreadKeeper:
    """What all of them keep on disk."""

    def __init__(self, keepers: Sequence[Keeper]) -> None:
        self._keepers = keepers

    @property
    def kept(self) -> int:
        """How many ends are on disk and not delivered."""
        return sum(keeper.kept for keeper in self._keepers)


async def _each(work: Iterable[Awaitable[int]]) -> list[int]:
    return list(await asyncio.gather(*work))


AnyBooks = Bookkeeper | SpreadBooks
"""The books of a process, of however many cells."""
