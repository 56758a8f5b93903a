"""The simulator as a child process, for tests and the demo."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

__all__ = ["BASES", "SimulatorError", "SimulatorProcess"]

READY_SECONDS_MAX = 20.0
REPLY_SECONDS_MAX = 20.0
STOP_SECONDS_MAX = 5.0


BASES = {
    "openai": "/v1", "anthropic": "", "gemini": "", "azure": "/azure", "groq": "/groq/openai/v1",
    "mistral": "/mistral/v1", "deepseek": "/deepseek", "openrouter": "/openrouter/api/v1",
}  # fmt: skip
"""Where each dialect begins, as its SDK wants it."""


class SimulatorError(RuntimeError):
    """The simulator did not start, has died, or refused a command."""


class SimulatorProcess:
    """An async context manager: a simulator in a process of its own, on a free loopback port.

    ``config`` is the configuration as plain JSON types (None: the built-in one). The child ends with the context, and
    also when this process dies. All methods raise :class:`SimulatorError` if the child is not there.
    """

    def __init__(self, config: Mapping[str, Any] | None = None, *, port: int = 0) -> None:
        self._config = config
        self._wanted_port = port
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    async def __aenter__(self) -> SimulatorProcess:
        """Start and wait until it listens."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        await self.stop()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def openai_url(self) -> str:
        """The base URL for OpenAI SDKs."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        """The base URL for Anthropic SDKs."""
        return self.url

    def base_url(self, dialect: str) -> str:
        """The base URL of a dialect, as its SDK wants it."""
        return self.url + BASES[dialect]

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._alive().pid

    async def start(self) -> None:
        """Spawn the child and wait for its ``ready`` line."""
        arguments = ["-m", "apikeyrouter.simulator", "--port", str(self._wanted_port), "--watch-stdin"]
        if self._config is not None:
            arguments += ["--config", "-"]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdin is not None
        if self._config is not None:
            self._process.stdin.write(json.dumps(self._config).encode() + b"\n")
        try:
            self._port = await asyncio.wait_for(self._read_port(), READY_SECONDS_MAX)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the child; idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS_MAX)
        except TimeoutError:
            process.kill()
            await process.wait()
        if process.stdin is not None:
            process.stdin.close()

    async def report(self) -> dict[str, Any]:
        """What it saw and billed; see ``report.py`` for the fields."""
        return await self._call("GET", "report")

    async def journal(self) -> list[dict[str, Any]]:
        """The last arrivals, oldest first."""
        entries: list[dict[str, Any]] = (await self._call("GET", "journal"))["entries"]
        return entries

    async def control(self, **commands: Any) -> None:
        """Change it while it runs; the arguments are the fields of ``control.ControlRequest``."""
        await self._call("POST", "control", commands)

    async def fail(self, name: str, **rule: Any) -> None:
        """Add one failure rule (``organisation``, ``key``, ``model``, ``probability``, ``count``, ``seconds``, …)."""
        await self.control(failures=[{"name": name, **rule}])

    async def reset(self) -> None:
        """Forget all counters, used limits and settings made at run time."""
        await self._call("POST", "reset", {})

    async def _read_port(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        if not line.startswith("ready "):
            raise SimulatorError("the simulator did not start; its standard error says why")
        return int(line.rsplit(":", 1)[1])

    def _alive(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            raise SimulatorError("the simulator is not running")
        return self._process

    async def _call(self, method: str, path: str, data: object = None) -> dict[str, Any]:
        self._alive()
        status, body = await asyncio.wait_for(self._exchange(method, path, data), REPLY_SECONDS_MAX)
        decoded: dict[str, Any] = json.loads(body)
        if status != 200:
            raise SimulatorError(f"{method} {path}: {decoded.get('error', status)}")
        return decoded

    async def _exchange(self, method: str, path: str, data: object) -> tuple[int, bytes]:
        """One HTTP request on a connection of its own."""
        body = b"" if data is None else json.dumps(data).encode()
        head = f"{method} /_sim/{path} HTTP/1.1\r\nhost: simulator\r\nconnection: close\r\ncontent-length: {len(body)}"
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(head.encode() + b"\r\n\r\n" + body)
            answer = await reader.read()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        status_line, _, rest = answer.partition(b"\r\n")
        return int(status_line.split()[1]), rest.partition(b"\r\n\r\n")[2]
