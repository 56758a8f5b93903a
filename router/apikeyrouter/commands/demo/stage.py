"""The demo's processes: each is started here, told apart by its id, and gone when the stage closes."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.embedded_valkey import EmbeddedServer, open_embedded

__all__ = ["Child", "embedded_server", "running_service", "running_traffic"]

START_SECONDS_MAX = 90.0
STOP_SECONDS_MAX = 30.0
_OURS = ("APIKEYROUTER_", "PROXY_", "OPENAI_", "ANTHROPIC_", "REDIS_URL", "MANAGEMENT_API_", "MONGODB_")


class Child:
    """A child process that tells JSON lines on its standard output."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name

    async def hear(self, *events: str) -> dict[str, Any]:
        """The next line with one of these events (any, when none is named); others are dropped.

        Errors: ConfigurationError when the process ends first.
        """
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            with contextlib.suppress(ValueError):
                told: dict[str, Any] = json.loads(line)
                if not events or told.get("event") in events:
                    return told
        raise ConfigurationError(f"the {self._name} ended (exit code {await self._process.wait()})")

    def go(self) -> None:
        """Send the line that a waiting child waits for."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """End it, by force if it must be; the exit code. Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
        # Its last lines are read, or it might wait for ever to write them.
        ending = asyncio.gather(self._drain(), self._process.wait())
        try:
            await asyncio.wait_for(ending, STOP_SECONDS_MAX)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        assert self._process.returncode is not None
        return self._process.returncode

    async def _drain(self) -> None:
        assert self._process.stdout is not None
        while await self._process.stdout.readline():
            pass


@contextlib.asynccontextmanager
async def embedded_server() -> AsyncIterator[EmbeddedServer]:
    """An ephemeral embedded Valkey, stopped at exit."""
    server = await open_embedded(None)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


@contextlib.asynccontextmanager
async def running_service(
    embedded: EmbeddedServer, config: Mapping[str, Any], *, workers: int, environ: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Child, dict[str, Any]]]:
    """`apikeyrouter serve` over that server with that configuration, on a free loopback port; and what it announced.

    It sees nothing of the caller's keys and settings but `environ`, and runs in a directory without a `.env`.
    """
    with tempfile.TemporaryDirectory(prefix="apikeyrouter-demo-") as directory:
        path = Path(directory) / "demo.yaml"
        path.write_text(json.dumps(config, indent=2))
        arguments = ["-m", "apikeyrouter.cli", "serve", "--json", "--watch-stdin"]
        arguments += ["--host", "127.0.0.1", "--port", "0"]
        arguments += ["--workers", str(workers), "--config", str(path), "--redis-url", embedded.url]
        told = {"APIKEYROUTER_ENCRYPTION_KEY": embedded.encryption_key, "PROXY_ACCESS_LOG": "false", **(environ or {})}
        async with _child("service", arguments, environ=_environ() | told, directory=directory) as child:
            yield child, await asyncio.wait_for(child.hear("listening"), START_SECONDS_MAX)


@contextlib.asynccontextmanager
async def running_traffic(arguments: Sequence[str]) -> AsyncIterator[Child]:
    """The client process, waiting for `go`."""
    module = ["-m", "apikeyrouter.commands.demo.traffic"]
    async with _child("traffic", [*module, *arguments], environ=_environ()) as child:
        await asyncio.wait_for(child.hear("ready"), START_SECONDS_MAX)
        yield child


@contextlib.asynccontextmanager
async def _child(
    name: str, arguments: Sequence[str], *, environ: Mapping[str, str], directory: str | None = None
) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=dict(environ),
        cwd=directory,
        start_new_session=True,
    )
    child = Child(process, name)
    try:
        yield child
    finally:
        await child.stop()


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
