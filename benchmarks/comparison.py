"""`make bench-peers`: ours and other gateways, the same upstream, the same requests, in turn: CPU, throughput, latency.

CPU is that of a gateway's whole process tree; its Redis is told apart. A peer that is not found is left out, and said
to be (`gateways.py` says where it is looked for).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers import Server, binaries, running

from benchmarks.gateways import PEERS, Started, program, running_gateway, running_litellm
from benchmarks.load_client import Load, Slice, SliceResult, running_load
from benchmarks.plot import write_dots
from benchmarks.processes import cpu_seconds, resident_bytes, tree, tree_cpu_seconds
from benchmarks.proof import ProofError, prove
from benchmarks.report import Figure, Section, print_sections
from benchmarks.results import keep_peers
from benchmarks.samples import Spread
from benchmarks.upstream import Upstream, running_upstream
from benchmarks.workers import TOKEN, Worker, running_ours, running_reference

__all__ = ["main"]

CONNECTIONS = 32
SLICE_SECONDS = 0.7
REQUESTS_MIN, REQUESTS_MAX = 64, 3_000
ROUNDS, CELL_ROUNDS, PACED_ROUNDS = 9, 3, 5
RATES = (30, 200, 500, 1_000)
PACED_SECONDS = 1.5
LOAD_MAX = 0.6
"""A rate is asked of a gateway only if it is at most this share of what it can do."""
CELLS = ((1, 1), (1, 256), (30, 32), (300, 32))
"""Kilobytes a request, connections."""
KEYS = (3, 100, 10_000)
PLOT = Path(__file__).parent / "cpu.svg"
_MARK = "chatcmpl-BenchBench"
_PEER_TOKEN = "sk-bench-peer"


@dataclass(slots=True)
class Contender:
    """One gateway under measurement."""

    name: str
    pid: int
    port: int
    token: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    expect: str = _MARK
    redis: Server | None = None
    ours: Worker | None = None
    asked: int = 0
    per_second: float = 0.0
    since_us: int = field(default_factory=lambda: time.time_ns() // 1000)


@dataclass(frozen=True, slots=True)
class Sample:
    """One slice, per request."""

    cpu_us: float
    redis_us: float
    result: SliceResult

    @property
    def per_second(self) -> float:
        """Requests answered in a second."""
        return self.result.answered / self.result.seconds


class Bench:
    """Runs slices, and sees to it that every request of them reached the upstream."""

    def __init__(self, load: Load, upstream: Upstream) -> None:
        self._load, self._upstream = load, upstream

    def run(
        self,
        who: Contender,
        *,
        kilobytes: int = 1,
        connections: int = CONNECTIONS,
        requests: int = 0,
        rate: float = 0.0,
    ) -> Sample:
        """One slice; as long as SLICE_SECONDS by what is known of it. Errors: ProofError."""
        if not requests:
            requests = max(REQUESTS_MIN, min(REQUESTS_MAX, int(who.per_second * SLICE_SECONDS)))
        slice_ = Slice(
            port=who.port, requests=requests, connections=connections, token=who.token, expect=who.expect, rate=rate,
            kilobytes=kilobytes, headers=who.headers,
        )  # fmt: skip
        reached, cpu, of_redis = self._upstream.requests(), tree_cpu_seconds(who.pid), _redis_seconds(who)
        result = self._load.run(slice_)
        sample = Sample(
            (tree_cpu_seconds(who.pid) - cpu) / requests * 1e6,
            (_redis_seconds(who) - of_redis) / requests * 1e6,
            result,
        )
        now = self._upstream.requests()
        if result.errors or result.answered != requests:
            raise ProofError(f"{who.name}: {result.errors} wrong answers of {requests}, e.g. {result.shown}")
        if reached is not None and now is not None and now - reached != requests:
            raise ProofError(f"{who.name}: {requests} requests, of which {now - reached} reached the upstream")
        who.asked += requests
        return sample


def _redis_seconds(who: Contender) -> float:
    return cpu_seconds(who.redis.pid) if who.redis is not None else 0.0


def main() -> int:
    """Measure, show, keep. Returns 1 when a proof failed: then there is no figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=tuple(_PARTS), default=list(_PARTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", action="store_true", help="keep it in benchmarks/PEERS.md")
    options = parser.parse_args()
    try:
        for part in options.parts:
            sections = _PARTS[part](options.rounds)
            print_sections(sections)
            if options.write:
                keep_peers(sections)
    except ProofError as exc:
        print(f"no figure: the work was not done as asked: {exc}", file=sys.stderr)
        return 1
    return 0


def _gateways(rounds: int) -> list[Section]:
    with _field() as (bench, field_, notes):
        samples: dict[str, list[Sample]] = {who.name: [] for who in field_}
        _warm_up(bench, field_)
        for _ in range(rounds):
            for who in field_:
                samples[who.name].append(bench.run(who))
        figures = [figure for who in field_ for figure in _main_figures(who, samples)]
        spreads = {name: Spread.of([sample.cpu_us for sample in own]) for name, own in samples.items()}
        write_dots(PLOT, "CPU per proxied request of 1 KB each way, logarithmic", "µs", spreads)
        figures += [
            Figure(name=f"{who.name}: memory", measured=f"{sum(map(resident_bytes, tree(who.pid))) / 1e6:,.0f} MB")
            for who in field_
        ]
        notes = [f"{CONNECTIONS} connections, ~1 KB each way, {rounds} rounds in turn", *notes, *_proofs(field_)]
    return [Section(title="CPU per request, and what one core serves", figures=figures, notes=notes)]


def _warm_up(bench: Bench, field_: list[Contender]) -> None:
    """And see how fast each is."""
    for requests in (REQUESTS_MIN, 0, 0, 0):
        for who in field_:
            who.per_second = bench.run(who, requests=requests).per_second


def _proofs(field_: list[Contender]) -> list[str]:
    told = ["every request of every gateway was answered with 200 and the upstream's answer, and reached the upstream"]
    for who in field_:
        if who.ours is not None and who.redis is not None:
            proof = prove(who.ours, who.redis.unix_url, requests=who.asked, errors=[], since_us=who.since_us)
            told.append(f"{who.name}: {proof}")
    return told


def _main_figures(who: Contender, samples: dict[str, list[Sample]]) -> Iterator[Figure]:
    own = samples[who.name]
    ratios = Spread.of([sample.cpu_us / base.cpu_us for sample, base in zip(own, samples["reference"], strict=True)])
    cpu = Spread.of([sample.cpu_us for sample in own])
    text = f"{cpu.text('µs')}; {ratios.median:.2f} × reference; {1e6 / cpu.median:,.0f} a second and core"
    if who.redis is not None:
        text += f"; its Redis {Spread.of([sample.redis_us for sample in own]).text('µs')}"
    yield Figure(name=f"{who.name}: CPU per request", measured=text)
    yield Figure(name=f"{who.name}: throughput", measured=Spread.of([s.per_second for s in own]).text("a second"))


def _by_size(rounds: int) -> list[Section]:
    figures = []
    with _field() as (bench, field_, notes):
        _warm_up(bench, field_)
        for kilobytes, connections in CELLS:
            taken: dict[str, list[float]] = {who.name: [] for who in field_}
            for _ in range(min(rounds, CELL_ROUNDS)):
                for who in field_:
                    share = 1.0 if kilobytes == 1 else 0.3
                    requests = max(REQUESTS_MIN, connections, int(who.per_second * SLICE_SECONDS * share))
                    sample = bench.run(who, requests=requests, kilobytes=kilobytes, connections=connections)
                    taken[who.name].append(sample.cpu_us)
            told = "; ".join(f"{name} {Spread.of(values).median:,.0f} µs" for name, values in taken.items())
            figures.append(Figure(name=f"{kilobytes} KB, {connections} connections", measured=told))
        notes += _proofs(field_)
    notes = [f"medians of {min(rounds, CELL_ROUNDS)} rounds in turn", *notes]
    return [Section(title="CPU per request by size and number of connections", figures=figures, notes=notes)]


def _latencies(rounds: int) -> list[Section]:
    """An open loop: requests start when they are due, and what waits for a free connection counts its waiting."""
    figures: list[Figure] = []
    with _field() as (bench, field_, notes):
        _warm_up(bench, field_)
        for rate in RATES:
            figures += _latencies_at(bench, field_, rate, min(rounds, PACED_ROUNDS))
        notes += _proofs(field_)
    how = f"open loop, {CONNECTIONS} connections, {min(rounds, PACED_ROUNDS)} rounds of {PACED_SECONDS:g} s in turn"
    title = "Added latency: p50 · p99 · p99.9, more than the reference at the same rate"
    return [Section(title=title, figures=figures, notes=[how, *notes])]


def _latencies_at(bench: Bench, field_: list[Contender], rate: int, rounds: int) -> Iterator[Figure]:
    reference, *others = field_
    able = [who for who in others if rate <= LOAD_MAX * who.per_second]
    requests = int(rate * PACED_SECONDS)
    more: dict[str, list[tuple[float, float, float]]] = {who.name: [] for who in able}
    for _ in range(rounds):
        base = bench.run(reference, requests=requests, rate=rate).result
        for who in able:
            own = bench.run(who, requests=requests, rate=rate).result
            more[who.name].append((own.p50_us - base.p50_us, own.p99_us - base.p99_us, own.p999_us - base.p999_us))
    for name, values in more.items():
        texts = [Spread.of([value[at] for value in values]).text("µs") for at in range(3)]
        yield Figure(name=f"{name}, {rate:,} requests a second", measured=" · ".join(texts))
    if left := [who.name for who in others if who not in able]:
        yield Figure(name=f"{rate:,} requests a second", measured=f"too much for {', '.join(left)}")


def _by_keys(rounds: int) -> list[Section]:
    """Ours over Valkey with few and with many keys."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="akr-bench-")))
        upstream = stack.enter_context(running_upstream())
        bench = Bench(stack.enter_context(running_load()), upstream)
        field_ = []
        for keys in KEYS:
            server = stack.enter_context(running("valkey"))
            worker = stack.enter_context(
                running_ours(upstream, server.unix_url, folder, namespace=f"keys-{keys}", keys=keys)
            )
            field_.append(_of_ours(f"{keys:,} keys", worker, server))
        taken: dict[str, list[float]] = {who.name: [] for who in field_}
        _warm_up(bench, field_)
        for _ in range(rounds):
            for who in field_:
                taken[who.name].append(bench.run(who).cpu_us)
        proofs = _proofs(field_)
    few = taken[field_[0].name]
    figures = []
    for name, values in taken.items():
        ratio = Spread.of([value / base for value, base in zip(values, few, strict=True)])
        text = f"{Spread.of(values).text('µs')}; {ratio.text(digits=2)} × {field_[0].name}"
        figures.append(Figure(name=f"ours on Valkey, {name}: CPU per request", measured=text))
    return [
        Section(title="CPU per request by number of keys", figures=figures, notes=[f"{rounds} rounds in turn", *proofs])
    ]


@contextlib.contextmanager
def _field() -> Iterator[tuple[Bench, list[Contender], list[str]]]:
    """The reference first, ours, and every peer that is found; and what is to be said of them."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="akr-bench-", ignore_cleanup_errors=True)))
        upstream = stack.enter_context(running_upstream())
        bench = Bench(stack.enter_context(running_load()), upstream)
        reference = stack.enter_context(running_reference(upstream))
        found = [Contender("reference", reference.pid, reference.port)]
        notes = [f"upstream: {upstream.name}; reference: uvicorn and aiohttp, nothing counted"]
        for flavour in binaries():
            server = stack.enter_context(running(flavour))
            worker = stack.enter_context(running_ours(upstream, server.unix_url, folder, namespace=flavour))
            found.append(_of_ours(f"ours on {flavour}", worker, server))
            notes.append(
                f"{flavour}: {server.version}; ours: client token, 4 hard budgets, limits, metrics, access log"
            )
        notes.append("Bifrost is not measured: its module is not on the Go module proxy")
        for peer in _PEERS:
            contender, said = peer(stack, upstream, folder)
            notes.append(said)
            if contender is not None:
                found.append(contender)
        yield bench, found, notes


def _of_ours(name: str, worker: Worker, server: Server) -> Contender:
    return Contender(name, worker.pid, worker.port, token=TOKEN, expect='"routing_metadata"', redis=server, ours=worker)


Found = tuple[Contender | None, str]


def _litellm(stack: contextlib.ExitStack, upstream: Upstream, folder: Path) -> Found:
    found = program("litellm")
    if found is None:
        return None, "LiteLLM: not installed here (LITELLM names its program)"
    server = stack.enter_context(running("redis"))
    started = stack.enter_context(
        running_litellm(1, PEERS / "litellm-bench.yaml", upstream.base_url, server, folder, _PEER_TOKEN)
    )
    said = f"LiteLLM {_python_version(found, 'litellm')}: one worker, Redis, `benchmarks/peers/litellm-bench.yaml`"
    return _of_peer("LiteLLM", started[0], token=_PEER_TOKEN, redis=server), said


def _portkey(stack: contextlib.ExitStack, upstream: Upstream, folder: Path) -> Found:
    found = program("portkey")
    if found is None:
        return None, "Portkey's gateway: not installed here (PORTKEY names its build/start-server.js)"
    started = stack.enter_context(
        running_gateway(1, lambda port: ["node", found, f"--port={port}", "--headless"], os.environ, folder, "/")
    )
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": upstream.base_url}
    package = json.loads((Path(found).resolve().parents[1] / "package.json").read_text())
    said = f"Portkey's gateway {package['version']}: one process, no shared state, key and host in headers"
    return _of_peer("Portkey", started[0], token=_PEER_TOKEN, headers=headers), said


def _of_peer(name: str, started: Started, **more: object) -> Contender:
    return Contender(name, started.pid, int(started.url.rpartition(":")[2]), **more)  # type: ignore[arg-type]


_PEERS: tuple[Callable[[contextlib.ExitStack, Upstream, Path], Found], ...] = (_litellm, _portkey)
_PARTS: dict[str, Callable[[int], list[Section]]] = {
    "gateways": _gateways, "sizes": _by_size, "latency": _latencies, "keys": _by_keys,
}  # fmt: skip


def _python_version(found: str, package: str) -> str:
    """Of a package in the environment that a program is in."""
    ask = f"import importlib.metadata as m; print(m.version({package!r}))"
    python = Path(found).parent / "python"
    told = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False, timeout=30)
    return told.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
