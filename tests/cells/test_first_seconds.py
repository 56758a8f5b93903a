"""The first seconds of a budget over three cells: who asks is served while there is money, wherever it lies.

Some workers ask the same cells over a network that takes its time, all in one thread and in virtual time: what happens
is drawn from a seed, and the same whenever it is run.
"""

import asyncio
import os
import random
from collections.abc import Sequence

import pytest

import apikeyrouter.serving.escrow
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
from apikeyrouter.infrastructure.ledger.cell_ledger import CellLedger
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.ledger.spread_ledger import SpreadLedger
from apikeyrouter.serving.escrow import Escrow
from tests.cells.parts import LAYOUT, SCOPE
from tests.faults.virtual_loop import VirtualLoop
from tests.ledger.cells import local_engine
from tests.ledger.support import Clock

SEEDS = range(100 if os.environ.get("AKR_LONG") else 2)
PER_SECOND, COST = 1500, 10
CALL_SECONDS = 0.2
CHARGE = Charge(expected_nanousd=COST, bound_nanousd=COST)


class Distant:
    """A cell's engine at the other end of a network. Each way takes up to `latency_s`."""

    def __init__(self, engine: LocalEngine, latency_s: float, chance: random.Random) -> None:
        self._engine, self._latency_s, self._chance = engine, latency_s, chance

    async def open(self) -> None:
        await self._engine.open()

    async def close(self) -> None:
        await self._engine.close()

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        await asyncio.sleep(self._latency_s * self._chance.uniform(0.3, 1))
        reply = await self._engine.run(name, args, pool=pool)
        await asyncio.sleep(self._latency_s * self._chance.uniform(0.3, 1))
        return reply


class LoopClock(Clock):
    """The servers' clock is the loop's."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def __call__(self) -> int:
        return self.now_us + self._loop.now_us


class Fleet:
    """Workers that share three cells and a hard budget. `spent_when_denied`: what was admitted before each denial."""

    def __init__(self, seed: int, *, workers: int, latency_s: float, limit: int) -> None:
        self.loop, self.chance = VirtualLoop(str(seed)), random.Random(seed)  # type: ignore[abstract]
        self.scope = ScopeConfig(id=SCOPE, limit_nanousd=limit, hard=True, period=Period.TOTAL)
        self.engines = [local_engine(LoopClock(self.loop)) for _ in LAYOUT.cells]
        self.workers = [self._worker(latency_s) for _ in range(workers)]
        self.asked = self.spent = 0
        self.spent_when_denied: list[int] = []

    def _worker(self, latency_s: float) -> tuple[SpreadLedger, Escrow]:
        engines = [Distant(engine, latency_s, self.chance) for engine in self.engines]
        cells = [CellLedger(engine, tries=1, layout=LAYOUT.text) for engine in engines]
        ledger = SpreadLedger(LAYOUT, cells, group_of=lambda _: None)
        escrow = ledger.funding = Escrow(ledger, scopes=lambda: [self.scope], clock=self.loop.time)
        return ledger, escrow

    def serve(self, *, seconds: float) -> None:
        """Open, and let each worker ask in every cell, at random."""
        try:
            self.loop.run_until_complete(self._serve(seconds))
        finally:
            self.loop.close()

    async def _serve(self, seconds: float) -> None:
        for ledger, _ in self.workers:
            await ledger.open()
        await self.workers[0][0].put(scopes=[self.scope])
        moving = [self.loop.create_task(self._move(escrow)) for _, escrow in self.workers]
        async with asyncio.TaskGroup() as group:
            while self.loop.time() < seconds:
                ledger, _ = self.chance.choice(self.workers)
                group.create_task(self._ask(ledger, self.chance.randrange(3)))
                await asyncio.sleep(self.chance.expovariate(PER_SECOND))
        for task in moving:
            task.cancel()

    async def _ask(self, ledger: SpreadLedger, cell: int) -> None:
        self.asked += 1
        rid = rid_in(cell, self.asked.to_bytes(16, "big"))
        candidate = Candidate(lanes=(("g:m:*", "g:n:*", "g:s:*")[cell],), charge=CHARGE)
        answer = await ledger.reserve(ReserveRequest(rid=rid, candidates=(candidate,), scopes=(SCOPE,)))
        if not isinstance(answer, Admission):
            self.spent_when_denied.append(self.spent)
            return
        self.spent += COST
        await asyncio.sleep(CALL_SECONDS)
        await ledger.settle(Settlement(rid=rid, input_tokens=1, output_tokens=1, cost_nanousd=COST))

    async def _move(self, escrow: Escrow) -> None:
        while True:
            await escrow.tick()
            await asyncio.sleep(0.25)


@pytest.fixture(autouse=True)
def ticks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """When workers look after their cells is drawn from a seed, too."""
    monkeypatch.setattr(apikeyrouter.serving.escrow, "random", random.Random(0))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("workers", "latency_s"), [(4, 0.001), (8, 0.005)])
def test_nobody_is_denied_while_a_budget_is_nearly_free(seed: int, workers: int, latency_s: float) -> None:
    fleet = Fleet(seed, workers=workers, latency_s=latency_s, limit=10_000_000)
    fleet.serve(seconds=0.6)
    assert fleet.asked > 500
    assert fleet.spent_when_denied == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_budget_is_almost_spent_before_anybody_is_denied_and_all_of_it_is_used(seed: int) -> None:
    fleet = Fleet(seed, workers=4, latency_s=0.001, limit=5000)
    fleet.serve(seconds=0.6)
    assert 0.97 * 5000 <= fleet.spent <= 5000 < fleet.asked * COST
    assert min(fleet.spent_when_denied) >= 0.9 * 5000
