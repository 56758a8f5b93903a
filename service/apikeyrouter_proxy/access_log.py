"""One JSON line per request, written in batches by a thread of its own, so that no request waits for a log."""

import asyncio
import os
import stat
import sys
from collections.abc import Iterator

import msgspec

from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.system_error import ConfigurationError
from apikeyrouter.infrastructure.cancellation import end_task
from apikeyrouter_proxy.arrivals import PEER

__all__ = ["AccessLog"]

FLUSH_SECONDS = 0.1
LINES_WAITING_MAX = 200_000
"""Lines kept while their destination takes none; beyond it they are counted and given up."""
PIPE_BYTES = 4096
"""A write to a pipe up to this is atomic on every system, so lines of several workers do not mix (POSIX: PIPE_BUF)."""


class _Line(msgspec.Struct, gc=False):
    at_us: int
    request_id: str
    route: str
    model: str
    stream: bool
    outcome: str
    client: str | None = None
    team: str | None = None
    key: str = ""
    provider: str = ""
    attempts: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_nanousd: int | None = None
    total_us: int = 0
    overhead_us: int = 0
    first_token_us: int = 0
    status: int | None = None
    denied_by: str | None = None
    peer: str | None = None


_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Lines wait here until the next flush. `path` "" is standard output; a file is appended to and reopened never.

    `written` counts lines, `lost` those that were given up.
    """

    def __init__(self, path: str = "", *, enabled: bool = True, peers: bool = False) -> None:
        self._path = path
        self._peers = peers
        self._enabled = enabled
        self._lines: list[bytes] = []
        self._file: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self.written = 0
        self.lost = 0

    def observe(self, facts: Facts) -> None:
        """Note a call that has ended."""
        if not self._enabled:
            return
        attempts, usage = facts.attempts, facts.usage
        last = attempts[-1] if attempts else None
        self._add(
            _Line(
                facts.at_us,
                facts.request_id,
                facts.operation,
                facts.model,
                facts.stream,
                facts.outcome,
                facts.client,
                facts.team,
                last.key_id if last else "",
                last.provider_id if last else "",
                len(attempts),
                usage.input_tokens if usage else None,
                usage.output_tokens if usage else None,
                facts.cost_nanousd,
                facts.total_us,
                facts.overhead_us,
                facts.first_token_us,
                None,
                None if facts.denial is None else f"{facts.denial.where} {facts.denial.limit}".rstrip(),
                PEER.get() if self._peers else None,
            )
        )

    def refused(
        self,
        *,
        at_us: int,
        request_id: str,
        route: str,
        outcome: str,
        status: int,
        denied_by: str | None,
        client: str | None,
        total_us: int,
    ) -> None:
        """Note a request that never reached the router. `denied_by`: the code of its answer."""
        if self._enabled:
            line = _Line(at_us, request_id, route, "", False, outcome, client)
            line.status, line.total_us, line.overhead_us = status, total_us, total_us
            line.denied_by = denied_by
            line.peer = PEER.get() if self._peers else None
            self._add(line)

    def start(self) -> None:
        """Open the destination and begin to flush. Errors: ConfigurationError when the file cannot be opened."""
        if self._enabled and self._task is None:
            self._file = self._open()
            self._task = asyncio.get_running_loop().create_task(self._run(), name="proxy.access_log")

    async def close(self) -> None:
        """Write what waits, and stop."""
        await end_task(self._task)
        self._task = None
        await self.flush()
        if self._file is not None and self._path:
            os.close(self._file)
        self._file = None

    async def flush(self) -> None:
        """Write what waits now."""
        async with self._writing:
            if self._lines and self._file is not None:
                lines, self._lines = self._lines, []
                try:
                    await asyncio.to_thread(_write_all, self._file, lines)
                except OSError:  # a full disk, a reader that went away
                    self.lost += len(lines)
                else:
                    self.written += len(lines)

    def _add(self, line: _Line) -> None:
        if len(self._lines) < LINES_WAITING_MAX:
            self._lines.append(_encode(line))
        else:
            self.lost += 1

    def _open(self) -> int:
        if not self._path:
            sys.stdout.flush()
            return sys.stdout.fileno()
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as exc:
            reason = f"PROXY_ACCESS_LOG_FILE: {self._path} cannot be opened ({exc.strerror})"
            raise ConfigurationError(reason) from exc

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await asyncio.shield(self.flush())


def _write_all(file: int, lines: list[bytes]) -> None:
    whole = not stat.S_ISFIFO(os.fstat(file).st_mode)
    for part in [b"\n".join(lines) + b"\n"] if whole else _parts(lines):
        view = memoryview(part)
        while view:
            view = view[os.write(file, view) :]


def _parts(lines: list[bytes]) -> Iterator[bytes]:
    """Whole lines, as many as fit into one atomic write."""
    part = b""
    for line in lines:
        if part and len(part) + len(line) + 1 > PIPE_BYTES:
            yield part
            part = b""
        part += line + b"\n"
    if part:
        yield part
