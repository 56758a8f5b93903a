"""I11: whatever is told between two cells is lost, doubled, late or overtaken, and whoever tells it dies: never over.

The test counts by itself what was admitted; it reads no sum of the cells to know what is spent. A seed that fails is
printed with the assertion, and repeats the same history.
"""

import os
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from apikeyrouter.domain.models.accounting import Admission, Settlement
from apikeyrouter.domain.models.escrow import ChildBooks, HomeBooks
from apikeyrouter.domain.models.system_error import LedgerError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.cell_ledger import CellLedger
from tests.cells.parts import LAYOUT, Cells
from tests.ledger.cells import local_engine
from tests.ledger.support import DAY, SECOND, Clock

SEEDS = range(400 if os.environ.get("AKR_LONG") else 12)
STEPS, LIMIT = 120, 1000
T = TypeVar("T")
pytestmark = pytest.mark.asyncio


class Network:
    """What becomes of messages between workers and cells. `late`: calls that arrive some time, or never."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.heals = chance, False
        self.late: list[Callable[[], Awaitable[object]]] = []

    async def carry(self, call: Callable[[], Awaitable[T]]) -> T:
        """Ask, however it goes. A worker that gets no answer stops where it is: it has died there."""
        fate = 1.0 if self.heals else self.chance.random()
        if fate < 0.1:
            raise LedgerUnavailableError("lost on its way")
        if fate < 0.25:
            self.late.append(call)
            raise LedgerUnavailableError("late")
        answer = await call()
        if fate < 0.35:
            await call()
        if fate < 0.5:
            self.late.append(call)
        if fate < 0.6:
            raise LedgerUnavailableError("the answer was lost")
        return answer

    async def deliver(self) -> None:
        """One of the late calls arrives, whichever."""
        if self.late:
            call = self.late.pop(self.chance.randrange(len(self.late)))
            await call()


class FarCell(CellLedger):
    """A cell at the other end of a network, as far as escrow asks it."""

    network: Network

    async def grant(self, scope: str, cell: int, told: ChildBooks, *, asked: int = 0, least: int = 0) -> HomeBooks:
        near = super().grant
        return await self.network.carry(lambda: near(scope, cell, told, asked=asked, least=least))

    async def fund(
        self, scope: str, *, start_us: int = 0, granted: int = 0, returned: int = 0, recall: int = 0
    ) -> ChildBooks:
        near = super().fund
        return await self.network.carry(
            lambda: near(scope, start_us=start_us, granted=granted, returned=returned, recall=recall)
        )


class World(Cells):
    """Three cells, a bad network, and what was admitted, by period."""

    def __init__(self, seed: int) -> None:
        super().__init__(Clock(), LIMIT)
        self.chance = random.Random(seed)
        self.network = Network(self.chance)
        cells = [FarCell(local_engine(self.clock), tries=1, layout=LAYOUT.text) for _ in LAYOUT.cells]
        for cell in cells:
            cell.network = self.network
        self.ledger.cells, self.ledger.home = tuple(cells), cells[0]
        self.escrow = self.ledger.funding = self.worker()
        self.open: dict[bytes, tuple[int, int]] = {}
        self.booked: dict[int, int] = {}

    async def step(self) -> None:
        """Something happens; nothing may be over after it."""
        act = self.chance.choices([self.ask, self.end, self.move, self.network.deliver, self.die, self.wait],
                                  [8, 4, 5, 4, 1, 2])[0]  # fmt: skip
        try:
            await act()
        except LedgerError:
            self.escrow = self.ledger.funding = self.worker()

    async def ask(self) -> None:
        amount, day = self.chance.choice([1, 7, 40, 250, 1000]), self.clock.now_us // DAY
        answer = await self.reserve(self.chance.randrange(3), amount)
        if isinstance(answer, Admission):
            self.open[answer.rid] = (day, amount)
            self.booked[day] = self.booked.get(day, 0) + amount

    async def end(self) -> None:
        if self.open:
            rid = self.chance.choice(list(self.open))
            day, amount = self.open.pop(rid)
            cost = self.chance.choice([amount, amount // 2, 0])
            self.booked[day] += cost - amount
            await self.ledger.settle(Settlement(rid=rid, input_tokens=1, output_tokens=1, cost_nanousd=cost))

    async def move(self) -> None:
        self.clock.advance(SECOND * self.chance.choice([1, 2, 12]))
        await self.escrow.tick()

    async def die(self) -> None:
        self.escrow = self.ledger.funding = self.worker()

    async def wait(self) -> None:
        if self.chance.random() < 0.1:
            self.clock.advance(DAY)


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_loss_repeat_delay_or_death_between_cells_overspends(seed: int) -> None:
    world = World(seed)
    await world.ledger.open()
    await world.ledger.put(scopes=[world.scope])
    for at in range(STEPS):
        await world.step()
        over = {day: spent for day, spent in world.booked.items() if spent > LIMIT}
        assert not over, f"seed {seed}, step {at}: {over}"
    world.network.heals = True
    while world.network.late:
        await world.network.deliver()
    for _ in range(30):
        world.clock.advance(2 * SECOND)
        await world.escrow.tick()
    left = LIMIT - world.booked.get(world.clock.now_us // DAY, 0)
    assert await world.spend(0, left) or left == 0, f"seed {seed}: {left} are stranded"
    assert not await world.spend(2, 1), f"seed {seed}: more than there is"
