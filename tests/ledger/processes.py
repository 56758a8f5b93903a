"""What eight worker processes do to one cell on a real server, all at the same moment."""

import asyncio
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import BrokenBarrierError
from typing import Any

from apikeyrouter.domain.models.accounting import Admission, Candidate, Charge, Denial, ReserveRequest
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.ledger.support import CELL, NAMESPACE, set_virtual_now
from tests.servers import Server

PROCESSES = 8
BARRIER_SECONDS_MAX = 60
CALL_SECONDS_MAX = 30

_barrier: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """What one process asks for: `count` reserves at once, each under an id of its own."""

    url: str
    number: int
    count: int
    scopes: tuple[str, ...] = ()
    charge: Charge = field(default_factory=Charge)
    principal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One process of a fair pool: `offered[round]` new requests in each round; denied ones are tried again."""

    url: str
    number: int
    offered: int
    rounds: int
    start_us: int
    round_us: int
    backlog_max: int


def ledger_at(url: str) -> ScriptLedger:
    """A ledger over a server whose cell runs on virtual time."""
    engine = RedisEngine(url, namespace=NAMESPACE, cell=CELL, virtual_time=True, timeout_s=CALL_SECONDS_MAX)
    return ScriptLedger(engine)


@contextmanager
def eight_processes() -> Iterator[ProcessPoolExecutor]:
    """Eight fresh processes. Each task waits until all eight have theirs, so that each gets one."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_begin, initargs=(barrier,)) as pool:
        yield pool


def _begin(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def meet() -> bool:
    """Wait for all eight; true in exactly one of them. Errors: BrokenBarrierError when one does not come."""
    return bool(_barrier.wait(BARRIER_SECONDS_MAX) == 0)


def identity(_: int) -> int:
    """Which process this is, once all eight are there."""
    meet()
    return os.getpid()


def rid_of(process: int, turn: int) -> bytes:
    """A reservation id that says who made it."""
    return bytes([process]) + turn.to_bytes(15, "big")


def crowd(task: Crowd) -> list[Admission | Denial]:
    """Ask for everything at once, when all eight are ready."""
    return asyncio.run(_crowd(task))


async def _crowd(task: Crowd) -> list[Admission | Denial]:
    ledger = ledger_at(task.url)
    await ledger.open()
    wishes = [
        ReserveRequest(
            rid=rid_of(task.number, turn), candidates=(Candidate(lanes=("lane",), charge=task.charge),),
            scopes=task.scopes, principal=task.principal, pool="pool", lease_us=3_600_000_000,
        )
        for turn in range(task.count)
    ]  # fmt: skip
    try:
        await asyncio.to_thread(meet)
        return list(await asyncio.gather(*map(ledger.reserve, wishes)))
    finally:
        await ledger.close()


def take_turns(task: Share) -> list[int]:
    """Offer requests round by round, all eight in step on the cell's virtual clock; returns admissions per round."""
    try:
        return asyncio.run(_take_turns(task))
    except BrokenBarrierError as exc:
        raise RuntimeError("a process of the pool stopped in mid-run") from exc


async def _take_turns(task: Share) -> list[int]:
    ledger, admitted, waiting, turn = ledger_at(task.url), [0] * task.rounds, 0, 0
    server = Server(flavour="external", version="", url=task.url)
    await ledger.open()
    with server.client() as client:
        for number in range(task.rounds):
            if meet():
                set_virtual_now(client, task.start_us + number * task.round_us)
            meet()
            waiting = min(waiting + task.offered, task.backlog_max)
            wishes = [
                ReserveRequest(
                    rid=rid_of(task.number, turn + ask), candidates=(Candidate(lanes=("lane",)),),
                    principal=f"tenant {task.number}", pool="pool", lease_us=3_600_000_000,
                )
                for ask in range(waiting)
            ]  # fmt: skip
            turn += waiting
            answers = await asyncio.gather(*map(ledger.reserve, wishes))
            admitted[number] = count_admitted(answers)
            waiting -= admitted[number]
    await ledger.close()
    return admitted


def count_admitted(answers: Sequence[Admission | Denial]) -> int:
    """How many of them were admitted."""
    return sum(isinstance(answer, Admission) for answer in answers)
