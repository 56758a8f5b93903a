"""`route()`: what the library costs on top of the call itself, in memory and on a server."""

import subprocess

import msgspec
from tests.servers import Server

from benchmarks.library_worker import Told
from benchmarks.processes import python_module, root
from benchmarks.proof import ProofError
from benchmarks.report import Figure, Section
from benchmarks.samples import Spread
from benchmarks.upstream import Upstream, running_upstream

__all__ = ["measure_library"]

ROUNDS, REQUESTS = 11, 400
ROUNDS_QUICK, REQUESTS_QUICK = 3, 200
SECONDS_MAX = 120.0
MEMORY_US_MAX, SERVER_US_MAX = 250.0, 300.0
CALLS_SHARE = 0.01
"""Of a request's calls; times differ by more from one second to the next."""


def measure_library(server: Server, *, quick: bool = False) -> Section:
    """CPU of `route()` less that of a bare aiohttp call in the same process, in turns. Errors: ProofError."""
    section = Section(title="The library: route(), provider cost excluded")
    rounds, requests = (ROUNDS_QUICK, REQUESTS_QUICK) if quick else (ROUNDS, REQUESTS)
    with running_upstream() as upstream:
        on_server = f"on {server.flavour} {server.version}"
        for what, url, most in (("in memory", "", MEMORY_US_MAX), (on_server, server.unix_url, SERVER_US_MAX)):
            told = _run(upstream, url, rounds, requests)
            bare, own = Spread.of(told.bare_us), Spread.of(told.route_us)
            added = Spread.of([route - call for route, call in zip(told.route_us, told.bare_us, strict=True)])
            policies = Spread.of([more - route for more, route in zip(told.policies_us, told.route_us, strict=True)])
            section.figures += [
                Figure(name=f"{what}: route(), CPU", measured=own.text("µs")),
                Figure(name=f"{what}: a bare aiohttp call, CPU", measured=bare.text("µs")),
                Figure(
                    name=f"{what}: route() less the call", measured=added.text("µs"), budget=f"≤ {most:g} µs",
                    holds=added.median <= most,
                ),
                Figure(
                    name=f"{what}: added by 20 policies of other teams", measured=policies.text("µs"),
                ),
                Figure(
                    name=f"{what}: calls of functions in a request, and under those policies",
                    measured=f"{told.calls}, {told.policies_calls}",
                    budget=f"at most {CALLS_SHARE:.0%} more, so that nothing is measurable",
                    holds=told.policies_calls <= told.calls * (1 + CALLS_SHARE),
                ),
                Figure(
                    name=f"{what}: of that, asking which policies apply",
                    measured=Spread.of(told.asked_us).text("µs", digits=1),
                ),
            ]  # fmt: skip
            section.notes.append(
                f"proven {what}: {told.settled:,} nano-dollars settled = {told.requests:,} requests × price"
            )
    section.notes.append(f"asyncio's own loop, 32 calls at a time, {rounds} rounds of {requests}")
    return section


def _run(upstream: Upstream, redis_url: str, rounds: int, requests: int) -> Told:
    command = python_module(
        "benchmarks.library_worker", upstream.base_url, redis_url, "--rounds", str(rounds), "--requests", str(requests)
    )
    done = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS_MAX, cwd=root())
    if done.returncode:
        raise ProofError(f"route(): {done.stderr.decode(errors='replace')[-2000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Told)
