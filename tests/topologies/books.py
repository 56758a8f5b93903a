"""A budget on a ledger, and calls that are booked through whatever happens to its servers."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from apikeyrouter.domain.components.cells import Cell, CellLayout
from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
    rid_in,
)
from apikeyrouter.domain.models.system_error import LedgerError, LedgerUnavailableError
from apikeyrouter.infrastructure.cancellation import end_task
from apikeyrouter.infrastructure.ledger.cell_ledger import CellLedger
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger, SpreadLedger
from apikeyrouter.serving.escrow import Escrow

SCOPE = "global:all"
COST = 1_000
LANE = "k:one"
WAIT_SECONDS_MAX = 40.0
LAYOUT = CellLayout.of([Cell(name="north", quota_groups=("n",)), Cell(name="south", quota_groups=("s",))])
SPREAD = "spread"
"""The namespace of what is accounted in several cells."""
CANDIDATE = Candidate(lanes=(LANE,), scopes=(SCOPE,), charge=Charge(expected_nanousd=COST, bound_nanousd=COST))


@asynccontextmanager
async def ledger_at(url: str, *, limit: int = 10**9, timeout_s: float = 0.5) -> AsyncIterator[ScriptLedger]:
    """An open ledger with a hard budget of `limit` nano-dollars."""
    ledger = ScriptLedger(RedisEngine(url, timeout_s=timeout_s))
    await ledger.open()
    try:
        await ledger.put(scopes=[ScopeConfig(id=SCOPE, limit_nanousd=limit, hard=True, period=Period.TOTAL)])
        yield ledger
    finally:
        await ledger.close()


@asynccontextmanager
async def spread_at(url: str, *, limit: int) -> AsyncIterator[SpreadLedger]:
    """The same over three cells, and who moves its money."""
    engines = [RedisEngine(url, namespace=SPREAD, cell=cell.name, timeout_s=0.5) for cell in LAYOUT.cells]
    ledger = SpreadLedger(
        LAYOUT, [CellLedger(engine, layout=LAYOUT.text) for engine in engines], group_of=lambda _: None
    )
    scope = ScopeConfig(id=SCOPE, limit_nanousd=limit, hard=True, period=Period.TOTAL)
    escrow = ledger.funding = Escrow(ledger, scopes=lambda: [scope])
    await ledger.open()
    moving = asyncio.create_task(_move(escrow))
    try:
        await ledger.put(scopes=[scope])
        yield ledger
    finally:
        await end_task(moving)
        await ledger.close()


async def _move(escrow: Escrow) -> None:
    while True:
        with contextlib.suppress(LedgerError):
            await escrow.tick()
        await asyncio.sleep(0.1)


async def booked(ledger: AnyLedger, *, cell: int = 0) -> bool:
    """One call, reserved and settled, however long its server is away. Whether it was admitted."""
    rid = rid_in(cell, uuid.uuid4().bytes)
    request = ReserveRequest(rid=rid, candidates=(CANDIDATE,))
    settlement = Settlement(rid=rid, input_tokens=1, output_tokens=1, cost_nanousd=COST)
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    admitted: bool | None = None
    while time.monotonic() < deadline:
        try:
            if admitted is None:
                admitted = isinstance(await ledger.reserve(request), Admission)
            if admitted:
                await ledger.settle(settlement)
            return admitted
        except LedgerUnavailableError:
            await asyncio.sleep(0.02)
    raise AssertionError(f"nobody serves after {WAIT_SECONDS_MAX} s")


async def spent(ledger: AnyLedger) -> tuple[int, int]:
    """What the budget says is settled, and held; asked until somebody answers."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            states = await ledger.scopes([SCOPE])
            return sum(state.settled for state in states), sum(state.held for state in states)
        except LedgerUnavailableError:
            await asyncio.sleep(0.02)
    raise AssertionError(f"nobody serves after {WAIT_SECONDS_MAX} s")
