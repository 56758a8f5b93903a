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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers import Server, binaries, free_port, running

from benchmarks.builtin_upstream import EVENT_SECONDS
from benchmarks.gateways import PEERS, Started, running_gateway, running_litellm
from benchmarks.install_peers import program
from benchmarks.load_client import Load, Slice, SliceResult, running_load
from benchmarks.payload import MODEL, STREAM_EVENTS
from benchmarks.plot import write_dots
from benchmarks.processes import cpu_seconds, resident_bytes, tree, tree_cpu_seconds
from benchmarks.proof import ProofError, prove
from benchmarks.report import Figure, Section, print_sections
from benchmarks.results import keep_peers
from benchmarks.samples import Spread
from benchmarks.upstream import Upstream, running_streaming_upstream, running_upstream
from benchmarks.workers import TOKEN, Worker, running_ours, running_reference

__all__ = ["main"]

CONNECTIONS = 32
SLICE_SECONDS = 0.7
REQUESTS_MIN, REQUESTS_MAX = 64, 3_000
ROUNDS, CELL_ROUNDS, PACED_ROUNDS, STREAM_ROUNDS = 9, 5, 7, 5
RATES = (30, 200, 500, 1_000)
PACED_SECONDS = 1.0
STREAMS = 64
PART_SECONDS_MAX = 230.0
"""A part begins no further round after that: all five are done in less than twenty minutes."""
ROUNDS_MIN = 3
LOAD_MAX = 0.6
"""A rate is asked of a gateway only if it is at most this share of what it can do."""
CELLS = ((1, 1), (1, 256), (30, 32), (300, 32))
"""Kilobytes a request, connections."""
KEYS = (3, 100, 10_000)
PARTS_OFF: Mapping[str, Sequence[str]] = {
    "everything on": (),
    "no metrics": ("metrics",),
    "no access log": ("access_log",),
    "no budgets": ("budgets",),
    "no clients": ("clients", "budgets"),
    "keys alone": ("clients", "budgets", "limits", "prices", "metrics", "access_log"),
}
"""What ours is measured without, by sections of its file. Budgets of the client and its team go with the clients."""
PLOT, LATENCY_PLOT = Path(__file__).parent / "cpu.svg", Path(__file__).parent / "latency.svg"
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
    start_seconds: float = 0.0
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
        stream: bool = False,
    ) -> Sample:
        """One slice; as long as SLICE_SECONDS by what is known of it. Errors: ProofError."""
        if not requests:
            requests = max(REQUESTS_MIN, min(REQUESTS_MAX, int(who.per_second * SLICE_SECONDS)))
        slice_ = Slice(
            port=who.port, requests=requests, connections=connections, token=who.token, rate=rate,
            expect="" if stream else who.expect, kilobytes=kilobytes, headers=who.headers, stream=stream,
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
            begun = time.monotonic()
            sections = _PARTS[part](options.rounds)
            sections[-1].notes.append(f"this part took {time.monotonic() - begun:.0f} s")
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
        for _ in _rounds(rounds):
            for who in field_:
                samples[who.name].append(bench.run(who))
        figures = [figure for who in field_ for figure in _main_figures(who, samples)]
        spreads = {name: Spread.of([sample.cpu_us for sample in own]) for name, own in samples.items()}
        write_dots(PLOT, "CPU per proxied request of 1 KB each way, logarithmic", "µs", spreads)
        figures += [
            Figure(
                name=f"{who.name}: memory after load; start-up",
                measured=f"{sum(map(resident_bytes, tree(who.pid))) / 1e6:,.0f} MB; {who.start_seconds:.1f} s",
            )
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
            for _ in _rounds(min(rounds, CELL_ROUNDS), PART_SECONDS_MAX / len(CELLS)):
                for who in field_:
                    share = 1.0 if kilobytes == 1 else 0.3
                    requests = max(REQUESTS_MIN, connections, int(who.per_second * SLICE_SECONDS * share))
                    sample = bench.run(who, requests=requests, kilobytes=kilobytes, connections=connections)
                    taken[who.name].append(sample.cpu_us)
            told = "; ".join(f"{name} {Spread.of(values).median:,.0f} µs" for name, values in taken.items())
            figures.append(Figure(name=f"{kilobytes} KB, {connections} connections", measured=told))
        notes += _proofs(field_)
    notes = [f"medians of {min(rounds, CELL_ROUNDS)} rounds in turn, or what {PART_SECONDS_MAX:g} s allow", *notes]
    return [Section(title="CPU per request by size and number of connections", figures=figures, notes=notes)]


def _latencies(rounds: int) -> list[Section]:
    """An open loop: requests start when they are due, and what waits for a free connection counts its waiting."""
    figures: list[Figure] = []
    plotted: dict[str, Spread] = {}
    with _field() as (bench, field_, notes):
        _warm_up(bench, field_)
        for rate in RATES:
            figures += _latencies_at(bench, field_, rate, min(rounds, PACED_ROUNDS), plotted)
        if plotted:
            write_dots(LATENCY_PLOT, "Added latency over the reference's, median, logarithmic", "µs", plotted)
        notes += _proofs(field_)
    how = f"open loop, {CONNECTIONS} connections, {min(rounds, PACED_ROUNDS)} rounds of {PACED_SECONDS:g} s in turn"
    title = "Added latency: p50 · p99 · p99.9, more than the reference at the same rate"
    return [Section(title=title, figures=figures, notes=[how, *notes])]


def _latencies_at(
    bench: Bench, field_: list[Contender], rate: int, rounds: int, plotted: dict[str, Spread]
) -> Iterator[Figure]:
    reference, *others = field_
    able = [who for who in others if rate <= LOAD_MAX * who.per_second]
    requests = int(rate * PACED_SECONDS)
    more: dict[str, list[tuple[float, float, float]]] = {who.name: [] for who in able}
    for _ in _rounds(rounds, PART_SECONDS_MAX / len(RATES)):
        base = bench.run(reference, requests=requests, rate=rate).result
        for who in able:
            own = bench.run(who, requests=requests, rate=rate).result
            more[who.name].append((own.p50_us - base.p50_us, own.p99_us - base.p99_us, own.p999_us - base.p999_us))
    for name, values in more.items():
        spreads = [Spread.of([value[at] for value in values]) for at in range(3)]
        plotted[f"{name}, {rate:,}/s"] = Spread.of([max(1.0, value[0]) for value in values])
        told = " · ".join(spread.text("µs") for spread in spreads)
        yield Figure(name=f"{name}, {rate:,} requests a second", measured=told)
    if left := [who.name for who in others if who not in able]:
        yield Figure(name=f"{rate:,} requests a second", measured=f"too much for {', '.join(left)}")


def _streams(rounds: int) -> list[Section]:
    """Streamed answers whose events come one by one: CPU per event, and how long until the first byte."""
    events = STREAM_EVENTS + 3
    figures = []
    with _field(running_streaming_upstream) as (bench, field_, notes):
        for who in field_[:]:
            try:
                who.per_second = bench.run(who, requests=STREAMS, stream=True).per_second
            except ProofError as exc:
                if who.ours is not None or who is field_[0]:
                    raise
                field_.remove(who)
                notes.append(f"does not stream what this upstream streams: {str(exc)[:160]}")
        taken: dict[str, list[Sample]] = {who.name: [] for who in field_}
        for _ in _rounds(min(rounds, STREAM_ROUNDS)):
            for who in field_:
                taken[who.name].append(bench.run(who, requests=STREAMS, stream=True))
        base = taken["reference"]
        for name, samples in taken.items():
            cpu = Spread.of([sample.cpu_us / events for sample in samples])
            first = [
                (own.result.first_p50_us - of.result.first_p50_us, own.result.first_p99_us - of.result.first_p99_us)
                for own, of in zip(samples, base, strict=True)
            ]
            later = " · ".join(Spread.of([pair[at] for pair in first]).text("µs") for at in (0, 1))
            figures.append(
                Figure(
                    name=f"{name}: CPU per event; first token, later than the reference's (p50 · p99)",
                    measured=f"{cpu.text('µs', digits=1)}; {later}",
                )
            )
        notes += _proofs(field_)
    how = f"{events} events a stream, {EVENT_SECONDS * 1000:g} ms apart, {CONNECTIONS} streams at a time"
    return [Section(title="Streams through gateways", figures=figures, notes=[how, *notes])]


def _by_parts(rounds: int) -> list[Section]:
    """Ours over Valkey with everything on, and without."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="akr-bench-")))
        upstream = stack.enter_context(running_upstream())
        bench = Bench(stack.enter_context(running_load()), upstream)
        reference = stack.enter_context(running_reference(upstream))
        field_ = [Contender("reference", reference.pid, reference.port)]
        for number, (name, without) in enumerate(PARTS_OFF.items()):
            server = stack.enter_context(running("valkey"))
            namespace = f"parts-{number}"
            worker = stack.enter_context(
                running_ours(upstream, server.unix_url, folder, namespace=namespace, without=without)
            )
            who = _of_ours(name, worker, server)
            who.token = "" if "clients" in without else who.token
            field_.append(who)
        taken: dict[str, list[float]] = {who.name: [] for who in field_}
        _warm_up(bench, field_)
        for _ in _rounds(rounds):
            for who in field_:
                taken[who.name].append(bench.run(who).cpu_us)
    figures = []
    base = taken["reference"]
    for name, values in taken.items():
        ratio = Spread.of([value / other for value, other in zip(values, base, strict=True)])
        text = f"{Spread.of(values).text('µs')}; {ratio.text(digits=2)} × reference"
        figures.append(Figure(name=name if name == "reference" else f"ours on Valkey, {name}", measured=text))
    notes = [f"CPU per request; {rounds} rounds in turn; {CONNECTIONS} connections, ~1 KB each way"]
    return [Section(title="CPU per request by what is on", figures=figures, notes=notes)]


def _rounds(rounds: int, seconds: float = PART_SECONDS_MAX) -> Iterator[int]:
    """So many rounds, and none that begins later than that, but the first few."""
    begun = time.monotonic()
    for number in range(rounds):
        if number >= ROUNDS_MIN and time.monotonic() - begun > seconds:
            return
        yield number


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
        for _ in _rounds(rounds):
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
def _field(
    upstream_of: Callable[[], contextlib.AbstractContextManager[Upstream]] = running_upstream,
) -> Iterator[tuple[Bench, list[Contender], list[str]]]:
    """The reference first, ours, and every peer that is found; and what is to be said of them."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="akr-bench-", ignore_cleanup_errors=True)))
        upstream = stack.enter_context(upstream_of())
        bench = Bench(stack.enter_context(running_load()), upstream)
        reference = stack.enter_context(running_reference(upstream))
        found = [Contender("reference", reference.pid, reference.port, start_seconds=reference.start_seconds)]
        notes = [f"upstream: {upstream.name}; reference: uvicorn and aiohttp, nothing counted"]
        for flavour in binaries():
            server = stack.enter_context(running(flavour))
            worker = stack.enter_context(running_ours(upstream, server.unix_url, folder, namespace=flavour))
            found.append(_of_ours(f"ours on {flavour}", worker, server))
            notes.append(
                f"{flavour}: {server.version}; ours: client token, 4 hard budgets, limits, metrics, access log"
            )
        notes.append(_LEFT_OUT)
        for peer in _PEERS:
            contender, said = peer(stack, upstream, folder)
            notes.append(said)
            if contender is not None:
                found.append(contender)
        yield bench, found, notes


def _of_ours(name: str, worker: Worker, server: Server) -> Contender:
    return Contender(
        name, worker.pid, worker.port, token=TOKEN, expect='"routing_metadata"', redis=server, ours=worker,
        start_seconds=worker.start_seconds,
    )  # fmt: skip


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


def _onwards(stack: contextlib.ExitStack, upstream: Upstream, folder: Path) -> Found:
    found = program("onwards")
    if found is None:
        return None, "onwards: not installed here (ONWARDS names its program)"
    config = folder / "onwards.json"
    target = {"url": f"{upstream.base_url}/", "onwards_key": "sk-bench-1", "rate_limit": _NEVER_REACHED}
    config.write_text(json.dumps({"targets": {MODEL: target}, "auth": {"global_keys": [_PEER_TOKEN]}}))
    metrics = str(free_port())

    def command(port: int) -> list[str]:
        return [found, "--port", str(port), "--metrics-port", metrics, "--metrics", "--targets", str(config)]

    quiet = {**os.environ, "ONWARDS_SHUTDOWN_DELAY_SECS": "0", "RUST_LOG": "error"}
    started = stack.enter_context(running_gateway(1, command, quiet, folder, "/v1/models", token=_PEER_TOKEN))
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout
    said = (
        f"onwards {told.split()[-1]} (Rust): one process, token, metrics and a rate limit of its own; no shared state"
    )
    return _of_peer("onwards", started[0], token=_PEER_TOKEN), f"{said}, no usage, no costs"


def _of_peer(name: str, started: Started, **more: object) -> Contender:
    port = int(started.url.rpartition(":")[2])
    return Contender(name, started.pid, port, start_seconds=started.start_seconds, **more)  # type: ignore[arg-type]


_NEVER_REACHED = {"requests_per_second": 1_000_000, "burst_size": 1_000_000}
_LEFT_OUT = (
    "not measured: Bifrost, Envoy's AI gateway and one-api (Go; the module proxy does not serve them), Helicone's"
    " gateway (not in npm's registry)"
)
_PEERS: tuple[Callable[[contextlib.ExitStack, Upstream, Path], Found], ...] = (_litellm, _portkey, _onwards)
_PARTS: dict[str, Callable[[int], list[Section]]] = {
    "gateways": _gateways, "sizes": _by_size, "latency": _latencies, "streams": _streams, "keys": _by_keys,
    "parts": _by_parts,
}  # fmt: skip


def _python_version(found: str, package: str) -> str:
    """Of a package in the environment that a program is in."""
    ask = f"import importlib.metadata as m; print(m.version({package!r}))"
    python = Path(found).parent / "python"
    told = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False, timeout=30)
    return told.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
