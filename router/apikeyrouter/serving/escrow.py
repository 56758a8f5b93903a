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
GROWTH = 4
"""Who asks for a cell once more within `GRANT_SECONDS` asks for so many times as much: its burn is not known yet."""
DRY_SECONDS = 0.25
"""So long after everything was called back in vain, denials are final at once."""
EXCHANGES_MAX = 6
"""So often a home is asked for a cell that stays short: another worker asked for it meanwhile, or others gave back."""
AVERAGE_SECONDS = 5.0
_WANTS = (Reason.BUDGET, Reason.NEVER_FITS)
_log = EventLog("apikeyrouter")


@dataclass(slots=True)
class Burn:
    """How fast a cell spends of a scope, over some seconds or since it was first looked at, and when it last did."""

    per_second: float = 0.0
    used: int = 0
    start_us: int = -1
    began: float = 0.0
    at: float = 0.0
    spent_at: float = 0.0

    def see(self, books: ChildBooks, now: float) -> None:
        """Take in what the cell's books say now."""
        used = books.settled + books.held + books.suspense
        if books.start_us != self.start_us:
            self.began = self.began or now
            self.start_us, self.used, self.at, self.spent_at = books.start_us, used, now, now
            return
        passed, spent = now - self.at, used - self.used
        if spent != 0:
            self.spent_at = now
        if passed > 0:
            part = min(1.0, passed / min(AVERAGE_SECONDS, now - self.began))
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
class Till:
    """One budget in one cell. `share`: the most that it is granted at once beyond what is missing."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    burn: Burn = field(default_factory=Burn)
    wants: list[Want] = field(default_factory=list)
    share: int = 0
    asked: int = 0
    asked_at: float = 0.0
    dry_until: float = 0.0
    dry_of: int = 0
    """What could not be found anywhere."""

    def is_dry(self, needed: int, now: float) -> bool:
        """Whether so much, or less, was looked for in vain a moment ago."""
        return now < self.dry_until and needed >= self.dry_of

    def portion(self, missing: int, now: float) -> int:
        """What to ask for: what is missing; beyond it, what is burnt in some seconds, or a multiple of the last time.

        So a cell whose burn nobody knows yet has enough after a few exchanges.
        """
        again = GROWTH * self.asked if now - self.asked_at < GRANT_SECONDS else 0
        self.asked = max(missing, min(max(self.burn.within(GRANT_SECONDS), again), self.share))
        self.asked_at = now
        return self.asked


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
        self._tills: dict[tuple[str, int], Till] = {}
        self._next_at = 0.0

    def begin_anew(self) -> None:
        """It is used from another loop."""
        self._tills.clear()

    # --- behind the requests' back -------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Once a second: fill what runs low, fetch what lies idle. Raises the last LedgerError, after all was tried."""
        now = self._clock()
        if now < self._next_at:
            return
        self._next_at = now + TICK_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 (spreads workers)
        spanning = [scope.id for scope in self._scopes() if self._ledger.layout.spans(scope.id)]
        tills = [(scope, cell) for scope in spanning for cell in range(len(self._ledger.cells))]
        for gone in self._tills.keys() - set(tills):
            del self._tills[gone]
        trouble: LedgerError | None = None
        for scope, cell in tills:
            try:
                async with self._till(scope, cell).lock:
                    if cell:
                        await self._balance(scope, cell)
            except LedgerConfigError:
                continue  # declared a moment ago, or no more
            except LedgerError as exc:
                trouble = exc
        if trouble is not None:
            raise trouble

    async def _balance(self, scope: str, cell: int) -> None:
        books, now, till = await self._look(scope, cell), self._clock(), self._till(scope, cell)
        burn = till.burn
        burn.see(books, now)
        wanted, low = burn.within(GRANT_SECONDS), burn.within(LOW_SECONDS)
        home = await self._tell(scope, cell, books)
        books = await self._deliver(scope, cell, books, home)
        till.share = self._share(home)
        if books.free < low or books.free < 0:
            asked = min(wanted - books.free, max(till.share, -books.free))
            await self._fund(scope, cell, books, asked, least=1)
        elif books.free > 0 and (home.free < 0 or now - burn.spent_at > IDLE_SECONDS):
            await self._fetch(scope, cell, books, books.free)
        elif books.free > 2 * wanted > 0:
            await self._fetch(scope, cell, books, books.free - wanted)

    # --- before a denial is final --------------------------------------------------------------------------------

    async def room(self, cell: int, request: ReserveRequest, denial: Denial, *, until: float) -> Denial | None:
        """Make room for what a cell denied for want of money; None: try again. Else the denial as it is in all cells.

        Only one request asks at a time for a cell of a budget, for all that wait there: `until` this time of the loop.
        """
        short = [loss for loss in denial.losses if loss.reason in _WANTS and self._spans(loss)]
        if not short:
            return denial
        made = False
        for scope in {loss.where for loss in short}:
            needed = max(self._needed(request, loss) for loss in short if loss.where == scope)
            made |= await self._within_time(scope, cell, needed, until)
        return None if made else await self._everywhere(denial, request)

    def _spans(self, loss: Loss) -> bool:
        return not loss.limit and self._ledger.layout.spans(loss.where)

    async def _within_time(self, scope: str, cell: int, needed: int, until: float) -> bool:
        """Whether there is so much in a cell now. Requests that come meanwhile are looked for together."""
        till, want = self._till(scope, cell), Want(needed)
        if till.is_dry(needed, self._clock()):
            return False
        till.wants.append(want)
        try:
            async with asyncio.timeout_at(until), till.lock:
                if want.served is None:
                    await self._serve(scope, cell, till.wants[:])
        except (TimeoutError, LedgerUnavailableError) as exc:
            if self._clock() >= till.dry_until:
                _log.warning("escrow.no_answer", scope=scope, error=repr(exc))
                till.dry_until, till.dry_of = self._clock() + DRY_SECONDS, needed
        finally:
            till.wants.remove(want)
        return bool(want.served)

    async def _serve(self, scope: str, cell: int, wants: list[Want]) -> None:
        """Look for the money of all who wait, and say who may have it: those who came first."""
        needed, least = sum(want.needed for want in wants), min(want.needed for want in wants)
        look = self._room_elsewhere if cell else self._room_at_home
        free, is_all = await look(scope, cell, needed, least)
        for want in wants:
            want.served = want.needed <= free
            free -= want.needed if want.served else 0
        in_vain = [want.needed for want in wants if not want.served]
        if in_vain and is_all:
            till = self._till(scope, cell)
            till.dry_until, till.dry_of = self._clock() + DRY_SECONDS, min(in_vain)

    async def _room_at_home(self, scope: str, cell: int, needed: int, least: int) -> tuple[int, bool]:
        """What the home has free, when as much of `needed` was fetched as there is; and that this is all."""
        home = await self._ledger.home.grant(scope, 1, ChildBooks())
        if home.free < needed and least <= home.limit:
            home = await self._call_back(scope, cell, home, needed - home.free)
        return home.free, True

    async def _room_elsewhere(self, scope: str, cell: int, needed: int, least: int) -> tuple[int, bool]:
        """The same for another cell. Less than `least` is of no use. Whether that is all that there is.

        A home grants nothing to a cell that does not know of every grant before: another worker had asked for it. Then
        that grant is what came, and if it is spent already, there may be another.
        """
        till = self._till(scope, cell)
        books = await self._look(scope, cell)
        for _ in range(EXCHANGES_MAX):
            missing, useful, known = needed - books.free, max(1, least - books.free), books.funded
            if missing <= 0:
                return books.free, False
            asked = till.portion(missing, self._clock())
            home = await self._ledger.home.grant(scope, cell, books, asked=asked, least=useful)
            books = await self._deliver(scope, cell, books, home)
            till.share = self._share(home)
            if books.funded > known and home.free > 0:
                continue
            if least > home.limit or home.free >= useful:
                return books.free, True
            short = needed - books.free - home.free
            if short > 0 and (await self._call_back(scope, cell, home, short)).free < max(1, least - books.free):
                return books.free, True
            books = await self._look(scope, cell)
        return books.free, False

    def _share(self, home: HomeBooks) -> int:
        """The most of what a home has free that one cell is given for later."""
        return max(home.free, 0) // (2 * len(self._ledger.cells))

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

    def _till(self, scope: str, cell: int) -> Till:
        return self._tills.setdefault((scope, cell), Till())

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
