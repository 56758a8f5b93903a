"""The server's side: time of each script, per request, under the conditions of the design's §8.

Each phase runs one kind of script only, between two resets of the server's statistics, so that `commandstats` tells
them apart. Cells of different sizes take turns, each on a server of its own, as one is deployed.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis
from tests.servers import Server, running

from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    ReserveRequest,
    Settlement,
)
from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.compiled import CompiledConfig
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from benchmarks.payload import COMPLETION_TOKENS, COST_NANOUSD, MODEL, PROMPT_TOKENS
from benchmarks.processes import cpu_seconds
from benchmarks.proof import ProofError
from benchmarks.report import Figure, Section
from benchmarks.samples import Spread
from benchmarks.workers import BUDGETS, CLIENT, configuration

__all__ = ["Cell", "Demand", "measure_scripts", "next_request", "open_cell", "reserved", "settlement_of"]

CANDIDATES = 8
AT_ONCE = 32
"""Calls that are under way together, as under load; the server runs them one after the other."""
DUE, ENDED = 8, 4
"""Leases that are due when a reserve comes, and how many of them it ends."""
SHORT_LEASE_US = 400_000
LONG_LEASE_US = 30_000_000
CPU = "CPU of every phase"
FEW = 7
"""Settlements in a page of a service that has one request at a time: it sends what has come in some milliseconds."""
PHASES = ("reserve", "settle", "settle by few", "settle by page", "acknowledge")
"""What a round runs, in this order; CPU has one sample for each."""
RESERVE_SETTLE_US_MAX, RESERVE_SETTLE_US_AIM = 60.0, 45.0
DUE_US_MAX = 150.0
GROWTH_MAX = 1.2
_SERVICE_LANES, _DESIGN_LANES = 3, 2


@dataclass(slots=True, kw_only=True)
class Demand:
    """Whose candidates are asked for: so many keys, so many lanes each; `at`: the next one."""

    keys: int
    lanes: int
    config: CompiledConfig
    at: int = 0


@dataclass(slots=True, kw_only=True)
class Cell(Demand):
    """One cell under measurement, and its samples in µs of server time per request."""

    pid: int
    client: Redis
    ledger: ScriptLedger
    requests: int = 0
    samples: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, us: float) -> None:
        self.samples.setdefault(name, []).append(us)

    def spread(self, *names: str) -> Spread:
        """Of the sum of these, round by round."""
        return Spread.of([sum(values) for values in zip(*(self.samples[name] for name in names), strict=True)])


def measure_scripts(flavour: str, *, rounds: int, requests: int) -> Section:
    """Every figure of one kind of server. Errors: ProofError."""
    return asyncio.run(_measure(flavour, rounds, requests))


async def _measure(flavour: str, rounds: int, requests: int) -> Section:
    sizes = [(3, _DESIGN_LANES), (100, _DESIGN_LANES), (10_000, _DESIGN_LANES), (100, _SERVICE_LANES)]
    async with AsyncExitStack() as stack:
        servers = [stack.enter_context(running(flavour)) for _ in sizes]
        cells = [
            await stack.enter_async_context(open_cell(server, keys, lanes))
            for server, (keys, lanes) in zip(servers, sizes, strict=True)
        ]
        for number in range(rounds + 1):
            for cell in cells:
                await _round(cell, requests)
                if number == 0:
                    cell.samples.clear()
        for _ in range(rounds * 3):
            await _due(cells[1])
        for cell in cells:
            await _prove(cell)
    return _section(servers[0], cells, rounds, requests)


@asynccontextmanager
async def open_cell(server: Server, keys: int, lanes: int) -> AsyncIterator[Cell]:
    """A configured cell with that many keys, whose candidates hold that many lanes."""
    entries = configuration("http://127.0.0.1:1/v1", count=keys)
    config = compile_config(read_config(entries), environ={})
    ledger = ScriptLedger(RedisEngine(server.unix_url, namespace=f"scripts-{keys}-{lanes}", timeout_s=5.0))
    async with Redis.from_url(server.unix_url) as client:
        await ledger.open()
        await ledger.put(lanes=config.lanes, scopes=config.scopes)
        cell = Cell(keys=keys, lanes=lanes, pid=server.pid, client=client, ledger=ledger, config=config)
        first = next_request(cell)
        await reserved(cell, first)  # supplies calendars
        await ledger.settle(settlement_of(first))
        await ledger.acknowledge([first.rid])
        cell.requests += 1
        yield cell
        await ledger.close()


async def _round(cell: Cell, requests: int) -> None:
    """Hold, settle one by one and in pages, acknowledge: each phase by itself."""
    held = [next_request(cell) for _ in range(requests)]
    cell.note("reserve", await _phase(cell, [reserved(cell, request) for request in held], requests))
    part = requests // 3
    ends = [settlement_of(request) for request in held]
    for name, some, size in (
        ("settle", ends[:part], 1),
        ("settle by few", ends[part : 2 * part], FEW),
        ("settle by page", ends[2 * part :], AT_ONCE),
    ):
        pages = [some[at : at + size] for at in range(0, len(some), size)]
        cell.note(name, await _phase(cell, [cell.ledger.settle_many(page) for page in pages], len(some)))
    rids = [request.rid for request in held]
    parts = [rids[at : at + AT_ONCE] for at in range(0, len(rids), AT_ONCE)]
    cell.note("acknowledge", await _phase(cell, [cell.ledger.acknowledge(part) for part in parts], len(rids)))
    cell.requests += requests


async def _due(cell: Cell) -> None:
    """Reserves that find eight leases due each. What they end is settled afterwards: the books stay even."""
    short = [next_request(cell, lease_us=SHORT_LEASE_US) for _ in range(DUE * AT_ONCE)]
    await asyncio.gather(*(reserved(cell, request) for request in short))
    await asyncio.sleep(1.5 * SHORT_LEASE_US / 1e6)
    requests = [next_request(cell) for _ in range(AT_ONCE)]
    us = await _phase(cell, [reserved(cell, request) for request in requests], AT_ONCE)
    if len(await cell.ledger.reservations(suspended=True)) != ENDED * AT_ONCE:
        raise ProofError(f"{cell.keys} keys: the reserves did not end {ENDED} leases each")
    cell.note("reserve with 8 due", us)
    ended = (*short, *requests)
    await cell.ledger.settle_many([settlement_of(each) for each in ended])
    await cell.ledger.acknowledge([each.rid for each in ended])
    cell.requests += (DUE + 1) * AT_ONCE


async def _phase(cell: Cell, calls: Sequence[object], requests: int) -> float:
    """Server time per request of these calls, in µs, some at once. Errors: ProofError when others ran as well."""
    await cell.client.config_resetstat()
    before = cpu_seconds(cell.pid)
    for at in range(0, len(calls), AT_ONCE):
        await asyncio.gather(*calls[at : at + AT_ONCE])  # type: ignore[call-overload]
    cell.note(CPU, (cpu_seconds(cell.pid) - before) / requests * 1e6)
    stats = (await cell.client.info("commandstats"))["cmdstat_fcall"]
    if stats["calls"] != len(calls):
        raise ProofError(f"{cell.keys} keys: {stats['calls']} scripts ran instead of {len(calls)}")
    return float(stats["usec"]) / requests


async def reserved(cell: Cell, request: ReserveRequest) -> None:
    """Hold. Errors: ProofError when it is denied."""
    answer = await cell.ledger.reserve(request)
    if not isinstance(answer, Admission):
        raise ProofError(f"{cell.keys} keys: a reserve was denied ({answer.binding})")


async def _prove(cell: Cell) -> None:
    for scope in await cell.ledger.scopes([BUDGETS[0], BUDGETS[3]]):
        if scope.settled != cell.requests * COST_NANOUSD or scope.held or scope.suspense:
            raise ProofError(f"{cell.keys} keys: {scope.id} has {scope.settled} settled after {cell.requests} requests")


def next_request(cell: Demand, *, lease_us: int = LONG_LEASE_US) -> ReserveRequest:
    """The next candidates, round and round through all keys."""
    count = min(CANDIDATES, cell.keys)
    keys = [cell.config.keys[(cell.at + number) % cell.keys] for number in range(count)]
    cell.at += count
    charge = Charge(
        input_tokens=PROMPT_TOKENS, output_tokens=COMPLETION_TOKENS, metered_tokens=PROMPT_TOKENS + 100,
        expected_nanousd=COST_NANOUSD, bound_nanousd=3 * COST_NANOUSD,
    )  # fmt: skip
    candidates = [
        Candidate(lanes=cell.config.lanes_of(key, MODEL)[: cell.lanes], scopes=(BUDGETS[3],), charge=charge)
        for key in keys
    ]
    return ReserveRequest(
        rid=os.urandom(16),
        candidates=tuple(candidates),
        scopes=BUDGETS[:3],
        lease_us=lease_us,
        principal=CLIENT,
        pool=MODEL,
    )


def settlement_of(request: ReserveRequest) -> Settlement:
    """How such a request ends: with the fixed answer's usage."""
    return Settlement(
        rid=request.rid, input_tokens=PROMPT_TOKENS, output_tokens=COMPLETION_TOKENS, cost_nanousd=COST_NANOUSD,
        latency_us=1_000,
    )  # fmt: skip


def _section(server: Server, cells: Sequence[Cell], rounds: int, requests: int) -> Section:
    section = Section(title=f"Scripts, µs of server time per request, {server.flavour} {server.version}")
    for cell in cells:
        what = f"{cell.keys:,} keys, {min(CANDIDATES, cell.keys)} candidates of {cell.lanes} lanes"
        for name in PHASES:
            section.figures.append(Figure(name=f"{what}: {name}", measured=cell.spread(name).text("µs", digits=1)))
        for settle, note in (
            ("settle", "one by one"),
            ("settle by few", f"settled {FEW} at a time"),
            ("settle by page", f"settled {AT_ONCE} at a time"),
        ):
            section.figures.append(_budgeted(cell, f"{what}: reserve + settle, {note}", settle))
        section.figures.append(_server_cpu(cell, what))
    section.figures.append(_growth(cells[1], cells[2]))
    due = cells[1].spread("reserve with 8 due")
    section.figures.append(
        Figure(
            name=f"a reserve with {DUE} leases due, of which it ends {ENDED}", measured=due.text("µs"),
            budget=f"≤ {DUE_US_MAX:g} µs", holds=due.median <= DUE_US_MAX,
        )
    )  # fmt: skip
    section.notes = [
        f"{rounds} rounds of {requests:,} requests a cell, after one round to warm up; cells in turn, each on a server"
        " of its own; 4 hard budgets, fairness on, no lease due",
        "`commandstats` counts wall time of the server's thread",
        f"the service holds {_SERVICE_LANES} lanes a candidate (key, group, provider) and settles in pages:"
        f" about {FEW} a page with one request at a time, {AT_ONCE} with {AT_ONCE} (`other scripts` says how often)",
        "proven: number of scripts, every admission, and settled money equal the requests; nothing held",
    ]
    return section


def _budgeted(cell: Cell, name: str, settle: str) -> Figure:
    """Under budget are the design's conditions: two lanes a candidate."""
    spread = cell.spread("reserve", settle)
    is_design = cell.lanes == _DESIGN_LANES
    return Figure(
        name=name,
        measured=spread.text("µs", digits=1),
        budget=f"≤ {RESERVE_SETTLE_US_MAX:g} µs (in the end {RESERVE_SETTLE_US_AIM:g})" if is_design else "",
        holds=spread.median <= RESERVE_SETTLE_US_MAX if is_design else None,
    )


def _server_cpu(cell: Cell, what: str) -> Figure:
    """Unlike `commandstats`, not lengthened by what else runs; but reading and answering are in it."""
    samples = cell.samples[CPU]
    rounds = len(cell.samples[PHASES[0]])
    sums = [samples[at * len(PHASES)] + samples[at * len(PHASES) + 1] for at in range(rounds)]
    name = f"{what}: CPU of the server, reserve + settle one by one, with I/O"
    return Figure(name=name, measured=Spread.of(sums).text("µs", digits=1))


def _growth(few: Cell, many: Cell) -> Figure:
    pairs = zip(
        [a + b for a, b in zip(few.samples["reserve"], few.samples["settle"], strict=True)],
        [a + b for a, b in zip(many.samples["reserve"], many.samples["settle"], strict=True)],
        strict=True,
    )
    ratio = Spread.of([most / least for least, most in pairs])
    return Figure(
        name=f"reserve + settle, {many.keys:,} keys ÷ {few.keys} keys", measured=ratio.text(digits=2),
        budget=f"≤ {GROWTH_MAX}", holds=ratio.median <= GROWTH_MAX,
    )  # fmt: skip
