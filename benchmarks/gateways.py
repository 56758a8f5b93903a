"""Gateways that are measured: ours and peers, as separate processes that share one Redis, on ports of their own.

A peer is found by a variable that names its program (`LITELLM`, `PORTKEY`, `ONWARDS`), else where `install_peers.py`
puts it, else on the path; it lives in an environment of its own.
"""

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from tests.servers import Server, free_port

from benchmarks.install_peers import program
from benchmarks.processes import python_module, running_process
from benchmarks.workers import OURS, service_environment

__all__ = ["PEERS", "Started", "running_gateway", "running_litellm", "running_ours_with"]

START_SECONDS_MAX = 120.0
PEERS = Path(__file__).parent / "peers"
"""The peers' configurations."""


@dataclass(frozen=True, slots=True)
class Started:
    """One process of a gateway that answers at `url`."""

    url: str
    pid: int
    start_seconds: float = 0.0
    """From the start of the process until it answers."""


@contextlib.contextmanager
def running_gateway(
    count: int,
    command: Callable[[int], Sequence[str]],
    environ: Mapping[str, str],
    folder: Path,
    ready: str,
    *,
    token: str = "",
) -> Iterator[list[Started]]:
    """`count` processes; `command` is given each one's port. Ready once `ready` is answered with 200 to `token`.

    Errors: RuntimeError with what it said last.
    """
    with contextlib.ExitStack() as stack:
        started = []
        begun = time.monotonic()
        for _ in range(count):
            port = free_port()
            log = stack.enter_context((folder / f"{port}.log").open("wb"))
            process = stack.enter_context(
                running_process(command(port), environ={**environ, "PORT": str(port)}, stdout=log, stderr=log)
            )
            started.append((Started(f"http://127.0.0.1:{port}", process.pid), process, Path(log.name)))
        for one, process, said in started:
            _wait(one.url + ready, process, said, token)
        seconds = time.monotonic() - begun
        yield [replace(one, start_seconds=seconds) for one, _, _ in started]


@contextlib.contextmanager
def running_ours_with(
    count: int, config: Mapping[str, object], redis: Server, folder: Path, *, namespace: str
) -> Iterator[list[Started]]:
    """Our service, `count` workers, each on a port of its own."""
    path = folder / f"{namespace}.yaml"
    path.write_bytes(msgspec.json.encode(config))  # JSON is YAML
    environ = service_environment(path, redis.unix_url, folder, namespace)

    def command(port: int) -> list[str]:
        return python_module(*OURS, "--host", "127.0.0.1", "--port", str(port))

    with running_gateway(count, command, environ, folder, "/health/ready") as started:
        yield started


@contextlib.contextmanager
def running_litellm(
    count: int, config: Path, upstream: str, redis: Server, folder: Path, token: str
) -> Iterator[list[Started]]:
    """LiteLLM's proxy, `count` processes. Errors: RuntimeError when it is not installed."""
    found = program("litellm")
    if found is None:
        raise RuntimeError("LiteLLM is not installed: set LITELLM to its program")
    port_of_redis = redis.url.rpartition(":")[2].partition("/")[0]
    environ = {
        **os.environ, "UPSTREAM_URL": upstream, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": port_of_redis,
        "LITELLM_MASTER_KEY": token, "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }  # fmt: skip

    def command(port: int) -> list[str]:
        return [found, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]

    with running_gateway(count, command, environ, folder, "/health/liveliness") as started:
        yield started


def _wait(url: str, process: "subprocess.Popen[bytes]", said: Path, token: str) -> None:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"} if token else {})
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(request, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.02)
    raise RuntimeError(f"a gateway did not start: {said.read_text(errors='replace')[-2000:]}")
