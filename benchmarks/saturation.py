"""Where a server saturates, and how long a reserve takes before it does.

The ledger's own commands, sent by processes that do nothing else (`ledger_load.py`).

`python -m benchmarks.saturation --write` keeps it in RESULTS.md, and what `capacity.py` reckons with.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence

from tests.servers import Server, running

from benchmarks.ledger_load import PAGE, Drive, Driver, running_driver
from benchmarks.payload import COST_NANOUSD
from benchmarks.processes import cpu_seconds
from benchmarks.proof import ProofError
from benchmarks.report import Figure, Section, show
from benchmarks.samples import Spread
from benchmarks.scripts import Cell, open_cell
from benchmarks.workers import BUDGETS

__all__ = ["Loaded", "loads", "main", "measure_saturation"]

KEYS, LANES = 100, 3
"""As the service has them: a key's own lane, its group's, its provider's."""
REQUESTS = 12_800
ROUNDS, ROUNDS_QUICK = 5, 1
TOGETHER = (1, 8, 32)
LOADS = (0.25, 0.5, 0.7, 0.85)
"""Shares of what the server can do at which the time of a reserve is measured."""
PACED_SECONDS = 1.5


class Loaded:
    """A cell with drivers at it."""

    def __init__(self, server: Server, cell: Cell, drivers: Sequence[Driver]) -> None:
        self.server, self.cell, self.drivers = server, cell, drivers
        self.requests = 0

    def drive(self, *, count: int, requests: int = REQUESTS, **told: float) -> Drive:
        """What one of `count` drivers does."""
        self.requests += requests * count
        return Drive(
            socket=self.server.unix_url.partition("://")[2].partition("?")[0], keys=self.cell.keys,
            namespace=f"scripts-{self.cell.keys}-{self.cell.lanes}", lanes=self.cell.lanes, requests=requests,
            **told,  # type: ignore[arg-type]
        )  # fmt: skip

    async def prove(self) -> None:
        """Every request was admitted and settled once."""
        wanted = (self.requests + self.cell.requests) * COST_NANOUSD
        for scope in await self.cell.ledger.scopes([BUDGETS[0], BUDGETS[3]]):
            if scope.settled != wanted or scope.held or scope.suspense:
                raise ProofError(f"{scope.id} has {scope.settled} settled and {scope.held} held, not {wanted} and 0")


@contextlib.asynccontextmanager
async def loads(servers: Sequence[Server], drivers: int, *, keys: int = KEYS) -> AsyncIterator[list[Loaded]]:
    """A cell on each server, and so many drivers for each."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            Loaded(
                server,
                await stack.enter_async_context(open_cell(server, keys, LANES)),
                [stack.enter_context(running_driver()) for _ in range(drivers)],
            )
            for server in servers
        ]


def measure_saturation(flavour: str = "valkey", *, quick: bool = False) -> Section:
    """Every figure. Errors: ProofError."""
    return asyncio.run(_measure(flavour, quick=quick))


async def _measure(flavour: str, *, quick: bool) -> Section:
    rounds, requests = (ROUNDS_QUICK, REQUESTS // 4) if quick else (ROUNDS, REQUESTS)
    figures: list[Figure] = []
    with running(flavour) as one, running(flavour) as two:
        async with loads([one], 2) as alone:
            flat: dict[tuple[int, int], list[tuple[float, float]]] = {}
            for number in range(rounds + 1):
                for drivers in (1, 2):
                    for together in TOGETHER if drivers == 1 else TOGETHER[-1:]:
                        sample = _flat_out(alone, drivers, requests, together)
                        if number:
                            flat.setdefault((drivers, together), []).append(sample)
            figures += [_flat_figure(*how, samples) for how, samples in flat.items()]
            best = Spread.of([rate for rate, _ in flat[1, TOGETHER[-1]]]).median
            for share in LOADS:
                figures.append(_paced_figure(alone[0], share, best, rounds))
            await alone[0].prove()
        async with loads([one, two], 1, keys=KEYS + 1) as both:
            pairs = [_flat_out(both, 1, requests, TOGETHER[-1]) for _ in range(rounds + 1)][1:]
            figures.append(_both_figure(pairs))
            for each in both:
                await each.prove()
        version = one.version
    return Section(
        title=f"Where a server saturates, {flavour} {version}",
        figures=figures,
        notes=[
            f"reserve (8 candidates of {LANES} lanes, {KEYS} keys, 4 hard budgets), settle in pages of {PAGE},"
            " acknowledge: the engine's own commands, encoded beforehand, over one unix socket a driver;"
            f" {rounds} rounds of {requests:,} requests a driver",
            "a server runs scripts in one thread: it saturates where it uses one core; drivers use the other one, and"
            " two servers share the two cores with their drivers: what counts there is CPU per request",
            "the time of a reserve counts from when it was due (Poisson arrivals), so that nothing is omitted",
            "proven: settled money equals the requests; nothing held",
        ],
    )


def _flat_out(cells: Sequence[Loaded], drivers: int, requests: int, together: int) -> tuple[float, float]:
    """Requests a second of all servers, and CPU of a server per request in µs."""
    going = [(loaded, driver) for loaded in cells for driver in loaded.drivers[:drivers]]
    for number, (loaded, driver) in enumerate(going):
        driver.prepare(loaded.drive(count=1, requests=requests, together=together, seed=number))
    before = sum(cpu_seconds(loaded.server.pid) for loaded in cells)
    for _, driver in going:
        driver.go()
    results = [driver.result() for _, driver in going]
    used = sum(cpu_seconds(loaded.server.pid) for loaded in cells) - before
    for result in results:
        if result.refused:
            raise ProofError(f"{result.refused} calls were refused: {result.shown}")
    asked = requests * len(going)
    return asked / max(result.seconds for result in results), used / asked * 1e6


def _flat_figure(drivers: int, together: int, samples: list[tuple[float, float]]) -> Figure:
    rates, cpu = (Spread.of([sample[place] for sample in samples]) for place in (0, 1))
    busy = Spread.of([rate * us / 1e6 for rate, us in samples]).median
    return Figure(
        name=f"{drivers} driver{'s' * (drivers > 1)}, {together} reserves a write",
        measured=f"{rates.text('requests/s')}; {cpu.text('µs', digits=1)} of server CPU; {busy:.0%} of a core",
    )


def _both_figure(pairs: list[tuple[float, float]]) -> Figure:
    rates, cpu = (Spread.of([pair[place] for pair in pairs]) for place in (0, 1))
    busy = Spread.of([rate * us / 1e6 for rate, us in pairs]).median
    return Figure(
        name=f"2 servers, a cell and a driver each, {TOGETHER[-1]} reserves a write",
        measured=f"{rates.text('requests/s')} together; {cpu.text('µs', digits=1)} of server CPU; {busy:.0%} of a core",
    )


def _paced_figure(loaded: Loaded, share: float, best: float, rounds: int) -> Figure:
    rate = share * best
    requests = int(rate * PACED_SECONDS) // PAGE * PAGE
    p50, p99 = [], []
    for number in range(rounds):
        driver = loaded.drivers[0]
        driver.prepare(loaded.drive(count=1, requests=requests, rate=rate, seed=number))
        driver.go()
        took = sorted(driver.result().latencies_us)
        p50.append(took[len(took) // 2])
        p99.append(took[len(took) * 99 // 100])
    return Figure(
        name=f"a reserve at {rate:,.0f} requests/s ({share:.0%}): p50 · p99",
        measured=f"{Spread.of(p50).text('µs')} · {Spread.of(p99).text('µs')}",
    )


def main() -> int:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of a quarter")
    parser.add_argument("--flavour", default="valkey", choices=("valkey", "redis"))
    parser.add_argument("--write", action="store_true", help="keep it in benchmarks/RESULTS.md")
    options = parser.parse_args()
    try:
        section = measure_saturation(options.flavour, quick=options.quick)
    except ProofError as exc:
        print(f"no figure: the work was not done as asked: {exc}", file=sys.stderr)
        return 1
    show(section, keep=options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
