"""What things take: memory of the server and of a worker, and what a worker that nobody asks anything costs.

`python -m benchmarks.footprint --write` keeps it in RESULTS.md.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from tests.servers import Server, running

from apikeyrouter.domain.models.accounting import Period, ReserveRequest, ScopeConfig
from benchmarks.load_client import Load, Slice, running_load
from benchmarks.processes import cpu_seconds, resident_bytes
from benchmarks.report import Figure, Section, show
from benchmarks.saturation import LANES
from benchmarks.scripts import Cell, next_request, open_cell, reserved, settlement_of
from benchmarks.upstream import Upstream, running_streaming_upstream, running_upstream
from benchmarks.workers import TOKEN, running_ours

__all__ = ["main", "measure_footprint"]

FEW, MANY = 100, 10_000
RESERVATIONS, BUDGETS, CLIENTS = 8_000, 2_000, 4_000
TOGETHER = 64
IDLE_SECONDS = 4.0
WARM_REQUESTS = 2_000
CALLS = 800


def measure_footprint(*, keys: int = MANY) -> Section:
    """Every figure, as differences."""
    with running("valkey") as server:
        figures = asyncio.run(_of_ledger(server))
    with tempfile.TemporaryDirectory(prefix="akr-bench-") as name, running_load() as load:
        with running_upstream() as upstream:
            few, many = (_of_worker(Path(name), upstream, load, count) for count in (FEW, keys))
        with running_streaming_upstream() as slow:
            call_bytes = _of_calls(Path(name), slow, load)
    more = keys - FEW
    figures += [
        Figure(name="a key, everything of it in the store", measured=_bytes((many.store - few.store) / more)),
        Figure(name="a key, in a worker", measured=_bytes((many.worker - few.worker) / more)),
        Figure(name="a call under way, streamed, in a worker", measured=_bytes(call_bytes)),
        Figure(name=f"a worker with {FEW} keys after load", measured=f"{few.worker / 1e6:.0f} MB"),
        Figure(name=f"a worker with {keys:,} keys after load", measured=f"{many.worker / 1e6:.0f} MB"),
        Figure(name="an idle worker, its own CPU", measured=f"{few.idle_us / 1000:.1f} ms a second"),
        Figure(name="an idle worker, CPU of the server", measured=f"{few.server_us / 1000:.1f} ms a second"),
        Figure(
            name=f"an idle worker with {keys:,} keys: its own CPU, of the server",
            measured=f"{many.idle_us / 1000:.1f} ms, {many.server_us / 1000:.1f} ms a second",
        ),
    ]
    notes = [
        f"differences of `used_memory` around {RESERVATIONS:,} reservations ({LANES} lanes and 4 budgets each),"
        f" {BUDGETS:,} budgets, {CLIENTS:,} clients, {keys:,} keys; of resident memory for workers"
        f" ({CALLS:,} calls at once)",
        "a reservation becomes a tombstone when it ends; that is acknowledged within a second and goes a minute later",
    ]
    return Section(title="What things take", figures=figures, notes=notes)


class _Worker(msgspec.Struct, kw_only=True):
    """Bytes after load, and CPU in µs a second of a worker that nobody asks anything."""

    worker: int
    store: int
    idle_us: float
    server_us: float


def _of_worker(folder: Path, upstream: Upstream, load: Load, keys: int) -> _Worker:
    with running("valkey") as server:
        before = _used(server)
        with running_ours(upstream, server.unix_url, folder, namespace=f"keys-{keys}", keys=keys) as worker:
            load.run(Slice(port=worker.port, requests=WARM_REQUESTS, token=TOKEN))
            time.sleep(1.5)  # what is done behind the requests
            store = _used(server) - before
            own, of_server = cpu_seconds(worker.pid), cpu_seconds(server.pid)
            time.sleep(IDLE_SECONDS)
            return _Worker(
                worker=resident_bytes(worker.pid), store=store,
                idle_us=(cpu_seconds(worker.pid) - own) / IDLE_SECONDS * 1e6,
                server_us=(cpu_seconds(server.pid) - of_server) / IDLE_SECONDS * 1e6,
            )  # fmt: skip


def _of_calls(folder: Path, upstream: Upstream, load: Load) -> float:
    """Memory of a call under way, by what many at once leave behind: it is not given back."""
    with (
        running("valkey") as server,
        running_ours(upstream, server.unix_url, folder, namespace="calls") as worker,
    ):
        load.run(Slice(port=worker.port, requests=WARM_REQUESTS // 4, token=TOKEN, stream=True))
        before = resident_bytes(worker.pid)
        load.run(Slice(port=worker.port, requests=CALLS, connections=CALLS, token=TOKEN, stream=True))
        return (resident_bytes(worker.pid) - before) / CALLS


async def _of_ledger(server: Server) -> list[Figure]:
    async with open_cell(server, FEW, LANES) as cell:
        held = [next_request(cell) for _ in range(RESERVATIONS)]
        empty = _used(server)
        await _all(cell, held)
        full = _used(server)
        for at in range(0, RESERVATIONS, TOGETHER):
            await cell.ledger.settle_many([settlement_of(request) for request in held[at : at + TOGETHER]])
        buried = _used(server)
        scopes = [
            ScopeConfig(id=f"team:t{number}:budget", limit_nanousd=10**12, hard=True, period=Period.DAILY)
            for number in range(BUDGETS)
        ]
        await cell.ledger.put(scopes=scopes)
        spent = [replace_scope(next_request(cell), scope.id) for scope in scopes]
        await _all(cell, spent)
        await cell.ledger.settle_many([settlement_of(request) for request in spent])
        used = _used(server)
        grave = (buried - empty) / RESERVATIONS
        named = [msgspec.structs.replace(next_request(cell), principal=f"client-{number}") for number in range(CLIENTS)]
        await _all(cell, named)
        await cell.ledger.settle_many([settlement_of(request) for request in named])
        known = _used(server)
    return [
        Figure(name="a reservation that is open", measured=_bytes((full - empty) / RESERVATIONS)),
        Figure(name="a tombstone", measured=_bytes(grave)),
        Figure(name="a budget that is used", measured=_bytes((used - buried) / BUDGETS - grave)),
        Figure(
            name="a client, beside its limits and budgets", measured=_bytes(max(0, (known - used) / CLIENTS - grave))
        ),
    ]


def replace_scope(request: ReserveRequest, scope: str) -> ReserveRequest:
    """The same request in another budget as well."""
    return msgspec.structs.replace(request, scopes=(*request.scopes, scope))


async def _all(cell: Cell, requests: list[ReserveRequest]) -> None:
    for at in range(0, len(requests), TOGETHER):
        await asyncio.gather(*(reserved(cell, request) for request in requests[at : at + TOGETHER]))


def _used(server: Server) -> int:
    with server.client() as client:
        return int(client.info("memory")["used_memory"])


def _bytes(size: float) -> str:
    return f"{size:,.0f} bytes"


def main() -> int:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=MANY)
    parser.add_argument("--write", action="store_true", help="keep it in benchmarks/RESULTS.md")
    options = parser.parse_args()
    section = measure_footprint(keys=options.keys)
    show(section, keep=options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
