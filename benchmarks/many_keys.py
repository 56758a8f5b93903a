"""Very many keys behind two workers: from nothing, at rest, when the file changes under load, and when a worker dies.

Everything is asked of the running service: a change is seen when fresh connections, which come to all workers, find
nothing but it.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from tests.servers import Server, free_port

from benchmarks.payload import request_body
from benchmarks.processes import cpu_seconds, python_module, resident_bytes, running_process
from benchmarks.proof import ProofError
from benchmarks.report import Figure, Section
from benchmarks.samples import Spread
from benchmarks.upstream import Upstream, running_upstream

__all__ = ["measure_many_keys"]

KEYS, KEYS_QUICK = 10_000, 1_000
WORKERS, CLIENTS, CHANGED, GROUPS = 2, 4, 10, 100
RELOADS, RELOADS_QUICK = 5, 1
USED, REST_SECONDS = 2_000, 4.0
IN_A_ROW = 24
"""Fresh connections in a row that must find a change: one worker of two is missed by all of them once in 16 million."""
SEEN_SECONDS_MAX = 30.0
MASTER_KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
MIB = 2**20
LISTENING = "0A"


@dataclass(slots=True)
class _Service:
    """A running service. `answers`: when each answer of the load came, and how long it took, in seconds."""

    url: str
    port: int
    file: Path
    upstream: Upstream
    keys: int
    supervisor: "subprocess.Popen[bytes]"
    workers: list[int]
    ready_seconds: float
    errors: list[str] = field(default_factory=list)
    answers: list[tuple[float, float]] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        """CPU seconds of a worker, on the average."""
        return sum(map(cpu_seconds, self.workers)) / len(self.workers)


def measure_many_keys(server: Server, *, quick: bool = False) -> Section:
    """All of it, with the command that serves. Errors: ProofError when a request failed, or a change was not seen."""
    keys = KEYS_QUICK if quick else KEYS
    server.flush()
    with running_upstream() as upstream, _serving(server, upstream, keys) as service:
        cpu, memory = service.cpu, [resident_bytes(pid) / MIB for pid in service.workers]
        return asyncio.run(_measured(service, cpu, memory, RELOADS_QUICK if quick else RELOADS))


async def _measured(service: _Service, cpu: float, memory: list[float], reloads: int) -> Section:
    never = await _rest(service)
    await _use(service, min(USED, service.keys))
    used = await _rest(service)
    changes = [await _change(service, number) for number in range(1, reloads + 1)]
    again = await _kill(service)
    if service.errors:
        raise ProofError(f"{len(service.errors)} requests failed: {service.errors[0]}")
    seen, spent, longest, before = (Spread.of([change[place] for change in changes]) for place in range(4))
    figures = [
        Figure(name="ready, from nothing", measured=f"{service.ready_seconds:.1f} s"),
        Figure(name="CPU of a worker until then", measured=f"{cpu:.1f} s"),
        Figure(name="memory of a worker", measured=", ".join(f"{each:.0f} MiB" for each in memory)),
        Figure(
            name=f"{CHANGED} keys changed in the file: seen on every worker after", measured=seen.text("s", digits=2),
            budget="≤ 1 s", holds=seen.median <= 1,
        ),
        Figure(name="CPU of a worker for that, its requests included", measured=spent.text("s", digits=2)),
        Figure(name="longest answer meanwhile", measured=longest.text("ms", digits=0)),
        Figure(name="longest answer in a second before", measured=before.text("ms", digits=0)),
        Figure(name="worker killed: all listen again after", measured=f"{again:.1f} s"),
        Figure(name="CPU of a worker at rest, no key used yet", measured=f"{never * 1e3:.0f} ms/s"),
        Figure(
            name=f"the same after {min(USED, service.keys):,} requests with other keys each",
            measured=f"{used * 1e3:.0f} ms/s",
        ),
    ]  # fmt: skip
    notes = [
        f"`apikeyrouter serve --workers {WORKERS}` with a YAML file of {service.keys:,} keys in {GROUPS} quota groups,"
        f" {service.file.stat().st_size / 1e6:.1f} MB, over one server; SIGHUP to the supervisor",
        f"load while reloading: {CLIENTS} connections, one request after the other on each; {service.upstream.name}",
        f"{len(service.answers):,} requests, none failed",
    ]
    return Section(title=f"Very many keys ({service.keys:,})", figures=figures, notes=notes)


# --- what is done to it ----------------------------------------------------------------------------------------------


async def _rest(service: _Service) -> float:
    """CPU that a worker takes a second while nobody asks it anything."""
    await asyncio.sleep(1.5)
    began, cpu = time.perf_counter(), service.cpu
    await asyncio.sleep(REST_SECONDS)
    return (service.cpu - cpu) / (time.perf_counter() - began)


async def _use(service: _Service, requests: int) -> None:
    """So many requests, each of which takes the key whose turn it is."""
    async with _load(service) as until:
        await until(requests)


async def _change(service: _Service, number: int) -> tuple[float, float, float, float]:
    """Change some keys of the file: seconds until every worker has it, CPU seconds of a worker, and the longest answer
    meanwhile and before, in milliseconds."""
    model = f"changed-{number}"
    async with _load(service) as until:
        await until(len(service.answers) + 100)
        calm = time.perf_counter()
        await asyncio.sleep(1)
        _write(service.file, service.upstream, service.keys, model)
        began, cpu = time.perf_counter(), service.cpu
        service.supervisor.send_signal(signal.SIGHUP)
        seen = await _seen(service, model, began)
        spent = service.cpu - cpu
    meanwhile = [took for at, took in service.answers if at >= began and at - took <= seen]
    before = [took for at, took in service.answers if calm <= at < began]
    return seen - began, spent, max(meanwhile) * 1e3, max(before) * 1e3


async def _seen(service: _Service, model: str, began: float) -> float:
    """When the first of IN_A_ROW connections asked for a model that is only served since the change."""
    row, first = 0, 0.0
    while row < IN_A_ROW:
        if time.perf_counter() - began > SEEN_SECONDS_MAX:
            raise ProofError(f"model {model} was not served by every worker within {SEEN_SECONDS_MAX:g} s")
        at = time.perf_counter()
        async with aiohttp.ClientSession() as session:
            status, _ = await _ask(session, service, model, {"x-akr-dry-run": "true"})
        row, first = (row + 1, first or at) if status == 200 else (0, 0.0)
    return first


async def _kill(service: _Service) -> float:
    """Seconds until as many listen again as did, after one worker was killed."""
    began = time.perf_counter()
    os.kill(service.workers[0], signal.SIGKILL)
    while _listeners(service.port) == WORKERS:
        await asyncio.sleep(0.005)
    while _listeners(service.port) < WORKERS:
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - began
    await _use(service, len(service.answers) + 200)
    return seconds


# --- asking ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _load(service: _Service) -> AsyncIterator[Any]:
    """Requests all the time; gives a wait for so many answers since the service began."""
    ended = asyncio.Event()

    async def client() -> None:
        async with aiohttp.ClientSession() as session:
            while not ended.is_set():
                at = time.perf_counter()
                status, text = await _ask(session, service, "gpt-4o-mini", {})
                now = time.perf_counter()
                service.answers.append((now, now - at))
                if status != 200:
                    service.errors.append(f"{status} {text[:300]}")

    async def until(count: int) -> None:
        while len(service.answers) < count and not service.errors:
            await asyncio.sleep(0.01)

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    try:
        yield until
    finally:
        ended.set()
        await asyncio.gather(*clients)


async def _ask(
    session: aiohttp.ClientSession, service: _Service, model: str, headers: dict[str, str]
) -> tuple[int, str]:
    """Status and text of the answer."""
    body = {**json.loads(request_body()), "model": model}
    async with session.post(f"{service.url}/v1/chat/completions", json=body, headers=headers) as answer:
        return answer.status, await answer.text()


# --- serving ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _serving(server: Server, upstream: Upstream, keys: int) -> Iterator[_Service]:
    """`apikeyrouter serve`, until all workers are ready."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="akr-bench-") as folder:
        file = Path(folder) / "config.yaml"
        _write(file, upstream, keys, "")
        environ = {
            "PATH": os.environ["PATH"], "HOME": folder, "REDIS_URL": server.url, "APIKEYROUTER_NAMESPACE": "many-keys",
            "APIKEYROUTER_ENCRYPTION_KEY": MASTER_KEY, "PROXY_ACCESS_LOG_FILE": f"{folder}/access.log",
        }  # fmt: skip
        command = python_module(
            "apikeyrouter.cli", "serve", "--host", "127.0.0.1", "--port", str(port), "--workers", str(WORKERS),
            "--config", str(file), "--json",
        )  # fmt: skip
        began = time.perf_counter()
        log = Path(folder) / "log"
        with (
            log.open("wb") as told,
            running_process(command, environ=environ, stdout=subprocess.PIPE, stderr=told) as process,
        ):
            assert process.stdout is not None
            line = process.stdout.readline()  # the command gives up by itself when a worker is not ready in time
            if not line:
                raise ProofError(f"the service did not start: {log.read_text()[-500:]}")
            facts = json.loads(line)
            yield _Service(
                f"http://127.0.0.1:{port}", port, file, upstream, keys, process, facts["workers"],
                time.perf_counter() - began,
            )  # fmt: skip


def _write(file: Path, upstream: Upstream, keys: int, changed: str) -> None:
    """A file of keys; the first CHANGED serve one model more, where one is named."""
    rows = [
        f"  - {{id: k{n}, provider: openai, key: sk-bench-{n}, quota_group: org-{n % GROUPS}, models: [gpt-4o-mini"
        + (f", {changed}" if changed and n < CHANGED else "")
        + "]}"
        for n in range(keys)
    ]
    limits = [f"  - {{quota_group: org-{n}, rpm: 1000000}}" for n in range(GROUPS)]
    head = f"providers: {{openai: {{adapter: openai, base_url: '{upstream.base_url}'}}}}"
    fresh = file.with_suffix(".new")
    fresh.write_text("\n".join([head, "keys:", *rows, "limits:", *limits, ""]))
    fresh.replace(file)


def _listeners(port: int) -> int:
    """How many sockets listen at a port of this machine (Linux)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == LISTENING for row in rows)
