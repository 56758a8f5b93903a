"""The compose file, up on this machine: every container of it that has a program here, as a process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.cli.processes import SECONDS_MAX, wait_until
from tests.deploy.containers import compose, dockerfile, process_environ
from tests.house.tree import ROOT
from tests.servers import binaries, free_port

MASTER_KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
TOKEN = "app-token-of-the-stack"
OPERATOR = "operator-key-of-the-stack"
PORTS = {"redis": 6379, "router-1": 8000, "router-2": 8000, "simulator": 9901, "balancer": 8000}
SET_BY_OPERATOR = {"APIKEYROUTER_ENCRYPTION_KEY": MASTER_KEY, "APP_TOKEN": TOKEN, "MANAGEMENT_API_KEY": OPERATOR}


@dataclass(slots=True)
class Stack:
    """Services by name, each on ports of its own. `folder` is where what they mount and write lies."""

    folder: Path
    services: dict[str, Any]
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in (*PORTS, "operators")})
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where applications go: the balancer."""
        return f"http://127.0.0.1:{self.ports['balancer']}"

    @property
    def operators_url(self) -> str:
        """The balancer's door for operators."""
        return f"http://127.0.0.1:{self.ports['operators']}"

    def router_url(self, name: str) -> str:
        """One router, past the balancer."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def up(self, *names: str) -> None:
        """Start containers' processes, and wait until each one's own health check (where it has one) is content."""
        for name in names:
            self.processes[name] = subprocess.Popen(self._command(name), env=self.environ(name), cwd=self.folder)
        for name in names:
            wait_until(partial(self._is_healthy, name))

    def down(self, name: str) -> int:
        """As `docker compose stop`: SIGTERM, and the exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(SECONDS_MAX * 2)

    def end(self) -> None:
        """Stop everything, the first last."""
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def probe(self, name: str) -> int:
        """The exit code of the health check of the router's image."""
        probe = [placed(part) for part in dockerfile()[-1].command("HEALTHCHECK")]
        return subprocess.run(probe, env=self.environ(name), capture_output=True, check=False).returncode

    def _command(self, name: str) -> list[str]:
        service, last = self.services[name], dockerfile()[-1]
        port = str(self.ports[name])
        if name == "redis":
            program, *arguments = service["command"]
            assert program == "valkey-server"
            server = str(next(iter(binaries().values())))
            return [server, *arguments, "--port", port, "--bind", "127.0.0.1", "--dir", str(self.folder)]
        if name == "balancer":  # the image's own command: docker-library/haproxy, 3.0
            return ["haproxy", "-W", "-db", "-f", str(_mounted(service, ".cfg"))]
        command = [*service.get("entrypoint", last.command("ENTRYPOINT")), *service.get("command", last.command("CMD"))]
        return [self._on_this_machine(placed(part)) for part in command]

    def environ(self, name: str) -> dict[str, str]:
        """What a container's process has in its environment."""
        service = self.services[name]
        given: dict[str, Any] = service.get("environment", {})
        own: dict[str, Any] = {}
        if name == "balancer":
            own = {"BALANCER_PORT": self.ports[name], "OPERATOR_PORT": self.ports["operators"]}
        elif name.startswith("router"):
            config = self.folder / "router.yaml"
            config.write_text(self._on_this_machine(_mounted(service, ".yaml").read_text()))
            assert given["APIKEYROUTER_CONFIG"] == service["volumes"][0].split(":")[1]
            own = {"PROXY_PORT": self.ports[name], "APIKEYROUTER_CONFIG": config}
            own |= {"APIKEYROUTER_DATA_DIR": self.folder / "data", "PATH": os.environ["PATH"]}
        told = {name: self._on_this_machine(str(text)) for name, text in given.items()}
        from_file = SET_BY_OPERATOR if service.get("env_file") else {}
        return process_environ(dockerfile()[-1].environ, from_file, told, own)

    def _on_this_machine(self, text: str) -> str:
        """`redis:6379` and the like, as ports of this machine."""
        for name, port in PORTS.items():
            text = text.replace(f"{name}:{port}", f"127.0.0.1:{self.ports[name]}")
        return str(self.ports["simulator"]) if text == str(PORTS["simulator"]) else text

    def _is_healthy(self, name: str) -> bool:
        process = self.processes[name]
        assert process.poll() is None, f"{name} did not start"
        if name == "redis":
            asked = f"{self.ports[name]}"
            import redis

            with contextlib.suppress(redis.ConnectionError), redis.Redis(port=int(asked)) as client:
                return bool(client.ping())
            return False
        if name.startswith("router"):
            return listens(self.ports[name]) and self.probe(name) == 0
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.router_url(name)}/health").status_code < 502
        return False


@contextlib.contextmanager
def stack_up(folder: Path, environ: Mapping[str, str]) -> Iterator[Stack]:
    """Redis, the simulated providers, both routers, the balancer."""
    stack = Stack(folder, compose({**SET_BY_OPERATOR, **environ}))
    try:
        for names in (("redis", "simulator"), ("router-1", "router-2"), ("balancer",)):
            stack.up(*names)
        wait_until(lambda: httpx.get(f"{stack.operators_url}/health/ready").status_code == 200)
        yield stack
    finally:
        stack.end()


@contextlib.contextmanager
def nginx_up(stack: Stack, folder: Path) -> Iterator[str]:
    """deploy/nginx.conf in front of the stack's routers: its address."""
    port = free_port()
    text = (ROOT / "deploy/nginx.conf").read_text().replace("listen 8080", f"listen 127.0.0.1:{port}")
    for name in ("router-1", "router-2"):
        text = text.replace(f"{name}:8000", f"127.0.0.1:{stack.ports[name]}")
    config = folder / "nginx.conf"
    config.write_text(text.replace("/tmp/nginx", f"{folder}/nginx"))
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(config), "-g", "daemon off;"])
    try:
        wait_until(lambda: listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(60)


def listens(port: int) -> bool:
    """Whether somebody takes connections: cheaper to ask than a probe, which is a process."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _mounted(service: Mapping[str, Any], suffix: str) -> Path:
    """The file of this repository that the service mounts."""
    source: str
    (source,) = [volume.split(":")[0] for volume in service["volumes"] if volume.split(":")[0].endswith(suffix)]
    found = ROOT / source
    assert found.is_file()
    return found


def placed(part: str) -> str:
    """A program of the image, as this environment has it."""
    return part.replace("/opt/apikeyrouter/bin/", f"{Path(sys.executable).parent}/")
