"""What the library did not expect, while ends are delivered, loses none: neither an error that is no ledger's, nor a
process that ends in the middle."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    LaneConfig,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
)
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.ledger.outbox_file import left_over
from apikeyrouter.infrastructure.observability.events import EventLog
from apikeyrouter.serving.bookkeeping import BROKEN_TRIES_MAX, Bookkeeper, Release
from apikeyrouter.serving.keeping import Keeper
from tests.ledger.support import CELL, NAMESPACE, START_US
from tests.router.house import until

SCOPE, LANE, COST = "global:all", "k:one", 1_000
CANDIDATE = Candidate(lanes=(LANE,), scopes=(SCOPE,), charge=Charge(expected_nanousd=COST, bound_nanousd=COST))


class Broken(LocalEngine):
    """An engine with a defect: so many calls of a script raise what nobody expects, or never end."""

    def __init__(self, clock_us: Callable[[], int]) -> None:
        super().__init__(namespace=NAMESPACE, cell=CELL, clock_us=clock_us)
        self.breaks: Counter[str] = Counter()
        self.hangs = ""
        self.hanging = asyncio.Event()
        self.poison = b""

    async def run(self, name: str, args: Sequence[Argument], *, pool: str = "") -> Reply:
        if self.hangs == name:
            self.hanging.set()
            await asyncio.Event().wait()
        if self.breaks[name] > 0:
            self.breaks[name] -= 1
            raise RuntimeError(f"a defect in {name}")
        if self.poison and self.poison in args:
            raise RuntimeError("a defect with this one")
        return await super().run(name, args, pool=pool)


class Worker:
    """Ledger and books of one process."""

    def __init__(self, keeper: Keeper | None = None) -> None:
        self.now_us = START_US
        self.engine = Broken(lambda: self.now_us)
        self.ledger = ScriptLedger(self.engine)
        self.books = Bookkeeper(self.ledger, keeper)

    async def open(self) -> None:
        """Begin, or begin again after a flush."""
        await self.ledger.open()
        scope = ScopeConfig(id=SCOPE, limit_nanousd=10**9, hard=True, period=Period.TOTAL)
        await self.ledger.put(lanes=[LaneConfig(id=LANE)], scopes=[scope])

    async def admit(self, number: int) -> Settlement:
        """A call that is open, and how it will end."""
        request = ReserveRequest(rid=number.to_bytes(16), candidates=(CANDIDATE,))
        assert isinstance(await self.ledger.reserve(request), Admission)
        self.books.held(request, 0)
        return Settlement(rid=request.rid, input_tokens=1, output_tokens=1, cost_nanousd=COST)

    async def settled(self) -> int:
        """What was booked. Nothing is held."""
        (state,) = await self.ledger.scopes([SCOPE])
        assert state.held == 0
        return state.settled


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What is logged as an error."""
    told: list[tuple[str, dict[str, Any]]] = []

    def hear(self: EventLog, level: int, event: str, fields: dict[str, Any]) -> None:
        if level >= logging.ERROR:
            told.append((event, fields))

    monkeypatch.setattr(EventLog, "write", hear)
    return told


async def worker_with(keeper: Keeper | None = None) -> Worker:
    """One that is open."""
    worker = Worker(keeper)
    await worker.open()
    return worker


@pytest.mark.parametrize("script", ["settle", "reassert"])
async def test_an_error_that_is_no_ledgers_loses_no_settlement(script: str) -> None:
    worker = await worker_with()
    ends = [await worker.admit(number) for number in range(1, 4)]
    if script == "reassert":  # who is told that a reservation is unknown tells it again first
        worker.engine.flush()
        await worker.open()
    worker.engine.breaks[script] = 2
    worker.books.start()
    for end in ends:
        worker.books.hand_in(end)
    assert await worker.books.flush(seconds=20)
    assert await worker.settled() == 3 * COST
    await worker.books.close()


async def test_an_end_that_comes_before_the_budgets_after_a_flush_is_booked_when_they_are_back() -> None:
    worker = await worker_with()
    end = await worker.admit(1)
    worker.engine.flush()
    await worker.ledger.open()  # another process made the cell anew, and has put nothing into it yet
    worker.books.start()
    worker.books.hand_in(end)
    await until(lambda: worker.books._broken)
    await worker.open()
    assert await worker.books.flush(seconds=20)
    assert await worker.settled() == COST
    await worker.books.close()


async def test_a_release_whose_lease_ran_out_and_whose_answer_was_lost_is_no_refusal(
    logged: list[tuple[str, dict[str, Any]]],
) -> None:
    worker = await worker_with()
    end = await worker.admit(1)
    worker.now_us += 60_000_000
    while await worker.ledger.sweep():
        pass
    await worker.ledger.settle(Settlement(rid=end.rid, input_tokens=0, output_tokens=0, cost_nanousd=0))
    worker.books.start()
    worker.books.hand_in(Release(rid=end.rid, sent=False))  # as it is sent again when that answer was lost
    assert await worker.books.flush(seconds=20)
    assert (await worker.settled(), logged) == (0, [])
    await worker.books.close()


async def test_one_that_always_breaks_holds_up_no_other_and_is_given_up_in_the_end() -> None:
    worker = await worker_with()
    poison, *others = [await worker.admit(number) for number in range(1, 9)]
    worker.engine.poison = b"r:" + poison.rid
    worker.books.start()
    for end in (poison, *others):
        worker.books.hand_in(end)
    for _ in range(BROKEN_TRIES_MAX):
        if worker.books.settled == len(others):
            break
        await asyncio.sleep(0.02)
    assert worker.books.settled == len(others)
    assert await worker.books.flush(seconds=30)
    (state,) = await worker.ledger.scopes([SCOPE])
    assert (state.settled, state.held) == (len(others) * COST, COST)
    await worker.books.close()


async def test_a_process_that_ends_while_an_end_is_told_anew_keeps_it_on_disk(tmp_path: Path) -> None:
    worker = await worker_with(Keeper(tmp_path, "ledger"))
    ends = [await worker.admit(number) for number in range(1, 4)]
    worker.engine.flush()
    await worker.open()
    worker.engine.hangs = "reassert"
    worker.books.start()
    for end in ends:
        worker.books.hand_in(end)
    await worker.engine.hanging.wait()
    await worker.books.close()
    kept = [entry.rid for file in left_over(tmp_path, "ledger") for entry in file.entries]
    assert sorted(kept) == sorted(end.rid for end in ends)
