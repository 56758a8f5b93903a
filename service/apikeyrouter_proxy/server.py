"""`apikeyrouter serve`: a supervisor over N worker processes, the embedded Valkey under them, and a clean end.

**Listening.** On Linux each worker has a listening socket of its own on the same port (SO_REUSEPORT) and the kernel
spreads connections over them; the supervisor only keeps the port, without listening. Measured with 4 workers and 64
keep-alive connections: the busiest worker took 1.1 to 1.3 times its share, against 1.6 to 2.2 times over one shared
socket, whose workers race for each connection. And a killed worker's socket dies with it: new connections go to the
others at once. Elsewhere the kernel does not spread, and the workers share one socket.

**Ending.** SIGTERM or SIGINT: workers stop accepting, finish what is in flight (at most `drain_seconds`), flush their
settlements, and go; then the embedded server, last. A second signal, later, hurries. A killed supervisor ends its
workers in the same way: they see their standard input close.
"""

import errno
import http.client
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.embedded_valkey import EmbeddedServer, default_data_dir, shared_embedded_url
from apikeyrouter.infrastructure.state_store.redis_connection import check_redis_url, redacted_url
from apikeyrouter_proxy.options import DRAIN_SECONDS_DEFAULT
from apikeyrouter_proxy.worker import READY, bound_socket

__all__ = ["APP", "PortTakenError", "ServeOptions", "Tell", "serve", "shown_host"]

APP = "apikeyrouter_proxy.main:app"
EXIT_OK = 0
EXIT_NOT_CLEAN = 1
EXIT_NOT_STARTED = 3

READY_SECONDS_MAX = 60.0
HEALTH_SECONDS_MAX = 5.0
LOOK_SECONDS = 1.0
RESTART_SECONDS_MIN = 0.1
RESTART_SECONDS_MAX = 10.0
STEADY_SECONDS = 10.0
"""A worker that lived this long and then died is no sign of a crash loop."""
GRACE_SECONDS = 15.0
"""What a worker may take after the drain: settlements, connections, the interpreter's end."""
HURRY_SECONDS = 1.0
"""Sooner, a second signal is the first one told twice (by a process group, by `timeout`)."""
_STDIN = object()
_SPREADS = sys.platform == "linux"

Tell = Callable[[str, Mapping[str, Any]], None]
"""Hears what happens: `listening`, `worker_restarted`, `reloading`, `draining`, `stopped`, each with its facts."""


class PortTakenError(ConfigurationError):
    """Another process listens there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What to serve and how.

    `redis_url` None: an embedded Valkey in `data_dir` (None: the default one), or `ephemeral`, with nothing on disk.
    `environ` is what the workers get; `drain_seconds` is how long requests in flight may take at the end,
    `drain_notice_seconds` how long workers still take requests before, while they say that they are stopping.
    `workers_to_stderr`: what workers print leaves standard output alone. `watch_stdin`: end when standard input
    does, which is how a parent's death is noticed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    redis_url: str | None = field(default=None, repr=False)
    data_dir: Path | None = None
    ephemeral: bool = False
    config: str | None = None
    open: bool = False
    drain_seconds: float = DRAIN_SECONDS_DEFAULT
    drain_notice_seconds: float = 0.0
    management_host: str = "127.0.0.1"
    management_port: int = 0
    workers_to_stderr: bool = False
    watch_stdin: bool = False
    app: str = APP
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)


def serve(options: ServeOptions, *, tell: Tell) -> int:
    """Serve until told to stop; must run in the main thread (it handles signals). Returns the exit code.

    Errors: PortTakenError; ConfigurationError; StateStoreUnavailableError when the embedded server does not start.
    """
    if options.management_port:
        _keep_port(options.management_host, options.management_port).close()
    with _keep_port(options.host, options.port) as kept:
        embedded = _embedded(options)
        try:
            return _Supervisor(options, kept, embedded, tell).run()
        finally:
            if embedded is not None:
                embedded.stop()


def shown_host(host: str) -> str:
    """A host as URLs write it; "every address" becomes loopback, which is where a reader will try it."""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104 (compared, not bound)
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _embedded(options: ServeOptions) -> EmbeddedServer | None:
    if options.redis_url:
        check_redis_url(options.redis_url)
        return None
    return shared_embedded_url(None if options.ephemeral else options.data_dir or default_data_dir())


def _keep_port(host: str, port: int) -> socket.socket:
    try:
        if port:
            bound_socket(host, port, shared=False).close()  # fails where anybody listens, sharing or not
        return bound_socket(host, port, shared=_SPREADS)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"port {port} on {host} is taken by another process; stop it, or choose another with --port or"
                " PROXY_PORT"
            ) from exc
        raise ConfigurationError(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc


@dataclass(slots=True, kw_only=True)
class _Worker:
    """One place among the workers, and the process that holds it now."""

    process: subprocess.Popen[bytes] | None = None
    ready_fd: int = -1
    ready: bool = False
    started_at: float = 0.0
    failures: int = 0
    restart_at: float = 0.0


class _Supervisor:
    def __init__(self, options: ServeOptions, kept: socket.socket, embedded: EmbeddedServer | None, tell: Tell) -> None:
        self._options = options
        self._socket = kept
        self._port = int(kept.getsockname()[1])
        self._embedded = embedded
        self._tell = tell
        self._environ = _worker_environ(options, embedded)
        self._workers = [_Worker() for _ in range(options.workers)]
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._draining = False
        self._draining_since = 0.0

    def run(self) -> int:
        previous = self._listen_to_signals()
        self._watch_stdin()
        try:
            for worker in self._workers:
                self._start(worker)
            if not self._wait_until_ready():
                return self._end(EXIT_OK if self._draining else EXIT_NOT_STARTED)
            self._announce()
            while not self._draining:
                self._rest()
                self._restart_the_dead()
                if self._embedded is not None:
                    self._embedded.ensure()
            return self._end(EXIT_OK)
        finally:
            self._kill_what_is_left()
            for number, handler in previous.items():
                signal.signal(number, handler)

    # --- workers
    def _start(self, worker: _Worker) -> None:
        read_fd, write_fd = os.pipe()
        arguments = ["--app", self._options.app, "--ready-fd", str(write_fd)]
        arguments += ["--drain-seconds", str(self._options.drain_seconds)]
        passed = [write_fd]
        if _SPREADS:
            arguments += ["--host", self._options.host, "--port", str(self._port)]
        else:
            arguments += ["--fd", str(self._socket.fileno())]
            passed.append(self._socket.fileno())
        if self._embedded is not None:
            passed.append(self._embedded.fileno())  # a worker keeps the server alive, should we be killed
        try:
            worker.process = subprocess.Popen(  # noqa: S603 (our own module)
                [sys.executable, "-m", "apikeyrouter_proxy.worker_process", *arguments],
                stdin=subprocess.PIPE,
                stdout=sys.stderr.fileno() if self._options.workers_to_stderr else None,
                pass_fds=passed,
                env=self._environ,
                start_new_session=True,  # Ctrl-C reaches us, and we tell them
            )
        finally:
            os.close(write_fd)
        worker.ready_fd, worker.ready, worker.started_at = read_fd, False, time.monotonic()
        self._selector.register(read_fd, selectors.EVENT_READ, worker)

    def _wait_until_ready(self) -> bool:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not all(worker.ready for worker in self._workers):
            dead = any(worker.process is None or worker.process.poll() is not None for worker in self._workers)
            if dead or self._draining or time.monotonic() > deadline:
                return False
            self._rest()
        return True

    def _restart_the_dead(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is not None:
                self._bury(worker, now)
            if worker.process is None and now >= worker.restart_at and not self._draining:
                self._start(worker)

    def _bury(self, worker: _Worker, now: float) -> None:
        """Note a worker's end, and when its place is taken again: at once, later and later in a crash loop."""
        assert worker.process is not None
        steady = worker.ready and now - worker.started_at >= STEADY_SECONDS
        worker.failures = 1 if steady else worker.failures + 1
        pause = min(RESTART_SECONDS_MIN * 2 ** (worker.failures - 1), RESTART_SECONDS_MAX)
        worker.restart_at = now + pause
        self._tell(
            "worker_restarted",
            {"pid": worker.process.pid, "exit_code": worker.process.returncode, "after_seconds": round(pause, 1)},
        )
        self._forget(worker)

    def _forget(self, worker: _Worker) -> None:
        if worker.ready_fd >= 0:
            self._selector.unregister(worker.ready_fd)
            os.close(worker.ready_fd)
        if worker.process is not None and worker.process.stdin is not None:
            worker.process.stdin.close()
        worker.process, worker.ready_fd, worker.ready = None, -1, False

    def _read_ready(self, worker: _Worker) -> None:
        worker.ready = os.read(worker.ready_fd, 64) == READY
        self._selector.unregister(worker.ready_fd)
        os.close(worker.ready_fd)
        worker.ready_fd = -1

    # --- signals
    def _listen_to_signals(self) -> dict[int, Any]:
        self._wakeup, wakeup_end = socket.socketpair()
        self._wakeup_end = wakeup_end
        self._wakeup.setblocking(False)
        wakeup_end.setblocking(False)
        signal.set_wakeup_fd(wakeup_end.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._wakeup, selectors.EVENT_READ, None)
        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        previous: dict[int, Any] = {
            number: signal.signal(number, lambda got, _: self._signals.append(got)) for number in handled
        }
        previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        return previous

    def _rest(self, seconds: float = LOOK_SECONDS) -> None:
        """Until something happens, at most that long; then deal with signals and ready workers."""
        pauses = [worker.restart_at - time.monotonic() for worker in self._workers if worker.process is None]
        for key, _ in self._selector.select(max(0.0, min([seconds, *pauses]))):
            if isinstance(key.data, _Worker):
                self._read_ready(key.data)
            elif key.data is _STDIN:
                self._read_stdin()
            else:
                with suppress(BlockingIOError):
                    self._wakeup.recv(4096)
        while self._signals:
            self._handle(self._signals.pop(0))

    def _watch_stdin(self) -> None:
        if self._options.watch_stdin:
            self._selector.register(0, selectors.EVENT_READ, _STDIN)

    def _read_stdin(self) -> None:
        if not os.read(0, 4096):
            self._selector.unregister(0)
            if not self._draining:
                self._drain()

    def _handle(self, number: int) -> None:
        if number == signal.SIGHUP:
            if not self._draining:
                self._tell("reloading", {})
                self._signal_workers(signal.SIGHUP)
            return
        if not self._draining:
            self._drain()
        elif time.monotonic() - self._draining_since >= HURRY_SECONDS:
            self._signal_workers(signal.SIGINT)  # at which uvicorn lets go of open requests

    def _drain(self) -> None:
        self._draining, self._draining_since = True, time.monotonic()
        self._signal_workers(signal.SIGTERM)

    def _signal_workers(self, number: int) -> None:
        for worker in self._workers:
            if worker.process is not None and (worker.ready or number != signal.SIGHUP):
                with suppress(ProcessLookupError):
                    worker.process.send_signal(number)

    # --- the end
    def _end(self, code: int) -> int:
        if code == EXIT_OK:
            self._tell("draining", {"seconds_max": self._options.drain_seconds})
        else:
            self._signal_workers(signal.SIGTERM)
        self._draining = True
        seconds = self._options.drain_notice_seconds + self._options.drain_seconds + GRACE_SECONDS
        clean = self._wait_until_gone(time.monotonic() + seconds)
        code = code or (EXIT_OK if clean else EXIT_NOT_CLEAN)
        self._tell("stopped", {"exit_code": code})
        return code

    def _wait_until_gone(self, deadline: float) -> bool:
        """Whether every worker has gone by itself, without a complaint."""
        clean = True
        while alive := [worker for worker in self._workers if worker.process is not None]:
            for worker in alive:
                assert worker.process is not None
                if worker.process.poll() is not None:
                    clean = clean and worker.process.returncode == 0
                    self._forget(worker)
                elif time.monotonic() > deadline:
                    return False
            for worker in self._workers:
                worker.restart_at = deadline
            if any(worker.process is not None for worker in self._workers):
                self._rest(0.2)
        return clean

    def _kill_what_is_left(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()
                worker.process.wait()
                self._forget(worker)
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wakeup.close()
        self._wakeup_end.close()

    # --- words
    def _announce(self) -> None:
        url = f"http://{shown_host(self._options.host)}:{self._port}"
        health = _health(shown_host(self._options.host).strip("[]"), self._port)
        self._tell(
            "listening",
            {
                "url": url,
                "host": self._options.host,
                "port": self._port,
                "workers": [worker.process.pid for worker in self._workers if worker.process is not None],
                "redis": self._redis_in_words(),
                "redis_url": redacted_url(self._environ["APIKEYROUTER_REDIS_URL"]),
                "config": self._environ.get("APIKEYROUTER_CONFIG"),
                "keys": health.get("keys_registered"),
                "providers": health.get("providers_registered"),
            },
        )

    def _redis_in_words(self) -> str:
        if self._embedded is None:
            return f"Redis at {redacted_url(self._environ['APIKEYROUTER_REDIS_URL'])}"
        if self._embedded.ephemeral:
            return "an ephemeral embedded Valkey (nothing is kept when it stops)"
        return f"an embedded Valkey that keeps its data in {self._embedded.directory}"


def _worker_environ(options: ServeOptions, embedded: EmbeddedServer | None) -> dict[str, str]:
    environ = dict(options.environ)
    if embedded is not None:
        environ["APIKEYROUTER_REDIS_URL"] = embedded.url
        if not environ.get("APIKEYROUTER_ENCRYPTION_KEY", "").strip():
            environ["APIKEYROUTER_ENCRYPTION_KEY"] = embedded.encryption_key
    elif options.redis_url:
        environ["APIKEYROUTER_REDIS_URL"] = options.redis_url
    if options.config:
        environ["APIKEYROUTER_CONFIG"] = options.config
    if options.open:
        environ["APIKEYROUTER_PROXY_OPEN"] = "true"
    environ["APIKEYROUTER_WORKERS"] = str(options.workers)
    environ["APIKEYROUTER_PROXY_DRAIN_SECONDS"] = str(options.drain_seconds)
    environ["APIKEYROUTER_PROXY_DRAIN_NOTICE_SECONDS"] = str(options.drain_notice_seconds)
    return environ


def _health(host: str, port: int) -> dict[str, Any]:
    """What `/health` says, {} when it says nothing."""
    connection = http.client.HTTPConnection(host, port, timeout=HEALTH_SECONDS_MAX)
    try:
        connection.request("GET", "/health")
        told = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    return told if isinstance(told, dict) else {}
