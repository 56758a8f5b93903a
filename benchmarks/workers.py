"""The two workers that are compared: the reference under plain uvicorn, and ours as `apikeyrouter serve` runs it."""

import base64
import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
from tests.servers import free_port

from benchmarks.payload import INPUT_USD, MODEL, OUTPUT_USD, RPM, TPM
from benchmarks.processes import python_module, running_process, wait_for
from benchmarks.upstream import Upstream

__all__ = [
    "BUDGETS", "CLIENT", "GROUP_LANE", "OURS", "TEAM", "TOKEN", "Worker", "configuration", "environment",
    "running_ours", "running_reference", "service_environment",
]  # fmt: skip

KEYS = 8
TEAM, CLIENT, GROUP = "engineering", "bench", "org-bench"
TOKEN = "akr-bench-token-0123456789abcdef"
LIMIT_USD = 9_000_000
BUDGETS = ("global:all", f"team:{TEAM}:team", f"client:{CLIENT}:client", "provider:openai:provider")
"""Ids of the four hard budgets that every request holds in."""
GROUP_LANE = f"g:{GROUP}:*"
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH")
OURS = ("apikeyrouter_proxy.worker_process", "--app", "apikeyrouter_proxy.main:app")
REFERENCE = ("benchmarks.reference",)
"""The modules that are run, with their arguments."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A running worker process; the reference has no namespace and no files. `complaints`: its standard error."""

    name: str
    pid: int
    port: int
    namespace: str = ""
    access_log: Path | None = None
    complaints: Path | None = None
    start_seconds: float = 0.0


def configuration(base_url: str, *, count: int = KEYS) -> dict[str, object]:
    """The conditions of `design.md` §8: keys of one quota group, 4 hard budgets, one client with a token."""
    budgets = [
        {"name": "all", "scope": "global", "period": "daily"},
        {"name": "team", "scope": "team", "scope_id": TEAM, "period": "monthly"},
        {"name": "client", "scope": "client", "scope_id": CLIENT, "period": "hourly"},
        {"name": "provider", "scope": "provider", "scope_id": "openai", "period": "total"},
    ]
    keys = [
        {"id": f"k{number}", "provider": "openai", "key": f"sk-bench-{number:040d}", "quota_group": GROUP}
        for number in range(count)
    ]
    return {
        "providers": {"openai": {"adapter": "openai", "base_url": base_url}},
        "keys": keys,
        "limits": [{"quota_group": GROUP, "rpm": RPM, "tpm": TPM}],
        "prices": [{"model": MODEL, "input": INPUT_USD, "output": OUTPUT_USD}],
        "budgets": [{**budget, "limit_usd": LIMIT_USD, "enforcement": "hard"} for budget in budgets],
        "clients": [{"name": CLIENT, "token": TOKEN, "team": TEAM}],
    }


def environment(
    upstream: Upstream, redis_url: str, folder: Path, namespace: str, *, keys: int = KEYS, without: Sequence[str] = ()
) -> dict[str, str]:
    """The environment of our worker; its configuration file and access log are in `folder`. `without`: sections of the
    file that are left out, and `metrics`, `access_log`."""
    config = folder / f"{namespace}.yaml"
    told = {name: part for name, part in configuration(upstream.base_url, count=keys).items() if name not in without}
    config.write_bytes(msgspec.json.encode(told))  # JSON is YAML
    environ = service_environment(config, redis_url, folder, namespace)
    if "metrics" in without:
        environ["METRICS_ENABLED"] = "false"
    if "access_log" in without:
        environ["PROXY_ACCESS_LOG"] = "false"
    return environ


def service_environment(config: Path, redis_url: str, folder: Path, namespace: str) -> dict[str, str]:
    """The environment of our worker with a configuration file; its access log is in `folder`."""
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    kept = {name: value for name, value in os.environ.items() if name in _KEPT}
    return kept | {
        "APIKEYROUTER_CONFIG": str(config),
        "APIKEYROUTER_NAMESPACE": namespace,
        "APIKEYROUTER_ENCRYPTION_KEY": key,
        "APIKEYROUTER_REDIS_URL": redis_url,
        "PROXY_ACCESS_LOG_FILE": str(folder / f"{namespace}.log"),
    }


@contextlib.contextmanager
def running_ours(
    upstream: Upstream, redis_url: str, folder: Path, *, namespace: str, keys: int = KEYS, without: Sequence[str] = ()
) -> Iterator[Worker]:
    """Our worker over a Redis, with everything on but `without`: tokens, budgets, limits, metrics, access log."""
    environ = environment(upstream, redis_url, folder, namespace, keys=keys, without=without)
    complaints = folder / f"{namespace}.err"
    begun = time.monotonic()
    with complaints.open("wb") as stderr, _running(OURS, environ, stderr) as (pid, port):
        seconds = time.monotonic() - begun
        yield Worker("ours", pid, port, namespace, folder / f"{namespace}.log", complaints, seconds)


@contextlib.contextmanager
def running_reference(upstream: Upstream) -> Iterator[Worker]:
    """The bare pass-through."""
    begun = time.monotonic()
    with _running(REFERENCE, {**os.environ, "UPSTREAM_URL": upstream.base_url}) as (pid, port):
        yield Worker("reference", pid, port, start_seconds=time.monotonic() - begun)


@contextlib.contextmanager
def _running(
    module: tuple[str, ...], environ: Mapping[str, str], stderr: IO[bytes] | None = None
) -> Iterator[tuple[int, int]]:
    port = free_port()
    read_fd, write_fd = os.pipe()
    command = python_module(*module, "--host", "127.0.0.1", "--port", str(port), "--ready-fd", str(write_fd))
    with running_process(
        command, environ=environ, stdin=subprocess.PIPE, stderr=stderr, pass_fds=[write_fd]
    ) as process:
        os.close(write_fd)
        try:
            wait_for(read_fd, process, module[0])
        finally:
            os.close(read_fd)
        yield process.pid, port
