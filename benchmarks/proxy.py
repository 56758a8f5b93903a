"""The main figure: CPU per request of our worker against the reference's, in slices that take turns."""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers import Server

from benchmarks.builtin_upstream import EVENT_SECONDS
from benchmarks.load_client import Load, Slice, SliceResult
from benchmarks.payload import STREAM_EVENTS
from benchmarks.processes import cpu_seconds, resident_bytes
from benchmarks.proof import prove
from benchmarks.report import Figure, Section
from benchmarks.round_trips import count_scripts
from benchmarks.samples import Spread
from benchmarks.upstream import running_streaming_upstream, running_upstream
from benchmarks.workers import TOKEN, Worker, running_ours, running_reference

__all__ = ["Plan", "measure_proxy", "measure_streams"]

CONNECTIONS = 32
SERIAL_REQUESTS = 200
RATIO_MAX, RATIO_AIM = 1.7, 1.0
RSS_BYTES_MAX = 100 * 10**6
ADDED_P50_US_MAX, ADDED_P99_US_MAX = 1_000, 3_000
EVENT_US_MAX, FIRST_TOKEN_US_MAX = 8, 1_000
_MARK = '"routing_metadata"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int
    requests: int
    paced_rounds: int
    paced_seconds: float
    streams: int


@dataclass(slots=True)
class _Measured:
    """What one worker's slices gave."""

    cpu_us: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    results: list[SliceResult] = field(default_factory=list)
    requests: int = 0

    @property
    def errors(self) -> list[str]:
        """The load client's complaints."""
        return [f"{result.errors} wrong answers, e.g. {result.shown}" for result in self.results if result.errors]


def measure_proxy(server: Server, load: Load, plan: Plan) -> Section:
    """Reference and ours, over one server. Errors: ProofError."""
    with tempfile.TemporaryDirectory(prefix="akr-bench-") as name, running_upstream() as upstream:
        since_us = time.time_ns() // 1000
        with (
            running_reference(upstream) as reference,
            running_ours(upstream, server.unix_url, Path(name), namespace="bench") as ours,
        ):
            workers = {reference: _Measured(), ours: _Measured()}
            _take_turns(workers, load, plan.rounds, plan.requests)
            paced = _paced(workers, load, plan)
            counted = {
                connections: _scripts(server, ours, workers[ours], load, connections)
                for connections in (1, CONNECTIONS)
            }
            proof = prove(
                ours, server.unix_url, requests=workers[ours].requests, errors=workers[ours].errors, since_us=since_us
            )
            rss = [(worker.name, resident_bytes(worker.pid)) for worker in workers]
    section = Section(title=f"One worker, {server.flavour} {server.version} over a unix socket")
    section.figures = [*_cpu_figures(workers[reference], workers[ours]), *paced]
    section.figures += [*_script_figures(counted), *(_rss_figure(worker, size) for worker, size in rss)]
    section.notes = [
        f"upstream: {upstream.name}; {CONNECTIONS} connections, {plan.rounds} rounds of {plan.requests:,} requests"
        " each, in turn, after one round to warm up; CPU is user and system time of the worker process",
        "on: client token, 4 hard budgets (global daily, team monthly, client hourly, provider total), 8 keys in one"
        " quota group with rpm and tpm, key and provider lanes, fairness, metrics, access log; ~1 KB each way",
        f"proven: {proof}",
    ]
    return section


def measure_streams(server: Server, load: Load, plan: Plan) -> Section:
    """CPU per event of a stream whose events come one by one. Errors: ProofError."""
    events = STREAM_EVENTS + 3
    with tempfile.TemporaryDirectory(prefix="akr-bench-") as name, running_streaming_upstream() as upstream:
        since_us = time.time_ns() // 1000
        with (
            running_reference(upstream) as reference,
            running_ours(upstream, server.unix_url, Path(name), namespace="streams") as ours,
        ):
            workers = {reference: _Measured(), ours: _Measured()}
            _take_turns(workers, load, max(3, plan.rounds // 2), plan.streams, stream=True)
            first = _first_tokens(workers, load, plan, events)
            proof = prove(
                ours, server.unix_url, requests=workers[ours].requests, errors=workers[ours].errors, since_us=since_us
            )
    of_reference, of_ours = ([us / events for us in workers[worker].cpu_us] for worker in (reference, ours))
    more = Spread.of([own - base for own, base in zip(of_ours, of_reference, strict=True)])
    figures = [
        Figure(name="reference, CPU per event", measured=Spread.of(of_reference).text("µs", digits=1)),
        Figure(name="ours, CPU per event", measured=Spread.of(of_ours).text("µs", digits=1)),
        Figure(
            name="ours, more than the reference (round by round)",
            measured=more.text("µs", digits=1),
            budget=f"≤ {EVENT_US_MAX} µs",
            holds=more.median <= EVENT_US_MAX,
        ),
        *first,
    ]
    notes = [
        f"{events} events a stream, {EVENT_SECONDS * 1000:g} ms apart; {CONNECTIONS} streams at a time, but for the"
        " first token: an open loop there, at which our worker uses half of a CPU, the reference at the same rate",
        f"proven: {proof}",
    ]
    return Section(title="Streams", figures=figures, notes=notes)


def _first_tokens(workers: dict[Worker, _Measured], load: Load, plan: Plan, events: int) -> list[Figure]:
    """How much later than over the reference the first event comes at half load, both at the same rate."""
    if not plan.paced_rounds:
        return []
    reference, ours = workers
    rate = 0.5e6 / Spread.of(workers[ours].cpu_us).median
    requests = int(rate * plan.paced_seconds)
    connections = int(3 * rate * EVENT_SECONDS * events)
    p50, p99 = [], []
    for _ in range(plan.paced_rounds):
        base, own = (
            _slice(worker, workers[worker], load, requests, stream=True, rate=rate, connections=connections)
            for worker in (reference, ours)
        )
        p50.append(own.first_p50_us - base.first_p50_us)
        p99.append(own.first_p99_us - base.first_p99_us)
    what = f"first token, later than over the reference at {rate:,.0f} streams/s (half load)"
    return [
        _latency(f"{what}, median", Spread.of(p50), FIRST_TOKEN_US_MAX),
        Figure(name=f"{what}, p99", measured=Spread.of(p99).text("µs")),
    ]


def _take_turns(
    workers: dict[Worker, _Measured], load: Load, rounds: int, requests: int, *, stream: bool = False
) -> None:
    for number in range(rounds + 1):
        for worker, measured in workers.items():
            before = cpu_seconds(worker.pid)
            result = _slice(worker, measured, load, requests, stream=stream)
            if number:  # the first round warms up
                measured.cpu_us.append((cpu_seconds(worker.pid) - before) / requests * 1e6)
                measured.per_second.append(requests / result.seconds)


def _paced(workers: dict[Worker, _Measured], load: Load, plan: Plan) -> list[Figure]:
    """What we add to the reference's latency at half of what our worker can do, both at the same rate."""
    if not plan.paced_rounds:
        return []
    reference, ours = workers
    rate = Spread.of(workers[ours].per_second).median / 2
    requests = int(rate * plan.paced_seconds)
    p50, p99, reference_p99 = [], [], []
    for _ in range(plan.paced_rounds):
        base = _slice(reference, workers[reference], load, requests, rate=rate)
        own = _slice(ours, workers[ours], load, requests, rate=rate)
        p50.append(own.p50_us - base.p50_us)
        p99.append(own.p99_us - base.p99_us)
        reference_p99.append(base.p99_us)
    what = f"added latency at {rate:,.0f} requests/s (half load)"
    serial = []
    for _ in range(plan.paced_rounds):
        base = _slice(reference, workers[reference], load, SERIAL_REQUESTS, connections=1)
        own = _slice(ours, workers[ours], load, SERIAL_REQUESTS, connections=1)
        serial.append(own.p50_us - base.p50_us)
    return [
        Figure(name="added latency, one request at a time, median", measured=Spread.of(serial).text("µs")),
        _latency(f"{what}, median", Spread.of(p50), ADDED_P50_US_MAX),
        _latency(f"{what}, p99", Spread.of(p99), ADDED_P99_US_MAX),
        Figure(name="the reference's own p99 at that rate", measured=Spread.of(reference_p99).text("µs")),
    ]


def _latency(name: str, spread: Spread, most_us: int) -> Figure:
    budget = f"≤ {most_us / 1000:g} ms"
    return Figure(name=name, measured=spread.text("µs"), budget=budget, holds=spread.median <= most_us)


def _slice(
    worker: Worker,
    measured: _Measured,
    load: Load,
    requests: int,
    *,
    stream: bool = False,
    rate: float = 0.0,
    connections: int = CONNECTIONS,
) -> SliceResult:
    is_ours = bool(worker.namespace)
    result = load.run(
        Slice(
            port=worker.port,
            requests=requests,
            connections=connections,
            token=TOKEN if is_ours else "",
            stream=stream,
            expect=_MARK if is_ours and not stream else "",
            rate=rate,
        )
    )
    measured.requests += requests
    measured.results.append(result)
    return result


def _cpu_figures(reference: _Measured, ours: _Measured) -> list[Figure]:
    base, own = Spread.of(reference.cpu_us), Spread.of(ours.cpu_us)
    ratios = Spread.of([own / base for own, base in zip(ours.cpu_us, reference.cpu_us, strict=True)])
    return [
        Figure(name="reference, CPU per request", measured=base.text("µs")),
        Figure(name="ours, CPU per request", measured=own.text("µs")),
        Figure(
            name="ours ÷ reference (round by round)",
            measured=ratios.text(digits=2),
            budget=f"≤ {RATIO_MAX} (in the end ≤ {RATIO_AIM})",
            holds=ratios.median <= RATIO_MAX,
        ),
        Figure(name="reference, requests per second", measured=Spread.of(reference.per_second).text()),
        Figure(name="ours, requests per second", measured=Spread.of(ours.per_second).text()),
    ]


def _scripts(server: Server, ours: Worker, measured: _Measured, load: Load, connections: int) -> dict[str, int]:
    requests = SERIAL_REQUESTS * connections
    return count_scripts(server, lambda: _slice(ours, measured, load, requests, connections=connections))


def _script_figures(counted: dict[int, dict[str, int]]) -> list[Figure]:
    """Scripts that a request causes, by number of connections: one at a time, nothing is batched with others."""
    figures = []
    for connections, scripts in counted.items():
        requests = SERIAL_REQUESTS * connections
        at = "one at a time" if connections == 1 else f"{connections} at a time"
        reserves = scripts.pop("reserve", 0)
        others = ", ".join(f"{name} {count / requests:.2f}" for name, count in sorted(scripts.items()))
        figures += [
            Figure(
                name=f"round trips before the upstream is called (reserve), {at}",
                measured=f"{reserves / requests:.2f} per request",
                budget="1",
                holds=reserves == requests,
            ),
            Figure(name=f"other scripts, {at}", measured=f"{others} per request"),
        ]
    return figures


def _rss_figure(name: str, size: int) -> Figure:
    if name == "reference":
        return Figure(name="memory of the reference after load", measured=f"{size / 1e6:.0f} MB")
    budget = f"≤ {RSS_BYTES_MAX / 1e6:.0f} MB"
    return Figure(
        name="memory of our worker after load",
        measured=f"{size / 1e6:.0f} MB",
        budget=budget,
        holds=size <= RSS_BYTES_MAX,
    )
