"""Runs the simulated providers: ``python -m apikeyrouter.simulator`` and ``apikeyrouter simulate``."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from apikeyrouter.simulator.app import SimulatedProviders
from apikeyrouter.simulator.config import Config, ConfigError, load_config
from apikeyrouter.simulator.control import PREFIX, ControlPlane, check_failures
from apikeyrouter.simulator.http_server import Connection, Request, serve

__all__ = ["main_loop", "run"]

GC_ALLOCATIONS = 50_000
"""Allocations between collections: hardly anything here is cyclic, and a collection is a pause."""


def run(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; prints ``ready http://HOST:PORT`` once it listens. Returns the exit code.

    ``--config FILE`` (JSON or YAML; ``-``: one line of JSON on standard input); without one, a built-in example.
    """
    arguments = _parser().parse_args(argv)
    try:
        config = load_config(arguments.config)
        check_failures(config.failures)
    except (ConfigError, OSError) as error:
        print(f"simulator: {error}", file=sys.stderr)  # noqa: T201
        return 2
    _runner()(main_loop(config, host=arguments.host, port=arguments.port, watch_stdin=arguments.watch_stdin))
    return 0


async def main_loop(config: Config, *, host: str, port: int, watch_stdin: bool = False) -> None:
    """Listen and serve until a signal comes (or standard input ends, with ``watch_stdin``)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server, connections = await serve(_handler(config), host=host, port=port)
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 100)
    bound = server.sockets[0].getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"ready http://{shown}:{bound}", flush=True)  # noqa: T201
    if watch_stdin:
        await _watch_stdin(stop)
    await stop.wait()
    server.close()
    for connection in list(connections):
        connection.abort()


def _handler(config: Config) -> Callable[[Request, Connection], None]:
    providers = SimulatedProviders(config)
    control = ControlPlane(providers)

    def handle(request: Request, connection: Connection) -> None:
        if request.path.startswith(PREFIX):
            control.handle(request, connection)
        else:
            providers.handle(request, connection)

    return handle


async def _watch_stdin(stop: asyncio.Event) -> None:
    """Stop when whoever started us is gone: its end of our standard input closes."""

    class Watcher(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            stop.set()

    await asyncio.get_running_loop().connect_read_pipe(Watcher, sys.stdin)


def _runner() -> Callable[[Coroutine[Any, Any, None]], object]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return lambda coroutine: uvloop.run(coroutine)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="apikeyrouter simulate", description="Simulated LLM providers.")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: loopback only)")
    parser.add_argument("--port", type=int, default=9901, help="port to bind; 0 picks a free one (default: 9901)")
    parser.add_argument("--config", help="JSON or YAML file; - reads one line of JSON from standard input")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when standard input ends")
    return parser
