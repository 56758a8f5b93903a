"""How many workers are there: each holds one reservation in a lane without limits."""

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import Candidate, Denial, ReserveRequest
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger
from apikeyrouter.serving.bookkeeping import OpenHold, Release
from apikeyrouter.serving.spread_books import AnyBooks

__all__ = ["WORKERS", "Presence"]

WORKERS = "w:workers"
"""The lane in which each worker holds one reservation."""


class Presence:
    """This worker's reservation, while somebody here wants to be counted."""

    def __init__(self, ledger: AnyLedger, books: AnyBooks, *, lease_us: int) -> None:
        self._ledger, self._books, self._lease_us = ledger, books, lease_us
        self._hold: OpenHold | None = None
        self._wanted_by: set[object] = set()
        self.count = 1
        """Workers that were there when it was last looked at, at least this one."""

    async def be_there(self, who: object) -> None:
        """Be counted, and count. Errors: LedgerError."""
        self._wanted_by.add(who)
        if self._hold is None:
            candidate = Candidate(lanes=(WORKERS,))
            request = ReserveRequest(rid=new_rid(), candidates=(candidate,), lease_us=self._lease_us)
            if not isinstance(await self._ledger.reserve(request), Denial):
                self._hold = self._books.held(request, 0)
                self._hold.abort = self._lost
        (lane,) = await self._ledger.lanes([WORKERS])
        self.count = max(1, lane.in_flight)

    def leave(self, who: object) -> None:
        """Be counted no more, unless somebody else here wants that."""
        self._wanted_by.discard(who)
        if not self._wanted_by:
            self._lost("")

    def _lost(self, _why: str) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            self._books.hand_in(Release(rid=hold.request.rid, sent=False))

    def begin_anew(self) -> None:
        """What was held is another loop's, or a parent process's."""
        self._hold = None
