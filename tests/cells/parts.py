"""Cells in this process, under a clock that tests move, and what they have spent together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from apikeyrouter.domain.components.cells import Cell, CellLayout
from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    Denial,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
    rid_in,
)
from apikeyrouter.domain.models.escrow import ChildBooks, HomeBooks
from apikeyrouter.infrastructure.ledger.cell_ledger import CellLedger
from apikeyrouter.infrastructure.ledger.spread_ledger import SpreadLedger
from apikeyrouter.serving.escrow import Escrow
from tests.ledger.cells import local_engine
from tests.ledger.support import Clock

SCOPE = "global:all"
LAYOUT = CellLayout.of([Cell(name="north", quota_groups=("n",)), Cell(name="south", quota_groups=("s",))])
_serial = count(1)


class Cells:
    """A main cell and two more, one budget over them, and who moves its money."""

    def __init__(self, clock: Clock, limit: int, *, hard: bool = True, period: Period = Period.DAILY) -> None:
        self.clock = clock
        self.scope = ScopeConfig(id=SCOPE, limit_nanousd=limit, hard=hard, period=period)
        engines = [local_engine(clock) for _ in LAYOUT.cells]
        cells = [CellLedger(engine, tries=1, layout=LAYOUT.text) for engine in engines]
        self.ledger = SpreadLedger(LAYOUT, cells, group_of=lambda _: None)
        self.escrow = self.ledger.funding = self.worker()

    def worker(self) -> Escrow:
        """One that knows nothing yet."""
        return Escrow(self.ledger, scopes=lambda: [self.scope], clock=lambda: self.clock.now_us / 1e6)

    async def reserve(self, cell: int, amount: int) -> Admission | Denial:
        """Ask a cell for money."""
        rid = rid_in(cell, next(_serial).to_bytes(16, "big"))
        charge = Charge(expected_nanousd=amount, bound_nanousd=amount)
        lane = ("g:m:*", "g:n:*", "g:s:*")[cell]
        candidate = Candidate(lanes=(lane,), charge=charge)
        return await self.ledger.reserve(ReserveRequest(rid=rid, candidates=(candidate,), scopes=(SCOPE,)))

    async def spend(self, cell: int, amount: int, cost: int | None = None) -> bool:
        """Hold so much and settle it, at that cost."""
        answer = await self.reserve(cell, amount)
        if isinstance(answer, Denial):
            return False
        await self.ledger.settle(
            Settlement(rid=answer.rid, input_tokens=1, output_tokens=1, cost_nanousd=amount if cost is None else cost)
        )
        return True

    async def spent(self) -> int:
        """What is settled, held and in suspense of the budget, read from each cell's own books."""
        home, *others = [await cell.scopes([SCOPE]) for cell in self.ledger.cells]
        granted = sum(granted - returned for granted, returned in (await self.home()).sums)
        own = sum(state.settled + state.held + state.suspense for state in home) - granted
        return own + sum(state.settled + state.held + state.suspense for states in others for state in states)

    async def home(self) -> HomeBooks:
        """The home's books."""
        return await self.ledger.home.grant(SCOPE, 1, ChildBooks())


@asynccontextmanager
async def cells(limit: int, *, hard: bool = True, period: Period = Period.DAILY) -> AsyncIterator[Cells]:
    """Opened, with the budget declared."""
    made = Cells(Clock(), limit, hard=hard, period=period)
    await made.ledger.open()
    await made.ledger.put(scopes=[made.scope])
    yield made
    await made.ledger.close()
