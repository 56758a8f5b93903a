"""Real deployments for tests: a primary with replicas and Sentinels, and a Cluster, of any server that is installed.

Everything is ephemeral, on 127.0.0.1, and dies with the test process.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import redis

from tests.servers import Server, binaries, die_with_parent, free_port, running

MASTER = "ledger"
DOWN_AFTER_MS = 1500
WAIT_SECONDS_MAX = 40.0
NODE_TIMEOUT_MS = 1000
SLOTS = 16384


@dataclass(slots=True)
class Sentinels:
    """A primary, its replicas and who watches them."""

    servers: list[Server]
    ports: list[int]
    watchers: list[subprocess.Popen[bytes]] = field(repr=False)

    @property
    def url(self) -> str:
        """What a client is given."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/{MASTER}/0"

    def primary(self) -> Server | None:
        """The server that all Sentinels agree on."""
        told = set()
        for port in self.ports:
            with redis.Redis(port=port, decode_responses=True) as sentinel:
                told.add(str(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)))
        named = [server for server in self.servers if told == {str(["127.0.0.1", str(port_of(server))])}]
        return named[0] if named else None

    def settled(self) -> bool:
        """Whether every Sentinel knows of the others and of both replicas, which have what the primary has."""
        for port in self.ports:
            with redis.Redis(port=port, decode_responses=True) as sentinel:
                state: Any = sentinel.sentinel_master(MASTER)
            if (state["num-other-sentinels"], state["num-slaves"]) != (len(self.ports) - 1, len(self.servers) - 1):
                return False
        primary = self.primary()
        return primary is not None and all(
            _linked(server) for server in self.servers if server is not primary and alive(server)
        )


@dataclass(slots=True)
class Cluster:
    """Primaries with one replica each."""

    servers: list[Server]

    @property
    def url(self) -> str:
        """What a client is given: three of the nodes, one that need not have the slot first."""
        return f"redis+cluster://{','.join(f'127.0.0.1:{port_of(server)}' for server in self.servers[:3])}"

    def owner(self, key: str, *, asked: Server | None = None) -> Server:
        """The primary that has the key's slot, by what one node says."""
        server = asked or next(each for each in self.servers if alive(each))
        with server.client() as client:
            slot = int(str(client.execute_command("CLUSTER", "KEYSLOT", key)))
            rows: Any = client.execute_command("CLUSTER", "SLOTS")
        ranges = rows.values() if isinstance(rows, dict) else rows
        port = next(_port(row) for row in ranges if _first(row) <= slot <= _last(row))
        return next(each for each in self.servers if port_of(each) == port)


@contextlib.contextmanager
def sentinels(flavour: str, *, options: Sequence[str] = ()) -> Iterator[Sentinels]:
    """One primary, two replicas, three Sentinels, ready to fail over."""
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(running(flavour, options=_quick(options)))
        follow = ("--replicaof", f"127.0.0.1 {port_of(primary)}")
        replicas = [stack.enter_context(running(flavour, options=(*_quick(options), *follow))) for _ in range(2)]
        ports, watchers = [], []
        for _ in range(3):
            port, process = stack.enter_context(_sentinel(flavour, port_of(primary)))
            ports.append(port)
            watchers.append(process)
        made = Sentinels([primary, *replicas], ports, watchers)
        until(made.settled)
        yield made


@contextlib.contextmanager
def cluster(flavour: str, *, each: Callable[[], Sequence[str]] = tuple) -> Iterator[Cluster]:
    """Three primaries and three replicas, with all slots served. `each`: more options of one server."""
    words = (*_quick(()), "--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS))
    with contextlib.ExitStack() as stack:
        buses = [("--cluster-port", str(free_port()), *each()) for _ in range(6)]
        servers = [stack.enter_context(running(flavour, options=(*words, *bus))) for bus in buses]
        made = Cluster(servers)
        _join(servers)
        _share(servers)
        yield made


def port_of(server: Server) -> int:
    """The server's TCP port."""
    return int(server.url.rpartition(":")[2].partition("/")[0])


def alive(server: Server) -> bool:
    """Whether its process runs."""
    assert server.process is not None
    return server.process.poll() is None


def stopped(server: Server) -> contextlib.AbstractContextManager[None]:
    """SIGSTOP while it lasts: it takes connections and says nothing."""
    return _stopped(server.pid)


def until(condition: Callable[[], object], *, seconds: float = WAIT_SECONDS_MAX) -> None:
    """Wait for a condition. Errors: AssertionError when it does not come true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError, OSError):
            if condition():
                return
        time.sleep(0.02)
    raise AssertionError(f"in {seconds} s it did not come true: {condition}")


def _quick(options: Sequence[str]) -> tuple[str, ...]:
    """Replicas that are there at once."""
    return ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *options)


@contextlib.contextmanager
def _sentinel(flavour: str, watched: int) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    lines = [
        f"port {port}", f"sentinel monitor {MASTER} 127.0.0.1 {watched} 2",
        f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}", f"sentinel failover-timeout {MASTER} 5000",
    ]  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="akr-", ignore_cleanup_errors=True) as directory,
        sentinel_process(flavour, directory, lines) as process,
        redis.Redis(port=port) as client,
    ):
        until(client.ping)
        yield port, process


@contextlib.contextmanager
def sentinel_process(flavour: str, directory: str, lines: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Sentinel with these lines of configuration, which it rewrites; killed at exit."""
    path = Path(directory) / "sentinel.conf"
    path.write_text("\n".join([*lines, "bind 127.0.0.1", f"dir {directory}", ""]))
    with (Path(directory) / "log").open("ab") as log:
        process = subprocess.Popen(
            [binaries()[flavour], path, "--sentinel"], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _join(servers: list[Server]) -> None:
    with servers[0].client() as first:
        for server in servers[1:]:
            first.execute_command("CLUSTER", "MEET", "127.0.0.1", port_of(server), _bus(server))
    until(lambda: all(_known(server) == len(servers) for server in servers))


def _share(servers: list[Server]) -> None:
    primaries, replicas = servers[:3], servers[3:]
    share = SLOTS // 3 + 1
    for number, server in enumerate(primaries):
        with server.client() as client:
            first, last = number * share, min((number + 1) * share, SLOTS) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
    for primary, replica in zip(primaries, replicas, strict=True):
        with replica.client() as client:
            until(partial(_replicate, client, primary))
    until(lambda: all(_info(server, "cluster_state") == "ok" for server in servers))
    until(lambda: all(_linked(replica) for replica in replicas))


def _replicate(client: "redis.Redis", primary: Server) -> bool:
    return bool(cast("Any", client).execute_command("CLUSTER", "REPLICATE", node_id(primary)))


def node_id(server: Server) -> str:
    """A Cluster node's name."""
    with server.client() as client:
        return _text(cast("Any", client).execute_command("CLUSTER", "MYID"))


def _linked(replica: Server) -> bool:
    with replica.client() as client:
        return str(client.info("replication").get("master_link_status")) == "up"


def _known(server: Server) -> int:
    return int(_info(server, "cluster_known_nodes"))


def _info(server: Server, name: str) -> str:
    with server.client() as client:
        told = client.execute_command("CLUSTER", "INFO")
    if isinstance(told, dict):
        return str(told[name])
    return next(line for line in _text(told).splitlines() if line.startswith(f"{name}:")).partition(":")[2]


def _text(told: object) -> str:
    return told.decode() if isinstance(told, bytes) else str(told)


def _bus(server: Server) -> int:
    with server.client() as client:
        return int(client.config_get("cluster-port")["cluster-port"])


def _first(row: Any) -> int:
    return int(row[0])


def _last(row: Any) -> int:
    return int(row[1])


def _port(row: Any) -> int:
    return int(row[2][1])


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
