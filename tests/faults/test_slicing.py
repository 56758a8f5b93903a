"""A network that slices: answers and requests come byte by byte, and a connection ends at any byte of an answer."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from apikeyrouter.domain.components.reservation_ids import new_rid
from apikeyrouter.domain.models.accounting import Admission, Candidate, Denial, LaneConfig, ReserveRequest
from apikeyrouter.domain.models.system_error import LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.serving.bookkeeping import Bookkeeper, Release
from tests.faults.proxy import Proxy, proxied
from tests.ledger.support import in_flight
from tests.router.house import until
from tests.servers import default_flavour, running
from tests.topologies.deployments import port_of

LIMIT = 40
LANE = LaneConfig(id="lane", limits=(in_flight(LIMIT),))
CUTS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)


class Worker:
    """Ledger and books over a proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.ledger = ScriptLedger(RedisEngine(f"redis://127.0.0.1:{proxy.port}/0"))
        self.books = Bookkeeper(self.ledger)
        self.ledger.on_unanswered = self.books.cancel

    async def ask(self) -> Admission | Denial | None:
        """One reserve; None: nobody knows."""
        request = ReserveRequest(rid=new_rid(), candidates=(Candidate(lanes=("lane",)),))
        try:
            answer = await self.ledger.reserve(request)
        except LedgerUnavailableError:
            return None
        if isinstance(answer, Admission):
            self.books.held(request, answer.index)
        return answer

    async def in_flight(self) -> int:
        """What the ledger holds; -1: it does not say."""
        try:
            return sum(lane.in_flight for lane in await self.ledger.lanes(["lane"]))
        except LedgerUnavailableError:
            return -1

    async def agrees(self) -> bool:
        """Whether ledger and books hold the same."""
        return self.books.waiting == 0 and await self.in_flight() == len(self.books.open)

    async def give_all_back(self) -> None:
        """Release what is open."""
        for rid in list(self.books.open):
            self.books.hand_in(Release(rid=rid, sent=False))
        await until(self.agrees)


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[Worker]:
    """One with a server behind a proxy."""
    with running(default_flavour()) as server:
        async with proxied("127.0.0.1", port_of(server)) as proxy:
            made = Worker(proxy)
            await made.ledger.open()
            await made.ledger.put(lanes=[LANE])
            made.books.start()
            yield made
            await made.books.close()
            await made.ledger.close()


@pytest.mark.parametrize("size", [1, 3, 7])
async def test_what_comes_in_slices_is_understood(worker: Worker, size: int) -> None:
    worker.proxy.slice_bytes = size
    answers = [await worker.ask() for _ in range(3)]
    answers += await asyncio.gather(*(worker.ask() for _ in range(12)))
    admitted = sum(isinstance(answer, Admission) for answer in answers)
    assert admitted >= 3, "so few can be sliced within the deadline"
    await until(worker.agrees)
    assert len(worker.books.open) == admitted
    worker.proxy.slice_bytes = 0
    await worker.give_all_back()


async def test_an_answer_that_is_cut_at_any_byte_holds_nothing_that_nobody_knows_of(worker: Worker) -> None:
    for cut in CUTS:
        worker.proxy.cut_after_bytes = cut
        answers = await asyncio.gather(*(worker.ask() for _ in range(LIMIT + 5)))
        assert sum(isinstance(answer, Admission) for answer in answers) <= LIMIT
        await until(worker.agrees)
        assert worker.proxy.was_cut
        await worker.give_all_back()
    answers = [await worker.ask() for _ in range(LIMIT + 1)]
    assert sum(isinstance(answer, Admission) for answer in answers) == LIMIT
