"""The capacity model checked against a simulation of its queues, up to a million requests a second.

And the tables of docs/capacity.md.

`python -m benchmarks.capacity`: all of it. `--rps 20000 --seconds 8 --keys 500`: one load. `--write`: the tables. The
simulation is the same for the same seed.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from apikeyrouter.commands.capacity import MEASURED, Costs, Load, Plan, plan_for, told

__all__ = ["Simulated", "doc_tables", "main", "simulate", "written"]

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
BEGIN, END = "<!-- tables: python -m benchmarks.capacity --write -->", "<!-- end of tables -->"
SEED = 20260501
REQUESTS = 40_000
"""Requests of the simulation that are counted, as many before them to fill the queues."""
SIMULATED_CELLS_MAX = 4
"""All cells are alike: of many, so many are simulated, with their share of the workers and of the load."""
BEFORE_RESERVE = 0.45
"""Part of a request's CPU in the worker before its reserve leaves."""
HOP_US = 120.0
"""The way to the server and back, within a data centre."""
LANES_PER_PAGE = 256
PAGE_SETTLEMENTS, FLUSH_US = 64, 5_000.0
"""As the bookkeeper sends them: so many, or what has come in so long."""
SPREAD = 0.15
"""Standard deviation of a service time, as a share of it."""
RATES = (100, 1_000, 5_000, 20_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What came out, in µs: how long a reserve takes, and what the router adds in all. `…_load`: shares of a core."""

    reserve_p50_us: float
    reserve_p99_us: float
    added_p50_us: float
    added_p99_us: float
    worker_load: float
    server_load: float
    keeps_up: bool


def simulate(
    load: Load, plan: Plan, costs: Costs = MEASURED, *, seed: int = SEED, requests: int = REQUESTS
) -> Simulated:
    """Poisson arrivals, a queue at each worker's core and one at each cell's; settlements in pages as the bookkeeper
    sends them; looks and chores of every worker. First come, first served."""
    chance = random.Random(seed)
    workers, cells, share = _sample(plan)
    rate = load.rps * share / 1e6  # a µs, of the part that is simulated
    span = 2 * requests / rate
    arrivals: list[tuple[float, int]] = []
    at = 0.0
    for _ in range(2 * requests):
        at += chance.expovariate(rate)
        arrivals.append((at, chance.randrange(workers)))
    sent, worker_busy = _worker_queues(load, plan, costs, chance, arrivals, workers, span)
    done, server_busy = _cell_queues(load, plan, costs, chance, sent, cells, workers, span)
    counted = range(requests, 2 * requests)
    reserve = sorted(done[number] - sent[number][0] for number in counted if done[number] > sent[number][0])
    after = costs.request_us * load.attempts * (1 - BEFORE_RESERVE)
    added = sorted(
        done[number] - arrivals[number][0] + after + sent[number][1] for number in range(requests, 2 * requests)
    )
    early = _median(done[n] - arrivals[n][0] for n in range(requests // 2, requests))
    late = _median(done[n] - arrivals[n][0] for n in range(2 * requests - requests // 2, 2 * requests))
    used = worker_busy / span / workers, server_busy / span / cells
    return Simulated(
        reserve_p50_us=_at(reserve, 0.5), reserve_p99_us=_at(reserve, 0.99), added_p50_us=_at(added, 0.5),
        added_p99_us=_at(added, 0.99), worker_load=used[0], server_load=used[1],
        keeps_up=max(used) < 1 and late < 3 * early + 1_000,
    )  # fmt: skip


class _Chores:
    """What a worker does beside its requests, in pieces of a page of lanes at most; of a worker and of a cell."""

    def __init__(self, load: Load, costs: Costs, plan: Plan) -> None:
        lanes = load.looks_per_second
        pieces = max(20.0, lanes / LANES_PER_PAGE)
        own = costs.idle_worker_us + plan.cells * costs.idle_cell_worker_us + lanes * costs.look_worker_us
        of_server = costs.idle_cell_server_us + lanes * costs.look_server_us / plan.cells
        of_server += costs.idle_server_us if plan.cells == 1 else 0.0
        self.every_us, self.of_worker_us, self.of_server_us = 1e6 / pieces, own / pieces, of_server / pieces


def _sample(plan: Plan) -> tuple[int, int, float]:
    """Workers and cells to simulate, and their share of the load. A worker talks to every cell: what the other workers
    ask of a cell is in its queue all the same (`_cell_queues`)."""
    cells = min(plan.cells, SIMULATED_CELLS_MAX)
    share = cells / plan.cells
    return max(1, round(plan.workers * share)), cells, share


def _served(chance: random.Random, us: float) -> float:
    return max(0.2 * us, chance.gauss(us, SPREAD * us))


def _worker_queues(
    load: Load,
    plan: Plan,
    costs: Costs,
    chance: random.Random,
    arrivals: Sequence[tuple[float, int]],
    workers: int,
    span: float,
) -> tuple[list[tuple[float, float]], float]:
    """When each request's reserve leaves its worker, and how long its second part waits there; CPU used in all."""
    request_us = costs.request_us * load.attempts + costs.event_us * load.events
    first_us = costs.request_us * load.attempts * BEFORE_RESERVE
    chores = _Chores(load, costs, plan)
    free, busy = [0.0] * workers, 0.0
    ticks = [chance.uniform(0, chores.every_us) for _ in range(workers)]
    seconds = sorted((chance.uniform(0, span), chance.randrange(workers)) for _ in arrivals)
    """Second parts, when they come: long after their first, thus at random."""
    next_second = 0
    sent: list[tuple[float, float]] = []
    for at, worker in arrivals:
        while next_second < len(seconds) and seconds[next_second][0] <= at:
            came, other = seconds[next_second]
            next_second += 1
            us = _served(chance, request_us - first_us)
            free[other] = max(free[other], came) + us
            busy += us
        while ticks[worker] <= at:
            free[worker] = max(free[worker], ticks[worker]) + chores.of_worker_us
            ticks[worker] += chores.every_us
            busy += chores.of_worker_us
        us = _served(chance, first_us)
        waits = max(0.0, free[worker] - at)
        free[worker] = at + waits + us
        busy += us
        sent.append((free[worker], waits))
    return sent, busy


def _cell_queues(
    load: Load,
    plan: Plan,
    costs: Costs,
    chance: random.Random,
    sent: Sequence[tuple[float, float]],
    cells: int,
    workers: int,
    span: float,
) -> tuple[list[float], float]:
    """When each request's reserve is answered by the server, and CPU used in all."""
    jobs: list[list[tuple[float, float, int]]] = [[] for _ in range(cells)]
    held = 1 / load.calls_per_slab
    done = [0.0] * len(sent)
    for number, (at, _) in enumerate(sent):
        if chance.random() < held:
            jobs[chance.randrange(cells)].append((at + HOP_US / 2, costs.reserve_us * load.attempts, number))
        else:
            done[number] = at  # its slab has room: it asks nobody
    for pages in _pages(load, costs, chance, len(sent) * held, cells, workers, span):
        jobs[chance.randrange(cells)].append(pages)
    chores = _Chores(load, costs, plan)
    for queue in jobs:  # every worker there is looks at every cell
        for _ in range(int(plan.workers * span / chores.every_us)):
            queue.append((chance.uniform(0, span), chores.of_server_us, -1))
    busy = 0.0
    for queue in jobs:
        free = 0.0
        for at, us, number in sorted(queue):
            us = _served(chance, us)
            free = max(free, at) + us
            busy += us
            if number >= 0:
                done[number] = free + HOP_US / 2
    return done, busy


def _pages(
    load: Load, costs: Costs, chance: random.Random, settlements: float, cells: int, workers: int, span: float
) -> Iterator[tuple[float, float, int]]:
    """The pages of settlements: a worker's of one cell leaves when it is full, or after a moment."""
    streams = workers * cells
    each = settlements * load.attempts / streams / span  # a µs
    if each <= 0:
        return
    mean = min(float(PAGE_SETTLEMENTS), 1 + each * FLUSH_US)
    count = round(settlements * load.attempts / mean)
    for _ in range(count):
        yield chance.uniform(0, span), costs.settle_us * mean, -1


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _median(values: Iterator[float]) -> float:
    return _at(sorted(values), 0.5)


# --- the page ----------------------------------------------------------------------------------------------------


def doc_tables(costs: Costs = MEASURED) -> str:
    """The tables of docs/capacity.md."""
    return "\n\n".join(["\n".join(_needs(costs)), "\n".join(_reserves(costs)), "\n".join(_slabs(costs))])


def _needs(costs: Costs) -> Iterator[str]:
    yield (
        "| requests/s | workers | cells | a worker's core: reckoned · simulated | a server's core |"
        " reserve p50 · p99 | added p50 · p99 |"
    )
    yield "|---|---|---|---|---|---|---|"
    for rps in RATES:
        load = Load(rps=rps)
        plan = plan_for(load, costs)
        seen = simulate(load, plan, costs)
        yield (
            f"| {rps:,} | {plan.workers:,} | {plan.cells:,} | {plan.worker_load:.0%} · {seen.worker_load:.0%} |"
            f" {plan.server_load:.0%} · {seen.server_load:.0%} |"
            f" {_ms(seen.reserve_p50_us, seen.reserve_p99_us)} | {_ms(seen.added_p50_us, seen.added_p99_us)} |"
        )


def _reserves(costs: Costs) -> Iterator[str]:
    yield "| one cell at | requests/s | reserve p50 · p99 | keeps up |"
    yield "|---|---|---|---|"
    for share in (0.25, 0.5, 0.7, 0.85, 0.95, 1.05):
        load, plan = _one_cell(share, costs)
        seen = simulate(load, plan, costs)
        shown = _ms(seen.reserve_p50_us, seen.reserve_p99_us) if seen.keeps_up else "grows without end"
        yield f"| {share:.0%} | {load.rps:,.0f} | {shown} | {'yes' if seen.keeps_up else 'no'} |"


def _one_cell(share: float, costs: Costs) -> tuple[Load, Plan]:
    """A cell that is used so much, with as many workers as that takes."""
    per_request = costs.reserve_us + costs.settle_us
    rate = share * 1e6 / per_request
    for _ in range(8):  # what workers take beside their requests, who follow from the rate
        plan = replace(plan_for(Load(rps=rate, server_load=0.99), costs), cells=1)
        chores = _Chores(Load(rps=rate), costs, plan)
        rate = (share * 1e6 - plan.workers * chores.of_server_us * 1e6 / chores.every_us) / per_request
    return Load(rps=rate), plan


def _slabs(costs: Costs) -> Iterator[str]:
    yield "| 100,000 requests/s, a slab of | workers | cells | reserve p99 of those who ask | added p50 · p99 |"
    yield "|---|---|---|---|---|"
    for calls in (1, 4, 16, 64):
        load = Load(rps=100_000, calls_per_slab=calls)
        plan = plan_for(load, costs)
        seen = simulate(load, plan, costs)
        yield (
            f"| {calls} | {plan.workers:,} | {plan.cells:,} | {seen.reserve_p99_us / 1000:.2f} ms |"
            f" {_ms(seen.added_p50_us, seen.added_p99_us)} |"
        )


def _ms(p50_us: float, p99_us: float) -> str:
    return f"{p50_us / 1000:.2f} · {p99_us / 1000:.2f} ms"


def written(text: str, tables: str) -> str:
    """The page with these tables."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> int:
    """The tables, or one load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rps", type=float, help="one load only")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--slab", type=float, default=1.0)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/capacity.md")
    options = parser.parse_args()
    if options.rps:
        load = Load(rps=options.rps, seconds=options.seconds, keys=options.keys, calls_per_slab=options.slab)
        plan = plan_for(load)
        seen = simulate(load, plan)
        print("\n".join(told(load, plan)))
        print(f"  simulated    reserve {_ms(seen.reserve_p50_us, seen.reserve_p99_us)} (p50 · p99), added in all"
              f" {_ms(seen.added_p50_us, seen.added_p99_us)}")  # fmt: skip
        return 0
    tables = doc_tables()
    print(tables)
    if options.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
