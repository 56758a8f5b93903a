"""What slabs save Redis: `python -m benchmarks.slabs`. Several processes admit and book on one lane.

The workers are the library's own parts without HTTP (`tests/faults/slab_worker.py`): reserve, a call of 50 ms to
nobody, settle; heartbeat, sweep and flush as in the service. With slabs and without take turns on one server.
"""

import argparse
import sys
from subprocess import PIPE, Popen

import msgspec
from tests.faults.slab_worker import Did, Job
from tests.servers import Server, default_flavour, running

from benchmarks.processes import cpu_seconds, python_module, root
from benchmarks.proof import ProofError
from benchmarks.report import Figure, Section, print_sections, replace_sections
from benchmarks.samples import Spread

__all__ = ["measure_slabs"]

WORKERS, PER_SECOND, SECONDS = 4, 5_000, 8.0
PER_SECOND_EXACT = 2_000
"""Without slabs: more of it does not go through two cores that the workers and the server share."""
LIMIT_PER_SECOND, LIMIT_AT_ONCE = 10_000, 600_000
FAIR_CLIENTS = 8
FALL_MIN, JAIN_MIN = 10.0, 0.99


class Run(msgspec.Struct, kw_only=True):
    """One load, and what the server did meanwhile."""

    did: list[Did]
    commands: int
    server_seconds: float

    @property
    def admitted(self) -> int:
        return sum(did.admitted for did in self.did)


def measure_slabs(*, rounds: int, seconds: float) -> Section:
    """Commands and CPU of the server per request, and fairness. Errors: ProofError."""
    samples: dict[str, list[float]] = {}
    with running(default_flavour()) as server:
        for number in range(rounds):
            for slabs in (False, True):
                rate = PER_SECOND if slabs else PER_SECOND_EXACT
                run = _run(server, f"{number}{slabs}", slabs=slabs, seconds=seconds, rate=rate)
                name = "with slabs" if slabs else "without"
                for what, value in _figures(run, seconds, rate).items():
                    samples.setdefault(f"{what}, {name}", []).append(value)
        over = _run(server, "over", slabs=True, seconds=seconds, rate=3_000, limit=1_800)
    figures = [Figure(name=name, measured=Spread.of(values).text(digits=3)) for name, values in samples.items()]
    for what in ("server commands per request", "server CPU per request (µs)"):
        fall = Spread.of([a / b for a, b in _pairs(samples, what)])
        budget, holds = (f"≥ {FALL_MIN:g}", fall.median >= FALL_MIN) if "commands" in what else ("", None)
        figures.append(
            Figure(name=f"{what}: fall by a factor of", measured=fall.text(digits=1), budget=budget, holds=holds)
        )
    by_worker = jain([did.admitted for did in over.did])
    by_client = jain([sum(did.by_client[at] for did in over.did) for at in range(FAIR_CLIENTS)])
    for name, index in (("processes", by_worker), ("clients", by_client)):
        figures.append(
            Figure(name=f"Jain index between {name}, demand 1.7 × the limit", measured=f"{index:.4f}",
                   budget=f"≥ {JAIN_MIN}", holds=index >= JAIN_MIN)
        )  # fmt: skip
    return Section(
        title="Slabs: one lane at 5,000 requests a second", figures=figures,
        notes=[
            f"{WORKERS} processes, {PER_SECOND:,} requests a second together ({PER_SECOND_EXACT:,} without slabs) for"
            f" {seconds:g} s, one hard budget of all and one of the client, fairness"
            " on; the library's parts without HTTP, on a Valkey of its own.",
            "Commands are those that workers sent: FCALL in INFO commandstats. CPU is that of the server's process.",
        ],
    )  # fmt: skip


def _pairs(samples: dict[str, list[float]], what: str) -> list[tuple[float, float]]:
    return list(zip(samples[f"{what}, without"], samples[f"{what}, with slabs"], strict=True))


def _figures(run: Run, seconds: float, rate: int) -> dict[str, float]:
    if run.admitted < rate * seconds * 0.9:
        raise ProofError(f"{run.admitted} of {rate * seconds:.0f} requests were admitted")
    return {
        "requests a second": run.admitted / seconds,
        "server commands per request": run.commands / run.admitted,
        "server CPU per request (µs)": run.server_seconds / run.admitted * 1e6,
        "worker CPU per request (µs)": sum(did.cpu_seconds for did in run.did) / run.admitted * 1e6,
    }


def _run(server: Server, name: str, *, slabs: bool, seconds: float, rate: int, limit: int = LIMIT_PER_SECOND) -> Run:
    job = Job(
        url=server.url, slabs=slabs, per_second=rate // WORKERS, seconds=seconds, limit_per_second=limit,
        limit_at_once=LIMIT_AT_ONCE if limit == LIMIT_PER_SECOND else 8 * limit // 2,
        clients=1 if limit == LIMIT_PER_SECOND else FAIR_CLIENTS,
    )  # fmt: skip
    with server.client() as client:
        client.flushall()
        client.config_resetstat()
        before = cpu_seconds(server.pid)
        command = python_module("tests.faults.slab_worker", msgspec.json.encode(job).decode())
        workers = [Popen(command, stdout=PIPE, cwd=root()) for _ in range(WORKERS)]
        did = [msgspec.json.decode(worker.communicate()[0], type=Did) for worker in workers]
        spent = cpu_seconds(server.pid) - before
        stats = client.info("commandstats")
        commands = sum(stats.get(f"cmdstat_{each}", {}).get("calls", 0) for each in ("fcall", "fcall_ro"))
    if slabs and limit == LIMIT_PER_SECOND and sum(one.by_slab for one in did) < sum(one.admitted for one in did) / 2:
        raise ProofError(f"{name}: hardly anything came from slabs")
    return Run(did=did, commands=commands, server_seconds=spent)


def jain(shares: list[int]) -> float:
    """1: all have the same; 1 ÷ n: one has all."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def main() -> int:
    """Measure, show, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--write", action="store_true", help="keep it in benchmarks/RESULTS.md")
    options = parser.parse_args()
    section = measure_slabs(rounds=options.rounds, seconds=options.seconds)
    print_sections([section])
    if options.write:
        replace_sections(root() / "benchmarks" / "RESULTS.md", [section])
    return 0


if __name__ == "__main__":
    sys.exit(main())
