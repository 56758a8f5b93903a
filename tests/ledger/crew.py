"""Real processes that drive one cell at once, and tell what they sent and what was answered.

A member reads jobs from its standard input and writes what happened to its standard output. Members connect first, say
so, and begin when they are told to, so that they begin together.
"""

import asyncio
import contextlib
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from apikeyrouter.infrastructure.ledger.engine import Reply
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.ledger.histories import Call

READY, GO = b"ready\n", b"go\n"
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """Calls of one member, `width` of them under way at a time."""

    url: str
    namespace: str
    cell: str
    calls: tuple[Call, ...]
    width: int
    virtual_time: bool


@dataclass(frozen=True, slots=True)
class Told:
    """One call as its caller saw it. Instants are of the machine's monotonic clock, in nanoseconds."""

    call: Call
    sent_ns: int
    received_ns: int
    reply: Reply


class Crew:
    """Processes that wait for jobs. Made once for many tests: starting one costs more than most jobs."""

    def __init__(self, size: int) -> None:
        command = [sys.executable, "-c", "from tests.ledger.crew import main; main()"]
        self._members = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(size)]

    def __len__(self) -> int:
        return len(self._members)

    def run(self, jobs: Sequence[Job]) -> list[list[Told]]:
        """Each member does its job; all begin at once. What each was told, in the order it asked."""
        streams = [_pipes(member) for member in self._members]
        for (to_member, _), job in zip(streams, jobs, strict=True):
            _write(to_member, job)
        for _, from_member in streams:
            assert from_member.readline() == READY, "a member of the crew has died"
        for to_member, _ in streams:
            to_member.write(GO)
            to_member.flush()
        return [pickle.load(from_member) for _, from_member in streams]

    def dismiss(self) -> None:
        """Let the members end."""
        for member in self._members:
            with member:
                _pipes(member)[0].close()


def _pipes(member: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    assert member.stdin is not None
    assert member.stdout is not None
    return member.stdin, member.stdout


def _write(stream: IO[bytes], value: Any) -> None:
    pickle.dump(value, stream)
    stream.flush()


def main() -> None:
    """Do jobs until there are no more."""
    jobs, told = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError):
        while True:
            _write(told, asyncio.run(_work(pickle.load(jobs), jobs, told)))


async def _work(job: Job, jobs: IO[bytes], told: IO[bytes]) -> list[Told]:
    engine = RedisEngine(
        job.url, namespace=job.namespace, cell=job.cell, timeout_s=TIMEOUT_S, virtual_time=job.virtual_time
    )
    await engine.open()
    told.write(READY)
    told.flush()
    assert jobs.readline() == GO
    calls = iter(enumerate(job.calls))
    found: dict[int, Told] = {}

    async def caller() -> None:
        for number, call in calls:
            sent = time.monotonic_ns()
            reply = await engine.run(call.name, call.args, pool=call.pool)
            found[number] = Told(call, sent, time.monotonic_ns(), reply)

    await asyncio.gather(*(caller() for _ in range(job.width)))
    await engine.close()
    return [found[number] for number in range(len(job.calls))]
