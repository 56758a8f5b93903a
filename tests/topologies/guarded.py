"""A primary and its replica behind Sentinels, all over TLS, data servers and Sentinels with a password each."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import redis

from tests.servers import Server, free_port, running
from tests.topologies.certificates import Certificates
from tests.topologies.deployments import DOWN_AFTER_MS, MASTER, sentinel_process, until

DATA_PASSWORD, SENTINELS_PASSWORD = "of-the-data", "of-the-sentinels"


@dataclass(frozen=True, slots=True)
class Guarded:
    """The servers (the primary first), and what a client is given; `unknown`: without the Sentinels' password."""

    servers: list[Server]
    url: str
    unknown: str

    def has_caught_up(self) -> bool:
        """Whether the replica has what the primary wrote."""
        with redis.Redis.from_url(self.servers[0].url, password=DATA_PASSWORD) as client:
            return int(client.wait(1, 100)) >= 1


@contextmanager
def guarded(certificates: Certificates) -> Iterator[Guarded]:
    """Two servers that speak TLS to each other, three Sentinels that speak nothing else."""
    tls = {
        "tls-cert-file": certificates.server, "tls-key-file": certificates.server_key,
        "tls-ca-cert-file": certificates.authority, "tls-auth-clients": "no", "tls-replication": "yes",
    }  # fmt: skip
    words = [word for name, value in tls.items() for word in (f"--{name}", str(value))]
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        servers = []
        for port, follow in zip(ports, ((), ("--replicaof", f"127.0.0.1 {ports[0]}")), strict=True):
            options = ("--tls-port", str(port), *words, "--repl-diskless-sync-delay", "0", *follow)
            servers.append(stack.enter_context(running("redis", options=options)))
        for server in servers:
            with server.client() as client:
                client.config_set("masterauth", DATA_PASSWORD)
                client.config_set("requirepass", DATA_PASSWORD)
        where = ",".join(f"127.0.0.1:{stack.enter_context(_sentinel(ports[0], tls, certificates))}" for _ in range(3))
        unknown = f"rediss+sentinel://:{DATA_PASSWORD}@{where}/{MASTER}/0?ssl_ca_certs={certificates.authority}"
        yield Guarded(servers, f"{unknown}&sentinel_password={SENTINELS_PASSWORD}", unknown)


@contextmanager
def _sentinel(watched: int, tls: dict[str, Any], certificates: Certificates) -> Iterator[int]:
    """Its port, once it answers."""
    port = free_port()
    lines = [
        "port 0", f"tls-port {port}", *(f"{name} {value}" for name, value in tls.items()),
        f"requirepass {SENTINELS_PASSWORD}", f"sentinel sentinel-pass {SENTINELS_PASSWORD}",
        f"sentinel monitor {MASTER} 127.0.0.1 {watched} 2", f"sentinel auth-pass {MASTER} {DATA_PASSWORD}",
        f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}", f"sentinel failover-timeout {MASTER} 5000",
    ]  # fmt: skip
    known = {"ssl": True, "ssl_ca_certs": str(certificates.authority)}
    with (
        tempfile.TemporaryDirectory(prefix="akr-", ignore_cleanup_errors=True) as directory,
        sentinel_process("redis", directory, lines),
        redis.Redis(host="127.0.0.1", port=port, password=SENTINELS_PASSWORD, **cast("Any", known)) as asked,
    ):
        until(asked.ping)
        yield port
