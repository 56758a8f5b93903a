"""What is read of the lanes between requests: what was written since it was read, and what the passing of time changes.

Every lane that somebody writes is seen within a second, however many there are; while nobody writes, one empty look a
tick is all. A lane ages by itself where its windows drain and its outcomes are forgotten: those that are out or scarce
are read again at every tick, the others now and then, a bounded number of both.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from apikeyrouter.domain.models.accounting import LaneState
from apikeyrouter.infrastructure.ledger.ledger import PAGE_SNAPSHOT, ScriptLedger
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger, SpreadLedger

__all__ = ["LaneReading", "reading_of"]

PAGES_PER_TICK = 8
TICKS_PER_ROUND = 4
"""A round over all pages takes at most so many ticks: a second."""
AGED_PER_TICK = 128
"""So many lanes that nobody wrote are read again in a tick, of those that are out or scarce and of the others."""
LANES_PER_TICK = 2048
"""So many where there are several cells."""
AGED_SECONDS = 30.0
"""A lane that is neither out nor scarce is read again after that long, as long as it ages."""


class _Page:
    """Lanes that are read by one call. `since`: the sequence number of the last."""

    __slots__ = ("ids", "since")

    def __init__(self, ids: Sequence[str], since: int) -> None:
        self.ids, self.since = ids, since


class LaneReading:
    """Reads the lanes of one process. One event loop owns it."""

    def __init__(self, ledger: ScriptLedger) -> None:
        self._ledger = ledger
        self._ids: Sequence[str] = ()
        self._pages: list[_Page] = []
        self._next = 0
        self._forgotten = 0
        self._restless: dict[str, None] = {}
        self._aging: dict[str, float] = {}

    async def read(self, ids: Sequence[str]) -> list[LaneState]:
        """The lanes among these that may be otherwise than when they were read last.

        `ids`: the same object as long as they are the same.
        """
        if ids is not self._ids:
            self._turn_to(ids)
        if not ids:
            return []
        seq = (await self._ledger.look()).seq
        if self._ledger.forgotten != self._forgotten:
            self._forgotten = self._ledger.forgotten
            self.begin_anew()
        found: dict[str, LaneState] = {}
        for page in self._due(seq):
            lanes = await self._ledger.lanes(page.ids, since_seq=page.since)
            page.since = self._ledger.stamp.seq
            found.update((lane.id, lane) for lane in lanes)
        old = [lane_id for lane_id in self._old() if lane_id not in found]
        if old:
            found.update((lane.id, lane) for lane in await self._ledger.lanes(old))
        return list(found.values())

    def note(self, lanes: Iterable[LaneState], is_restless: Callable[[LaneState], bool]) -> None:
        """These lanes were read just now. `is_restless`: whether one is out or scarce."""
        now = time.monotonic()
        for lane in lanes:
            self._aging.pop(lane.id, None)
            if is_restless(lane):
                self._restless[lane.id] = None
                continue
            self._restless.pop(lane.id, None)
            if _ages(lane):
                self._aging[lane.id] = now

    def begin_anew(self) -> None:
        """What was read got lost on its way, or is not so any more: read all of it again."""
        for page in self._pages:
            page.since = 0

    def _turn_to(self, ids: Sequence[str]) -> None:
        """Other lanes are in use. What is new among them is read whole; of the others, what was written since."""
        since = min((page.since for page in self._pages), default=0)
        known, there = set(self._ids), set(ids)
        new = there - known
        if len(new) > AGED_PER_TICK:
            since = 0
        elif since:
            self._restless.update(dict.fromkeys(new))
        for gone in known - there:
            self._restless.pop(gone, None)
            self._aging.pop(gone, None)
        self._ids = ids
        starts = range(0, len(ids), PAGE_SNAPSHOT)
        self._pages = [_Page(ids[start : start + PAGE_SNAPSHOT], since) for start in starts]

    def _due(self, seq: int) -> Iterator[_Page]:
        """The next pages in which something may have been written."""
        pages = self._pages
        for _ in range(min(len(pages), max(PAGES_PER_TICK, -(-len(pages) // TICKS_PER_ROUND)))):
            self._next = (self._next + 1) % len(pages)
            page = pages[self._next]
            if page.since != seq:
                yield page

    def _old(self) -> list[str]:
        """Lanes that are to be read again, whoever writes: they are forgotten until they are noted again."""
        until = time.monotonic() - AGED_SECONDS
        old = list(islice(self._restless, AGED_PER_TICK))
        for lane_id in old:
            del self._restless[lane_id]
        aged = [lane_id for lane_id, at in islice(self._aging.items(), AGED_PER_TICK) if at <= until]
        for lane_id in aged:
            del self._aging[lane_id]
        return old + aged


class SpreadReading:
    """Reads the lanes of several cells: all of them, a bounded number a tick. A cell that is away tells nothing."""

    def __init__(self, ledger: SpreadLedger) -> None:
        self._ledger, self._next = ledger, 0

    async def read(self, ids: Sequence[str]) -> list[LaneState]:
        """The next of these lanes; with few keys that is all of them."""
        if not ids:
            return []
        start = self._next if self._next < len(ids) else 0
        self._next = start + LANES_PER_TICK
        return await self._ledger.lanes_in_reach(ids[start : self._next])

    def note(self, lanes: Iterable[LaneState], is_restless: Callable[[LaneState], bool]) -> None:
        """They are read again in any case."""

    def begin_anew(self) -> None:
        """Whatever got lost comes by again."""


def reading_of(ledger: AnyLedger) -> LaneReading | SpreadReading:
    """Who reads the lanes of a ledger."""
    return SpreadReading(ledger) if isinstance(ledger, SpreadLedger) else LaneReading(ledger)


def _ages(lane: LaneState) -> bool:
    """Whether a lane becomes another by the passing of time."""
    return bool(lane.successes or lane.failures or any(limit.used for limit in lane.limits))
