"""`apikeyrouter capacity`: how many workers and server cores a load needs, and how much memory.

Pure arithmetic over what was measured; docs/capacity.md explains it and checks it against a simulation.
"""

import json
import math
from dataclasses import asdict, dataclass, replace

import typer

__all__ = ["MEASURED", "Costs", "Load", "Plan", "plan_for", "run", "server_us", "told"]

TOMBSTONE_SECONDS = 61.0
"""How long a reservation that has ended is kept: acknowledged within a second, gone a minute later."""
LOOKS_PER_SECOND, LANES_PER_LOOK = 4, 2_048
"""What a worker reads of the lanes: housekeeping's tick."""
CELLS_MAX = 4_096
_ROUNDS = 20
"""Workers look at every cell, and cells bear every worker: their numbers are found in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What was measured. `…_us`: microseconds of CPU, of one worker or of one server's thread; `…_bytes`: of memory.

    `reserve_us`, `settle_us`: with reading and answering, pages of settlements and acknowledgements. `idle_…`: a second
    of a worker that nobody asks anything; `…_cell_…`: a second of it for each cell; `look_…`: each look at a lane.
    """

    request_us: float = 194.0
    event_us: float = 24.0
    reserve_us: float = 60.0
    settle_us: float = 18.0
    idle_worker_us: float = 10_000.0
    idle_cell_worker_us: float = 150.0
    look_worker_us: float = 7.0
    idle_server_us: float = 1_000.0
    idle_cell_server_us: float = 300.0
    look_server_us: float = 2.1
    worker_bytes: int = 100_000_000
    worker_key_bytes: int = 8_400
    worker_call_bytes: int = 30_000
    server_bytes: int = 4_000_000
    key_bytes: int = 1_600
    reservation_bytes: int = 650
    tombstone_bytes: int = 145
    budget_bytes: int = 325
    reserve_wire_bytes: int = 900

    def times(self, slowness: float) -> "Costs":
        """The same on cores that take so many times as long."""
        slower = {name: value * slowness for name, value in asdict(self).items() if name.endswith("_us")}
        return replace(self, **slower)


MEASURED = Costs()
"""On one core of an AMD EPYC under Linux, Python 3.11, Valkey 9.1; `benchmarks/RESULTS.md` has the runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is to be served. `seconds`: how long a provider takes; `events`: of an answer that is streamed (0: none is);
    `calls_per_slab`: requests that share one reservation; `attempts`: per request, failovers included.

    `worker_load`, `server_load`: shares of a core that are to be used at the most.
    """

    rps: float
    seconds: float = 8.0
    keys: int = 100
    budgets: int = 20
    events: float = 0.0
    calls_per_slab: float = 1.0
    attempts: float = 1.0
    worker_load: float = 0.6
    server_load: float = 0.5

    @property
    def looks_per_second(self) -> float:
        """Of one worker, at lanes."""
        return min(self.keys, LANES_PER_LOOK) * LOOKS_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a load needs. A cell is one server (or shard) with a core of its own; where one does not do, entities have a
    server beside the cells, used to `main_load`. Bytes are of one worker and of one cell.
    """

    workers: int
    cells: int
    worker_load: float
    server_load: float
    main_load: float
    worker_rps_max: float
    cell_rps_max: float
    open_calls: float
    worker_bytes: float
    server_bytes: float
    server_bytes_per_second: float


def server_us(load: Load, costs: Costs = MEASURED) -> float:
    """CPU of the server for one request: a slab is reserved and settled once for all its calls."""
    return (costs.reserve_us + costs.settle_us) * load.attempts / load.calls_per_slab


def plan_for(load: Load, costs: Costs = MEASURED) -> Plan:
    """Workers and cells so that neither is used beyond its share.

    Raises:
        ValueError: no number of them serves that: looking alone takes what they may use.
    """
    request_us = costs.request_us * load.attempts + costs.event_us * load.events
    workers = cells = 1
    for _ in range(_ROUNDS):
        before = workers, cells
        workers = _workers(load, costs, request_us, cells)
        cells = _cells(load, costs, workers)
        if before == (workers, cells):
            break
    idle_us = _idle_worker_us(load, costs, cells)
    looked_us = workers * load.looks_per_second * costs.look_server_us / cells
    chores_us = workers * costs.idle_cell_server_us
    main_us = workers * costs.idle_server_us
    of_cell = looked_us + chores_us + (main_us if cells == 1 else 0.0)
    per_request = server_us(load, costs)
    open_calls = load.rps * load.seconds * load.attempts
    reservations = load.rps * load.attempts / load.calls_per_slab
    ended = reservations * TOMBSTONE_SECONDS * costs.tombstone_bytes
    data = ended + load.keys * costs.key_bytes + load.budgets * costs.budget_bytes
    data += reservations * load.seconds * costs.reservation_bytes
    return Plan(
        workers=workers, cells=cells,
        worker_load=(load.rps / workers * request_us + idle_us) / 1e6,
        server_load=(load.rps * per_request / cells + of_cell) / 1e6,
        main_load=0.0 if cells == 1 else main_us / 1e6,
        worker_rps_max=(1e6 - idle_us) / request_us,
        cell_rps_max=max(0.0, 1e6 - of_cell) / per_request,
        open_calls=open_calls,
        worker_bytes=costs.worker_bytes + load.keys * costs.worker_key_bytes
        + open_calls / workers * costs.worker_call_bytes,
        server_bytes=costs.server_bytes + data / cells,
        server_bytes_per_second=reservations * costs.reserve_wire_bytes / cells,
    )  # fmt: skip


def _idle_worker_us(load: Load, costs: Costs, cells: int) -> float:
    """What a worker takes in a second beside its requests."""
    return costs.idle_worker_us + cells * costs.idle_cell_worker_us + load.looks_per_second * costs.look_worker_us


def _workers(load: Load, costs: Costs, request_us: float, cells: int) -> int:
    room_us = load.worker_load * 1e6 - _idle_worker_us(load, costs, cells)
    if room_us <= 0:
        raise ValueError("a worker that looks at so many keys and cells has no room: allow it more of its core")
    return max(1, math.ceil(load.rps * request_us / room_us))


def _cells(load: Load, costs: Costs, workers: int) -> int:
    asked = load.rps * server_us(load, costs) + workers * load.looks_per_second * costs.look_server_us
    room_us = load.server_load * 1e6 - workers * costs.idle_cell_server_us
    if asked + workers * costs.idle_server_us <= room_us:
        return 1
    if room_us <= 0 or math.ceil(asked / room_us) > CELLS_MAX:
        raise ValueError(
            f"{workers} workers that only look leave a server no room: make groups of them, each with cells"
        )
    return max(2, math.ceil(asked / room_us))


def told(load: Load, plan: Plan, costs: Costs = MEASURED) -> list[str]:
    """The plan in words, a line each."""
    cells = "1 server core" if plan.cells == 1 else f"{plan.cells} cells, a server core each"
    main = "" if plan.cells == 1 else f"; beside them one server for keys and configuration ({plan.main_load:.0%})"
    worker, cell = f"{plan.worker_rps_max:,.0f}", f"{plan.cell_rps_max:,.0f}"
    return [
        f"{load.rps:,.0f} requests a second, {load.seconds:g} s each, {load.keys:,} keys:",
        f"  workers      {plan.workers:,}, {plan.worker_load:.0%} of a core each; one serves at most {worker} a second",
        f"  ledger       {cells}, {plan.server_load:.0%} used; one serves at most {cell} a second,"
        f" {server_us(load, costs):.0f} µs a request{main}",
        f"  under way    {plan.open_calls:,.0f} calls, {plan.open_calls / plan.workers:,.0f} a worker",
        f"  memory       {_size(plan.worker_bytes)} a worker, {_size(plan.server_bytes)} of data a cell",
        f"  network      {_size(plan.server_bytes_per_second)} a second to each cell",
    ]


def run(load: Load, costs: Costs = MEASURED, *, json_: bool = False) -> int:
    """Print the plan. Returns 2 where there is none."""
    try:
        plan = plan_for(load, costs)
    except ValueError as exc:
        typer.echo(str(exc), err=True)
        return 2
    typer.echo(json.dumps(asdict(plan)) if json_ else "\n".join(told(load, plan, costs)))
    return 0


def _size(size: float) -> str:
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if size >= least:
            return f"{size / least:,.1f} {unit}"
    return f"{size / 1e3:,.0f} KB"
