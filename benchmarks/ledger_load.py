"""A process that asks a server for reserves and settlements as fast as it answers, or at a pace: what workers' ledgers
send, encoded beforehand, so that the server is what is measured and not this.

In: one JSON line per run (`Drive`), answered by `ready` once everything is encoded; a second line lets it go. Out: one
JSON line (`Driven`).
"""

import contextlib
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator

import hiredis
import msgspec

from apikeyrouter.infrastructure.config.compile import compile_config
from apikeyrouter.infrastructure.config.config_file import read_config
from apikeyrouter.infrastructure.ledger.arguments import reserve_args, rid_field, settle_args
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from benchmarks.processes import python_module, running_process
from benchmarks.scripts import Demand, next_request, settlement_of
from benchmarks.workers import configuration

__all__ = ["Drive", "Driven", "Driver", "running_driver"]

PAGE = 32
"""Settlements a page, as with many requests at once."""
CHUNKS_OPEN = 2
"""Chunks that are under way at once: the server always has the next one."""


class Drive(msgspec.Struct, kw_only=True):
    """One run. `together`: reserves that leave in one write; `rate`: reserves a second at random moments, 0 for as fast
    as answers come (then `together` at a time)."""

    socket: str
    namespace: str
    keys: int
    lanes: int
    requests: int
    together: int = PAGE
    page: int = PAGE
    rate: float = 0.0
    seed: int = 1


class Driven(msgspec.Struct, kw_only=True):
    """What came of it. `latencies_us`: of the reserves of a paced run, from when each was due."""

    seconds: float
    refused: int
    shown: str = ""
    latencies_us: list[float] = []


class Driver:
    """The pipe's other end."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def prepare(self, drive: Drive) -> None:
        """Have everything encoded."""
        self._write(msgspec.json.encode(drive))
        if self._line() != b"ready\n":
            raise RuntimeError("the driver did not get ready")

    def go(self) -> None:
        """Let it begin."""
        self._write(b"go")

    def result(self) -> Driven:
        """Wait for its end."""
        return msgspec.json.decode(self._line(), type=Driven)

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the driver ended")
        return line


@contextlib.contextmanager
def running_driver() -> Iterator[Driver]:
    """A driver, ended at exit."""
    command = python_module("benchmarks.ledger_load")
    with running_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Driver(process)


class _Commands:
    """Everything that a run sends, in its order: reserves, and behind each page of them its settlements."""

    def __init__(self, drive: Drive) -> None:
        engine = RedisEngine(f"unix://{drive.socket}", namespace=drive.namespace)
        config = compile_config(read_config(configuration("http://127.0.0.1:1/v1", count=drive.keys)), environ={})
        demand = Demand(keys=drive.keys, lanes=drive.lanes, config=config)
        demand.at = random.Random(f"{drive.seed}/{os.getpid()}").randrange(drive.keys)
        self.reserves: list[bytes] = []
        self.pages: list[bytes] = []
        """Behind every `page` reserves: the page that settles them, and what acknowledges the page."""
        for _ in range(0, drive.requests, drive.page):
            requests = [next_request(demand) for _ in range(drive.page)]
            self.reserves += [engine._command("reserve", reserve_args(request), request.pool) for request in requests]
            words = [word for request in requests for word in settle_args(settlement_of(request))]
            rids = [rid_field(request.rid) for request in requests]
            self.pages.append(engine._command("settle", words, "") + engine._command("acknowledge", rids, ""))


class _Wire:
    """One blocking connection."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self.refused = 0
        self.shown = ""

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answered(self, seconds: float | None = None) -> int:
        """How many answers have come; None: wait until there is one."""
        if seconds is not None and not select.select([self._socket], [], [], seconds)[0]:
            return 0
        self._reader.feed(self._socket.recv(1 << 18))
        count = 0
        while (reply := self._reader.gets()) is not Ellipsis:
            count += 1
            if not isinstance(reply, list) or reply[0] not in (Code.ADMITTED, Code.OK):
                self.refused += 1
                self.shown = str(reply)[:200]
        return count

    def close(self) -> None:
        self._socket.close()


def _flat_out(drive: Drive, commands: _Commands, wire: _Wire) -> None:
    """Chunks of `together` reserves, the page that is due behind them; the next leaves when the one before last is
    answered."""
    chunks: list[tuple[bytes, int]] = []
    page_at = 0
    for at in range(0, len(commands.reserves), drive.together):
        parts = commands.reserves[at : at + drive.together]
        answers = len(parts)
        while page_at < len(commands.pages) and (page_at + 1) * drive.page <= at:  # those of chunks that have gone
            parts.append(commands.pages[page_at])
            page_at, answers = page_at + 1, answers + 2
        chunks.append((b"".join(parts), answers))
    chunks += [(page, 2) for page in commands.pages[page_at:]]
    open_: deque[int] = deque()
    have = 0
    for data, answers in chunks:
        wire.send(data)
        open_.append(answers)
        while len(open_) >= CHUNKS_OPEN:
            have += wire.answered()
            while open_ and have >= open_[0]:
                have -= open_.popleft()
    while open_:
        have += wire.answered()
        while open_ and have >= open_[0]:
            have -= open_.popleft()


def _paced(drive: Drive, commands: _Commands, wire: _Wire) -> list[float]:
    """Reserves at random moments; latency counts from when one was due, so that nothing is omitted."""
    chance = random.Random(drive.seed)
    due = time.perf_counter()
    waiting: deque[float] = deque()
    """When each answer that is owed was due; 0.0 for a page's."""
    took: list[float] = []

    def take(seconds: float | None) -> None:
        count = wire.answered(seconds)
        now = time.perf_counter()
        for _ in range(count):
            since = waiting.popleft()
            if since:
                took.append((now - since) * 1e6)

    for at, command in enumerate(commands.reserves):
        due += chance.expovariate(drive.rate)
        while (left := due - time.perf_counter()) > 0:
            take(min(left, 0.0002) if waiting else 0.0)
        if at and at % drive.page == 0:
            wire.send(commands.pages[at // drive.page - 1] + command)
            waiting += (0.0, 0.0, due)
        else:
            wire.send(command)
            waiting.append(due)
    wire.send(commands.pages[-1])
    waiting += (0.0, 0.0)
    while waiting:
        take(None)
    return took


def _drive(drive: Drive) -> Driven:
    commands = _Commands(drive)
    wire = _Wire(drive.socket)
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    sys.stdin.buffer.readline()
    begun = time.perf_counter()
    latencies = _paced(drive, commands, wire) if drive.rate else []
    if not drive.rate:
        _flat_out(drive, commands, wire)
    seconds = time.perf_counter() - begun
    wire.close()
    return Driven(seconds=seconds, refused=wire.refused, shown=wire.shown, latencies_us=latencies)


def main() -> None:
    """Runs from standard input until it ends."""
    while line := sys.stdin.buffer.readline():
        driven = _drive(msgspec.json.decode(line, type=Drive))
        sys.stdout.buffer.write(msgspec.json.encode(driven) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
