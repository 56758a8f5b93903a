"""A primary that is cut off admits until it misses its replicas; what it admitted is told to its successor."""

import asyncio
import os
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import pytest

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import Admission, ReserveRequest
from apikeyrouter.domain.models.system_error import LedgerError, LedgerRefusedError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.serving.bookkeeping import Bookkeeper
from tests.faults.proxy import proxied
from tests.servers import Server, binaries, running
from tests.topologies.books import CANDIDATE, COST, ledger_at, spent
from tests.topologies.deployments import port_of, until

LONG = bool(os.environ.get("AKR_LONG"))
LIMIT = 400
LAG_SECONDS = 1
GUARDED = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", str(LAG_SECONDS))
QUICK = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


class Worker:
    """Ledger and books of a process that holds whatever it gets."""

    def __init__(self, ledger: ScriptLedger) -> None:
        self.ledger, self.books = ledger, Bookkeeper(ledger)

    async def ask(self) -> bool:
        """One reserve. Errors: LedgerError."""
        request = ReserveRequest(rid=new_rid(), candidates=(CANDIDATE,), lease_us=60_000_000)
        answer = await self.ledger.reserve(request)
        if isinstance(answer, Admission):
            self.books.held(request, answer.index)
        return isinstance(answer, Admission)

    async def ask_until_refused(self) -> bool:
        """As long as there is room; whether the server refused in the end."""
        while True:
            try:
                if not await self.ask():
                    return False
            except LedgerRefusedError:
                return True
            await asyncio.sleep(0.01)

    async def repair(self) -> None:
        """As housekeeping does it."""
        await self.ledger.open()
        await self.ledger.note_forgotten(lease_us=30_000_000)
        await self.books.reassert()


@pytest.mark.skipif(not LONG, reason="the long variant: AKR_LONG=1, make faults")
@pytest.mark.parametrize("flavour", list(binaries()))
async def test_what_a_primary_admits_that_is_cut_off_is_bounded_by_its_lag_and_told_again(flavour: str) -> None:
    async with AsyncExitStack() as stack:
        old = stack.enter_context(running(flavour, options=(*QUICK, *GUARDED)))
        link = await stack.enter_async_context(proxied("127.0.0.1", port_of(old)))
        follow = ("--replicaof", f"127.0.0.1 {link.port}")
        new = stack.enter_context(running(flavour, options=(*QUICK, *follow)))
        with old.client() as client:
            await asyncio.to_thread(until, lambda: client.info("replication").get("min_slaves_good_slaves") == 1)
        way = await stack.enter_async_context(proxied("127.0.0.1", port_of(old)))
        cut_off, free = [
            Worker(await stack.enter_async_context(ledger_at(f"redis://127.0.0.1:{port}/0", limit=LIMIT * COST)))
            for port in (way.port, port_of(old))
        ]
        for _ in range(10):
            assert await cut_off.ask()
        with old.client() as client:
            client.set("written", "last")
            await asyncio.to_thread(until, lambda: client.wait(1, 500) == 1)
        link.silent = True
        free.ledger = await stack.enter_async_context(_promoted(new))
        free.books = Bookkeeper(free.ledger)
        assert await cut_off.ask_until_refused(), "the old primary admits without a replica for ever"
        in_the_partition = len(cut_off.books.open) - 10
        assert in_the_partition > 0
        while await free.ask():
            pass
        assert len(free.books.open) == LIMIT - 10

        way.to = ("127.0.0.1", port_of(new))
        way.cut()
        await asyncio.to_thread(old.stop)
        async with asyncio.timeout(20):
            while not await _repaired(cut_off):
                await asyncio.sleep(0.05)
        held = (await spent(free.ledger))[1]
        assert held == (len(free.books.open) + len(cut_off.books.open)) * COST
        assert held - LIMIT * COST == in_the_partition * COST, "over by what the partition admitted, and by no more"
        assert not await free.ask()


def _promoted(server: Server) -> AbstractAsyncContextManager[ScriptLedger]:
    """The replica is a primary now."""
    with server.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
    return ledger_at(server.url, limit=LIMIT * COST)


async def _repaired(worker: Worker) -> bool:
    try:
        await worker.repair()
    except LedgerError:
        return False
    return True
