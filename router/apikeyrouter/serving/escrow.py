"""Escrow: moving the money of a budget that several cells spend to where it is spent.

Each exchange is complete by itself, whoever makes it and however often (`docs/adr/cells-and-escrow.md`): what is
decided here is only how much lies where. A cell that runs low is granted what it burns in some seconds; what lies idle
comes back; and before a request is denied for want of money, all that is free elsewhere is called back.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec import structs

from apikeyrouter.domain.models.accounting import Denial, Loss, Reason, ReserveRequest, RetryKind, ScopeConfig
from apikeyrouter.domain.models.escrow import ChildBooks, HomeBooks
from apikeyrouter.domain.models.system_error import LedgerConfigError, LedgerError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.spread_ledger import SpreadLedger
from apikeyrouter.infrastructure.observability.events import EventLog

__all__ = ["Escrow"]

TICK_SECONDS = 1.0
GRANT_SECONDS = 4.0
"""A grant is what a cell burns in so long, by its average."""
LOW_SECONDS = 2.0
"""It is made when less than so much is left."""
IDLE_SECONDS = 10.0
"""What a cell has not touched for so long comes back."""
DRY_SECONDS = 0.25
"""So long after everything was called back in vain, denials are final at once."""
ROOM_SECONDS_MAX = 0.15
"""Longest that a request waits for money from elsewhere."""
AVERAGE_SECONDS = 5.0
_WANTS = (Reason.BUDGET, Reason.NEVER_FITS)
_log = EventLog("apikeyrouter")


@dataclass(slots=True)
class Burn:
    """How fast a cell spends of a scope: an average over some seconds, and when it last spent anything."""

    per_second: float = 0.0
    used: int = 0
    start_us: int = -1
    at: float = 0.0
    spent_at: float = 0.0

    def see(self, books: ChildBooks, now: float) -> None:
        """Take in what the cell's books say now."""
        used = books.settled + books.held + books.suspense
        if books.start_us != self.start_us:
            self.start_us, self.used, self.at, self.spent_at = books.start_us, used, now, now
            return
        passed, spent = now - self.at, used - self.used
        if spent != 0:
            self.spent_at = now
        if passed > 0:
            part = min(1.0, passed / AVERAGE_SECONDS)
            self.per_second += part * (max(0, spent) / passed - self.per_second)
            self.used, self.at = used, now

    def within(self, seconds: float) -> int:
        """What it would spend in so many seconds."""
        return int(self.per_second * seconds)


@dataclass(slots=True, eq=False)
class Want:
    """A request that waits for money in a cell. `served` None: nobody has looked yet."""

    needed: int
    served: bool | None = None


@dataclass(slots=True)
class Purse:
    """One budget over the cells."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    burns: dict[int, Burn] = field(default_factory=dict)
    wants: dict[int, list[Want]] = field(default_factory=dict)
    dry_until: float = 0.0
    dry_of: int = 0
    """What could not be found anywhere."""

    def is_dry(self, needed: int, now: float) -> bool:
        """Whether so much, or less, was looked for in vain a moment ago."""
        return now < self.dry_until and needed >= self.dry_of


class Escrow:
    """Moves money between cells. `scopes`: every budget that there is. One event loop uses it."""

    def __init__(
        self,
        ledger: SpreadLedger,
        *,
        scopes: Callable[[], Iterable[ScopeConfig]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._scopes, self._clock = ledger, scopes, clock
        self._purses: dict[str, Purse] = {}
        self._next_at = 0.0

    def begin_anew(self) -> None:
        """It is used from another loop."""
        self._purses.clear()

    # --- behind the requests' back -------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Once a second: fill what runs low, fetch what lies idle. Raises the last LedgerError, after all was tried."""
        now = self._clock()
        if now < self._next_at:
            return
        self._next_at = now + TICK_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 (spreads workers)
        spanning = [scope.id for scope in self._scopes() if self._ledger.layout.spans(scope.id)]
        for gone in self._purses.keys() - set(spanning):
            del self._purses[gone]
        trouble: LedgerError | None = None
        for scope in spanning:
            async with self._purse(scope).lock:
                for cell in range(1, len(self._ledger.cells)):
                    try:
                        await self._balance(scope, cell)
                    except LedgerConfigError:
                        continue  # declared a moment ago, or no more
                    except LedgerError as exc:
                        trouble = exc
        if trouble is not None:
            raise trouble

    async def _balance(self, scope: str, cell: int) -> None:
        books, now = await self._look(scope, cell), self._clock()
        burn = self._purse(scope).burns.setdefault(cell, Burn())
        burn.see(books, now)
        wanted, low = burn.within(GRANT_SECONDS), burn.within(LOW_SECONDS)
        home = await self._tell(scope, cell, books)
        books = await self._deliver(scope, cell, books, home)
        if books.free < low or books.free < 0:
            share = max(home.free, 0) // (2 * len(self._ledger.cells))
            asked = min(wanted - books.free, max(share, -books.free))
            await self._fund(scope, cell, books, asked, least=1)
        elif books.free > 0 and (home.free < 0 or now - burn.spent_at > IDLE_SECONDS):
            await self._fetch(scope, cell, books, books.free)
        elif books.free > 2 * wanted > 0:
            await self._fetch(scope, cell, books, books.free - wanted)

    # --- before a denial is final --------------------------------------------------------------------------------

    async def room(self, cell: int, request: ReserveRequest, denial: Denial) -> Denial | None:
        """Make room for what a cell denied for want of money; None: try again. Else the denial as it is in all cells.

        It waits no longer than a call to the store may take, and only one request a budget asks at a time.
        """
        short = [loss for loss in denial.losses if loss.reason in _WANTS and self._spans(loss)]
        if not short:
            return denial
        made = False
        for scope in {loss.where for loss in short}:
            needed = max(self._needed(request, loss) for loss in short if loss.where == scope)
            made |= await self._within_time(scope, cell, needed)
        return None if made else await self._everywhere(denial, request)

    def _spans(self, loss: Loss) -> bool:
        return not loss.limit and self._ledger.layout.spans(loss.where)

    async def _within_time(self, scope: str, cell: int, needed: int) -> bool:
        """Whether there is so much in a cell now. Requests that come meanwhile are looked for together."""
        purse, want = self._purse(scope), Want(needed)
        if purse.is_dry(needed, self._clock()):
            return False
        wants = purse.wants.setdefault(cell, [])
        wants.append(want)
        try:
            async with asyncio.timeout(ROOM_SECONDS_MAX), purse.lock:
                if want.served is None:
                    await self._serve(scope, cell, wants[:])
        except (TimeoutError, LedgerUnavailableError) as exc:
            _log.warning("escrow.no_answer", scope=scope, error=repr(exc))
        finally:
            wants.remove(want)
        return bool(want.served)

    async def _serve(self, scope: str, cell: int, wants: list[Want]) -> None:
        """Look for the money of all who wait, and say who may have it: those who came first."""
        purse = self._purse(scope)
        free = await self._make_room(
            scope, cell, sum(want.needed for want in wants), min(want.needed for want in wants)
        )
        for want in wants:
            want.served = want.needed <= free
            free -= want.needed if want.served else 0
        in_vain = [want.needed for want in wants if not want.served]
        if in_vain:
            purse.dry_until, purse.dry_of = self._clock() + DRY_SECONDS, min(in_vain)

    async def _make_room(self, scope: str, cell: int, needed: int, least: int) -> int:
        """What a cell has free, when as much of `needed` was fetched as there is. Less than `least` is of no use."""
        if cell == 0:
            home = await self._ledger.home.grant(scope, 1, ChildBooks())
            if home.free < needed and least <= home.limit:
                home = await self._call_back(scope, 0, home, needed - home.free)
            return home.free
        books = await self._look(scope, cell)
        missing = needed - books.free
        if missing <= 0:
            return books.free
        home = await self._tell(scope, cell, books)
        if least > home.limit:
            return books.free
        if home.free < missing:
            home = await self._call_back(scope, cell, home, missing - home.free)
        share = max(home.free, 0) // (2 * len(self._ledger.cells))
        burn = self._purse(scope).burns.setdefault(cell, Burn())
        asked = max(missing, min(burn.within(GRANT_SECONDS), share))
        return (await self._fund(scope, cell, books, asked, least=max(1, least - books.free))).free

    async def _call_back(self, scope: str, but: int, home: HomeBooks, missing: int) -> HomeBooks:
        """Fetch so much from the other cells, from who has most first; the home's books after that."""
        cells = [cell for cell in range(1, len(self._ledger.cells)) if cell != but]
        told = await asyncio.gather(*(self._look(scope, cell) for cell in cells), return_exceptions=True)
        found = [
            (await self._deliver(scope, cell, books, home), cell)
            for cell, books in zip(cells, told, strict=True)
            if isinstance(books, ChildBooks)
        ]
        for books, cell in sorted(found, key=lambda one: -one[0].free):
            if missing <= 0 or books.free <= 0:
                break
            before = home.free
            home = await self._fetch(scope, cell, books, missing)
            missing -= home.free - before
        return home

    async def _everywhere(self, denial: Denial, request: ReserveRequest) -> Denial:
        """A cell's own words would be `never`, where its part is small: say what holds for the whole budget."""
        losses = []
        for loss in denial.losses:
            if loss.reason is Reason.NEVER_FITS and self._spans(loss):
                home = await self._ledger.home.grant(loss.where, 1, ChildBooks())
                if self._needed(request, loss) <= home.limit:
                    at = min(denial.stamp.now_us + 1_000_000, home.end_us)
                    loss = structs.replace(loss, reason=Reason.BUDGET, retry_at_us=at, retry_kind=RetryKind.ESTIMATED)
            losses.append(loss)
        binding = losses[denial.binding.index]
        return structs.replace(denial, losses=tuple(losses), binding=binding)

    def _needed(self, request: ReserveRequest, loss: Loss) -> int:
        """What a candidate would hold; of what has no price, the scope's flat amount."""
        charge = request.candidates[loss.index].charge
        flat = max((scope.flat_nanousd for scope in self._scopes() if scope.id == loss.where), default=0)
        return max(1, charge.bound_nanousd if charge.bound_nanousd >= 0 else flat, charge.expected_nanousd)

    # --- exchanges -----------------------------------------------------------------------------------------------

    def _purse(self, scope: str) -> Purse:
        return self._purses.setdefault(scope, Purse())

    async def _look(self, scope: str, cell: int) -> ChildBooks:
        return await self._ledger.cells[cell].fund(scope)

    async def _tell(self, scope: str, cell: int, books: ChildBooks) -> HomeBooks:
        """Tell the home what a cell's books say. What was returned there is free here from then on."""
        return await self._ledger.home.grant(scope, cell, books)

    async def _fund(self, scope: str, cell: int, books: ChildBooks, asked: int, *, least: int) -> ChildBooks:
        """Home debits first, then the cell is credited: with this grant, and with what was lost on its way before."""
        home = await self._ledger.home.grant(scope, cell, books, asked=max(0, asked), least=least)
        return await self._deliver(scope, cell, books, home)

    async def _deliver(self, scope: str, cell: int, books: ChildBooks, home: HomeBooks) -> ChildBooks:
        """Tell a cell what its home has granted, where it does not know all of it: somebody died in between."""
        granted, returned = home.of(cell)
        if home.start_us != books.start_us or (granted <= books.funded and returned <= books.returned):
            return books
        return await self._ledger.cells[cell].fund(scope, start_us=home.start_us, granted=granted, returned=returned)

    async def _fetch(self, scope: str, cell: int, books: ChildBooks, amount: int) -> HomeBooks:
        """The cell debits first, then the home is told."""
        books = await self._ledger.cells[cell].fund(
            scope, start_us=books.start_us, recall=books.returned + min(amount, max(0, books.free))
        )
        return await self._tell(scope, cell, books)
