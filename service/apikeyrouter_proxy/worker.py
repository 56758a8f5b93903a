"""One worker process: uvicorn over the service's app, told by its supervisor where to listen and when to go."""

import argparse
import asyncio
import math
import os
import signal
import socket
from collections.abc import Sequence

import uvicorn

from apikeyrouter.infrastructure.config.environment import environment
from apikeyrouter_proxy.connection_guard import GuardedProtocol, watch_connections
from apikeyrouter_proxy.options import DRAIN_SECONDS_DEFAULT, ProxyOptions

__all__ = ["READY", "bound_socket", "main"]

READY = b"ready\n"
BACKLOG = 2048
CUT_SECONDS = 2
"""What the app may take, after the drain, to tell open requests that they are cut off; then the server does it."""


def main(argv: Sequence[str] | None = None, *, http: type[asyncio.Protocol] = GuardedProtocol) -> int:
    """Serve until SIGTERM, SIGINT, or the end of standard input (the supervisor is gone). Returns the exit code.

    `http`: how HTTP is spoken; a protocol class as uvicorn makes them.
    """
    options = _parse(argv)
    _take_signals_calmly()
    GuardedProtocol.limits = proxy = ProxyOptions.read(environment())
    listeners = [socket.socket(fileno=options.fd) if options.fd >= 0 else bound_socket(options.host, options.port)]
    if proxy.management_port:
        listeners.append(bound_socket(proxy.management_host, proxy.management_port))
    config = uvicorn.Config(
        options.app,
        loop="uvloop",
        http=http,
        ws="none",
        lifespan="on",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who is a loopback peer is decided by the connection, not by a header
        timeout_graceful_shutdown=math.ceil(options.drain_seconds) + CUT_SECONDS,
    )
    _Server(config, ready_fd=options.ready_fd).run(sockets=listeners)
    return 0


def bound_socket(host: str, port: int, *, shared: bool = True) -> socket.socket:
    """A TCP socket bound to the first address of `host`, not listening yet. Errors: OSError.

    `shared`: several processes may bind and listen there at once (SO_REUSEPORT), and the kernel spreads connections.
    """
    flags = socket.AI_PASSIVE
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready and leaves when its supervisor has died."""

    def __init__(self, config: uvicorn.Config, *, ready_fd: int) -> None:
        super().__init__(config)
        self._ready_fd = ready_fd
        self._watching: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        self._watching = asyncio.create_task(watch_connections(self.server_state.connections))
        if self._ready_fd >= 0:
            os.write(self._ready_fd, READY)
            os.close(self._ready_fd)
            asyncio.get_running_loop().add_reader(0, self._read_supervisor)

    def _read_supervisor(self) -> None:
        """Nothing is ever sent there: whatever can be read is the end."""
        if not os.read(0, 64):
            asyncio.get_running_loop().remove_reader(0)
            self.should_exit = True


def _take_signals_calmly() -> None:
    """uvicorn raises the signal that ended it once more, when all is done; and a SIGHUP must not end a worker whose
    app has no handler for it (yet)."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="one worker of apikeyrouter serve")
    parser.add_argument("--app", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fd", type=int, default=-1)
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--drain-seconds", type=float, default=DRAIN_SECONDS_DEFAULT)
    return parser.parse_args(argv)
