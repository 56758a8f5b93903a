"""A primary that takes acknowledged writes along: what living workers wrote is told again, and counts once."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
import pytest_asyncio

from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Charge,
    LaneConfig,
    Period,
    ReserveRequest,
    ScopeConfig,
    Settlement,
    State,
)
from apikeyrouter.domain.models.system_error import LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.local_engine import LocalEngine
from apikeyrouter.infrastructure.ledger.spread_ledger import AnyLedger
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.serving import replaying
from apikeyrouter.serving.bookkeeping import Bookkeeper, Release
from apikeyrouter.simulator import SimulatorProcess
from tests.faults.network import put_back
from tests.faults.proxy import proxied
from tests.ledger.support import CELL, NAMESPACE, local_image
from tests.router.house import SCOPE as ALL
from tests.router.house import SIMULATED, house, until
from tests.servers import Server, binaries, running
from tests.topologies.deployments import port_of
from tests.topologies.deployments import until as by_and_by

SCOPE, LANE, COST = "global:all", "k:one", 1_000
CANDIDATE = Candidate(lanes=(LANE,), scopes=(SCOPE,), charge=Charge(expected_nanousd=COST, bound_nanousd=COST))


class Worker:
    """Ledger and books of one process, over a cell in this one."""

    def __init__(self, engine: LocalEngine) -> None:
        self.ledger = ScriptLedger(engine)
        self.books = Bookkeeper(self.ledger)
        self.number = 0

    async def open(self) -> None:
        """Begin."""
        await self.ledger.open()
        await self.configure()
        self.books.start()

    async def configure(self) -> None:
        """What every process knows."""
        scope = ScopeConfig(id=SCOPE, limit_nanousd=10**9, hard=True, period=Period.TOTAL)
        await self.ledger.put(lanes=[LaneConfig(id=LANE)], scopes=[scope])

    async def admit(self) -> bytes:
        """One reservation."""
        self.number += 1
        request = ReserveRequest(rid=self.number.to_bytes(16), candidates=(CANDIDATE,))
        assert isinstance(await self.ledger.reserve(request), Admission)
        self.books.held(request, 0)
        return request.rid

    async def serve(self, count: int) -> None:
        """Calls that were answered and booked."""
        for rid in [await self.admit() for _ in range(count)]:
            self.books.hand_in(Settlement(rid=rid, input_tokens=1, output_tokens=1, cost_nanousd=COST))
        assert await self.books.flush(seconds=10)

    async def repair(self) -> None:
        """As housekeeping does it."""
        await self.ledger.open()
        await self.configure()
        await self.books.reassert()
        self.books.replay()
        assert await self.books.flush(seconds=10)

    async def spent(self) -> tuple[int, int]:
        """Settled, held."""
        (state,) = await self.ledger.scopes([SCOPE])
        return state.settled, state.held


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[Worker]:
    """One with books."""
    made = Worker(LocalEngine(namespace=NAMESPACE, cell=CELL))
    await made.open()
    yield made
    await made.books.close()


def back_to(worker: Worker, image: object) -> None:
    """The cell is what it was."""
    engine = worker.ledger.engine
    assert isinstance(engine, LocalEngine)
    engine.flush()
    put_back(engine, image)  # type: ignore[arg-type]


def image_of(worker: Worker) -> object:
    """All that the cell holds."""
    engine = worker.ledger.engine
    assert isinstance(engine, LocalEngine)
    return local_image(engine)


@pytest.mark.parametrize("reserved", ["before", "after"])
async def test_a_booked_settlement_that_is_forgotten_is_booked_again(worker: Worker, reserved: str) -> None:
    await worker.serve(3)
    rid = await worker.admit() if reserved == "before" else b""
    image = image_of(worker)
    rid = rid or await worker.admit()
    worker.books.hand_in(Settlement(rid=rid, input_tokens=1, output_tokens=1, cost_nanousd=COST))
    assert await worker.books.flush(seconds=10)
    assert await worker.spent() == (4 * COST, 0)
    back_to(worker, image)
    assert await worker.spent() == (3 * COST, COST if reserved == "before" else 0)
    await worker.repair()
    assert await worker.spent() == (4 * COST, 0)
    assert await worker.ledger.audit(lanes=[LANE], scopes=[SCOPE]) == []
    assert worker.books.settled == 4


async def test_a_store_that_forgot_nothing_counts_nothing_twice(worker: Worker) -> None:
    await worker.serve(50)
    rid = await worker.admit()
    worker.books.hand_in(Release(rid=rid, sent=False))
    assert await worker.books.flush(seconds=10)
    for _ in range(3):
        await worker.repair()
    assert await worker.spent() == (50 * COST, 0)
    assert worker.books.settled == 51


async def test_a_store_that_lost_everything_has_again_what_was_booked_lately(worker: Worker) -> None:
    await worker.serve(20)
    open_one = await worker.admit()
    engine = worker.ledger.engine
    assert isinstance(engine, LocalEngine)
    engine.flush()
    await worker.repair()
    assert await worker.spent() == (20 * COST, COST)
    (left,) = await worker.ledger.reservations()
    assert (left.rid, left.state) == (open_one, State.OPEN)


async def test_tombstones_stay_as_long_as_their_end_may_be_told_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes] = []

    async def acknowledge(rids: list[bytes]) -> None:
        told.extend(rids)

    monkeypatch.setattr(worker.ledger, "acknowledge", acknowledge)
    await worker.serve(10)
    worker.books._acknowledge_at = 0.0
    await worker.books.acknowledge()
    assert told == []
    monkeypatch.setattr(replaying, "REPLAY_SECONDS", 0.0)
    worker.ledger.forgotten += 1
    await worker.books.acknowledge()
    assert told == []
    worker.books.replay()
    assert await worker.books.flush(seconds=10)
    worker.books._acknowledge_at = 0.0
    await worker.books.acknowledge()
    assert len(told) == 10
    assert worker.books.replay() == 0


async def test_only_so_much_is_kept(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "REPLAY_MAX", 5)
    await worker.serve(20)
    worker.books._acknowledge_at = 0.0
    await worker.books.acknowledge()
    assert worker.books.replay() == 5


@pytest.mark.parametrize("flavour", list(binaries()))
async def test_a_promoted_replica_that_lacks_the_last_writes_is_made_whole(flavour: str) -> None:
    """Replication is cut, calls go on, the primary is killed, the replica takes its place at the same address."""
    with running(flavour) as primary, running(flavour, options=_following(primary)) as replica:
        async with (
            SimulatorProcess(SIMULATED) as simulator,
            proxied("127.0.0.1", port_of(primary)) as proxy,
            house(simulator, RedisStateStore(f"redis://127.0.0.1:{proxy.port}/0"), ["a1", "b1"]) as made,
        ):
            ledger = made.router.ledger
            await asyncio.gather(*(made.route(f"before {number}", provider_id="other") for number in range(20)))
            assert await made.router.books.flush(seconds=10)
            with primary.client() as client:
                await asyncio.to_thread(by_and_by, lambda: cast("int", client.wait(1, 1000)) == 1)
            with replica.client() as client:
                client.execute_command("REPLICAOF", "NO", "ONE")
            await asyncio.gather(*(made.route(f"lost {number}", provider_id="other") for number in range(20)))
            assert await made.router.books.flush(seconds=10)
            billed, kept = await made.billed(), await _settled(ledger)
            assert kept == billed
            proxy.to = ("127.0.0.1", port_of(replica))
            primary.stop()
            await until(lambda: ledger.forgotten >= 1)

            async def made_whole() -> bool:
                return await _settled(ledger) == billed

            await until(made_whole)
            assert await made.at_rest() == billed
            assert await _cautious_until(ledger) > ledger.stamp.now_us, "no eighth stays free after the loss"


def _following(primary: Server) -> tuple[str, ...]:
    return ("--replicaof", f"127.0.0.1 {port_of(primary)}", "--repl-diskless-sync-delay", "0")


async def _cautious_until(ledger: AnyLedger) -> int:
    """Until when the cell keeps an eighth free, in its own time: what is answered to a loss that it knows."""
    return int((await ledger.engine.run("forgot", [ledger.stamp.epoch, 0, 0]))[5])


async def _settled(ledger: AnyLedger) -> int:
    """Nano-dollars, -1: nobody says so now."""
    try:
        return sum(state.settled for state in await ledger.scopes([ALL]))
    except LedgerUnavailableError:
        return -1
