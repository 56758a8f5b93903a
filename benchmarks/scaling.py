"""From one worker to several over one server: what a request costs each of them and the server, all asked at once.

`python -m benchmarks.scaling --write` keeps it in RESULTS.md. On a machine of few cores throughput says how the cores
are shared; what scales or does not is CPU per request.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.servers import Server, running

from benchmarks.load_client import Load, Slice, SliceResult, running_load
from benchmarks.processes import cpu_seconds
from benchmarks.proof import ProofError
from benchmarks.report import Figure, Section, show
from benchmarks.samples import Spread
from benchmarks.upstream import running_upstream
from benchmarks.workers import TOKEN, Worker, running_ours

__all__ = ["main", "measure_scaling"]

WORKERS = (1, 2, 4)
REQUESTS, CONNECTIONS = 1_500, 16
ROUNDS, ROUNDS_QUICK = 7, 2


def measure_scaling(*, quick: bool = False) -> Section:
    """Every figure. Errors: ProofError."""
    rounds = ROUNDS_QUICK if quick else ROUNDS
    figures = []
    with running_upstream() as upstream:
        for count in WORKERS:
            with contextlib.ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="akr-bench-")))
                server = stack.enter_context(running("valkey"))
                workers = []
                for number in range(count):
                    place = folder / str(number)
                    place.mkdir()
                    workers.append(
                        stack.enter_context(running_ours(upstream, server.unix_url, place, namespace="scaling"))
                    )
                loads = [stack.enter_context(running_load()) for _ in workers]
                samples = [_at_once(server, workers, loads) for _ in range(rounds + 1)][1:]
                figures.append(_figure(count, samples))
    return Section(
        title="From one worker to several, over one Valkey",
        figures=figures,
        notes=[
            f"{rounds} rounds of {REQUESTS:,} requests to each worker, all at once, {CONNECTIONS} connections each,"
            " after one round to warm up",
            f"{os.cpu_count()} cores for workers, server, upstream and load together: throughput is what they leave"
            " each other; CPU per request is what scales",
            "every request was answered with 200 and our answer",
        ],
    )


def _at_once(server: Server, workers: Sequence[Worker], loads: Sequence[Load]) -> tuple[float, float, float]:
    """CPU per request of a worker and of the server in µs, and requests a second of all."""
    results: list[SliceResult] = []

    def ask(worker: Worker, load: Load) -> None:
        told = Slice(
            port=worker.port, requests=REQUESTS, connections=CONNECTIONS, token=TOKEN, expect='"routing_metadata"'
        )
        results.append(load.run(told))

    before = sum(cpu_seconds(worker.pid) for worker in workers), cpu_seconds(server.pid)
    begun = time.perf_counter()
    threads = [threading.Thread(target=ask, args=pair) for pair in zip(workers, loads, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    own = sum(cpu_seconds(worker.pid) for worker in workers) - before[0]
    asked = REQUESTS * len(workers)
    if len(results) != len(workers) or any(result.errors for result in results):
        raise ProofError(f"wrong answers: {[result.shown for result in results]}")
    return own / asked * 1e6, (cpu_seconds(server.pid) - before[1]) / asked * 1e6, asked / seconds


def _figure(count: int, samples: list[tuple[float, float, float]]) -> Figure:
    own, of_server, rate = (Spread.of([sample[place] for sample in samples]) for place in range(3))
    return Figure(
        name=f"{count} worker{'s' * (count > 1)}: CPU per request, of the server, throughput of all",
        measured=f"{own.text('µs')}; {of_server.text('µs')}; {rate.text('a second')}",
    )


def main() -> int:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--write", action="store_true", help="keep it in benchmarks/RESULTS.md")
    options = parser.parse_args()
    try:
        section = measure_scaling(quick=options.quick)
    except ProofError as exc:
        print(f"no figure: the work was not done as asked: {exc}", file=sys.stderr)
        return 1
    show(section, keep=options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
