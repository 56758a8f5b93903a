"""What several cells spare one server: CPU per request of each primary, with a namespace in one, two and three cells.

Each cell is on a server of its own, as on the primaries of a Cluster. Every request holds in four hard budgets over
all cells, and their money is moved by escrow meanwhile: the dearest case.

`python -m benchmarks.cells --write` keeps it in RESULTS.md.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from msgspec import structs
from tests.servers import Server, running

from apikeyrouter.domain.components.cells import Cell, CellLayout
from apikeyrouter.domain.models.accounting import Admission, rid_in
from apikeyrouter.infrastructure.cancellation import end_task
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.ledger.cell_ledger import CellLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.infrastructure.ledger.spread_ledger import SpreadLedger
from apikeyrouter.serving.escrow import TICK_SECONDS, Escrow
from benchmarks.payload import COST_NANOUSD
from benchmarks.processes import cpu_seconds
from benchmarks.proof import ProofError
from benchmarks.report import Figure, Section, show
from benchmarks.samples import Spread
from benchmarks.scripts import AT_ONCE, Demand, next_request, settlement_of
from benchmarks.workers import BUDGETS, configuration

__all__ = ["main", "measure_cells"]

COUNTS = (1, 2, 3)
KEYS, LANES = 100, 3
REQUESTS, ROUNDS = 9_600, 5


@dataclass(slots=True, kw_only=True)
class Namespace:
    """A namespace in some cells, each on a server of its own."""

    ledger: SpreadLedger
    escrow: Escrow
    servers: Sequence[Server]
    demand: Demand
    requests: int = 0

    async def round(self, requests: int) -> list[float]:
        """Hold and settle so many, in each cell alike: CPU of each server, µs for each request of all of them."""
        before = [cpu_seconds(server.pid) for server in self.servers]
        cells, moving = len(self.servers), asyncio.create_task(self._move())
        for _ in range(0, requests, AT_ONCE * cells):
            await asyncio.gather(*(self._page(cell) for cell in range(cells)))
        await end_task(moving)
        self.requests += requests
        after = [cpu_seconds(server.pid) for server in self.servers]
        return [(end - start) / requests * 1e6 for start, end in zip(before, after, strict=True)]

    async def _page(self, cell: int) -> None:
        asked = [next_request(self.demand) for _ in range(AT_ONCE)]
        held = [structs.replace(request, rid=rid_in(cell, request.rid)) for request in asked]
        for answer in await asyncio.gather(*(self.ledger.reserve(request) for request in held)):
            if not isinstance(answer, Admission):
                raise ProofError(f"a reserve was denied in cell {cell}: {answer.binding}")
        await self.ledger.settle_many([settlement_of(request) for request in held])
        await self.ledger.acknowledge([request.rid for request in held])

    async def _move(self) -> None:
        while True:
            await self.escrow.tick()
            await asyncio.sleep(TICK_SECONDS / 4)

    async def prove(self) -> None:
        """Every request was settled once, whatever was moved."""
        for scope in await self.ledger.scopes([BUDGETS[0], BUDGETS[3]]):
            if scope.settled != self.requests * COST_NANOUSD or scope.held or scope.suspense:
                raise ProofError(f"{scope.id} has {scope.settled} settled after {self.requests} requests")


@contextlib.asynccontextmanager
async def spread_over(servers: Sequence[Server]) -> AsyncIterator[Namespace]:
    """One cell on each of these servers."""
    config = compile_config(read_config(configuration("http://127.0.0.1:1/v1", count=KEYS)), environ={})
    layout = CellLayout.of([Cell(name=f"c{at}", quota_groups=(f"org-{at}",)) for at in range(1, len(servers))])
    cells = [
        CellLedger(RedisEngine(server.unix_url, namespace="cells", cell=cell.name, timeout_s=5.0), layout=layout.text)
        for server, cell in zip(servers, layout.cells, strict=True)
    ]
    ledger = SpreadLedger(layout, cells, group_of=lambda _: None)
    escrow = ledger.funding = Escrow(ledger, scopes=lambda: config.scopes)
    await ledger.open()
    await ledger.put(scopes=config.scopes)
    for cell in cells:
        await cell.put(lanes=config.lanes)
    demand = Demand(keys=KEYS, lanes=LANES, config=config)
    yield Namespace(ledger=ledger, escrow=escrow, servers=servers, demand=demand)
    await ledger.close()


def measure_cells(flavour: str = "valkey", *, rounds: int = ROUNDS, requests: int = REQUESTS) -> Section:
    """Every figure. Errors: ProofError."""
    return asyncio.run(_measure(flavour, rounds, requests))


async def _measure(flavour: str, rounds: int, requests: int) -> Section:
    samples: dict[int, list[list[float]]] = {count: [] for count in COUNTS}
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for count in COUNTS:
            servers = [stack.enter_context(running(flavour)) for _ in range(count)]
            made.append(await stack.enter_async_context(spread_over(servers)))
        for number in range(rounds + 1):
            for count, each in zip(COUNTS, made, strict=True):
                used = await each.round(requests)
                if number:
                    samples[count].append(used)
        for each in made:
            await each.prove()
        version = made[0].servers[0].version
    return _section(f"Several cells, {flavour} {version}", samples, rounds, requests)


def _section(title: str, samples: dict[int, list[list[float]]], rounds: int, requests: int) -> Section:
    section = Section(title=title)
    for count, used in samples.items():
        cells = f"{count} cell{'s' * (count > 1)}"
        busiest = Spread.of([max(each) for each in used])
        section.figures += [
            Figure(name=f"{cells}: CPU of the busiest server per request", measured=busiest.text("µs", digits=1)),
            Figure(
                name=f"{cells}: CPU of all servers per request",
                measured=Spread.of([sum(each) for each in used]).text("µs", digits=1),
            ),
            Figure(
                name=f"{cells}: requests a second when the busiest server uses a whole core",
                measured=f"{1e6 / busiest.median:,.0f}",
            ),
        ]
    spared = Spread.of([max(one) / max(three) for one, three in zip(samples[1], samples[COUNTS[-1]], strict=True)])
    section.figures.append(
        Figure(
            name=f"requests that fit on the busiest server: {COUNTS[-1]} cells over one",
            measured=spared.text("×", digits=2),
        )
    )
    section.notes = [
        f"reserve (8 candidates of {LANES} lanes, {KEYS} keys), settle and acknowledge in pages of {AT_ONCE}, spread"
        " evenly; four hard budgets over all cells, their money moved by escrow;"
        f" {rounds} rounds of {requests:,} requests",
        "CPU is that of the servers' processes; what a whole core would do is reckoned from it, not measured:"
        " this machine has fewer cores than servers and callers; with one caller, several servers wake for fewer calls"
        " at a time",
        "proven: settled money of all cells equals the requests; nothing held, nobody denied",
    ]
    return section


def main() -> int:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flavour", default="valkey")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--write", action="store_true", help="keep it in benchmarks/RESULTS.md")
    options = parser.parse_args()
    show(measure_cells(options.flavour, rounds=options.rounds, requests=options.requests), keep=options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
