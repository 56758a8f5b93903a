"""Eight processes at one cell: one probe in the fleet, one reservation an id, retry times true to a microsecond."""

from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import pytest
import pytest_asyncio

from apikeyrouter.domain.models.accounting import Admission, Breaker, Denial, LaneConfig, Limit, Outcome, Reason
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from tests.ledger.processes import PROCESSES, Crowd, crowd, eight_processes, identity, ledger_at
from tests.ledger.support import (
    SECOND,
    START_US,
    bucket,
    configure,
    lane,
    set_virtual_now,
    sliding,
    used,
    window,
    wish,
)
from tests.servers import Server

LIMIT = 100
NOW_US = START_US + 7 * SECOND


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with eight_processes() as started:
        yield started


@pytest_asyncio.fixture
async def ledger(any_server: Server) -> AsyncIterator[ScriptLedger]:
    move_to(any_server, NOW_US)
    ledger = ledger_at(any_server.url)
    await ledger.open()
    yield ledger
    await ledger.close()


def move_to(server: Server, now_us: int) -> None:
    with server.client() as client:
        set_virtual_now(client, now_us)


def ask_all(pool: ProcessPoolExecutor, tasks: Sequence[Crowd]) -> list[Admission | Denial]:
    return [answer for answers in pool.map(crowd, tasks) for answer in answers]


@pytest.mark.parametrize("limit", [bucket(LIMIT), window(LIMIT), sliding(LIMIT)], ids=["bucket", "window", "sliding"])
async def test_an_exact_retry_time_is_the_first_microsecond_that_admits(
    ledger: ScriptLedger, any_server: Server, limit: Limit
) -> None:
    await configure(ledger, lane("lane", limit))
    for _ in range(LIMIT):
        await ledger.reserve(wish())
    denial = await ledger.reserve(wish())
    assert isinstance(denial, Denial)
    move_to(any_server, denial.binding.retry_at_us - 1)
    assert isinstance(await ledger.reserve(wish()), Denial)
    move_to(any_server, denial.binding.retry_at_us)
    assert isinstance(await ledger.reserve(wish()), Admission)


async def test_of_2000_reserves_at_once_one_holds_the_probe_of_an_open_breaker(
    ledger: ScriptLedger, any_server: Server, pool: ProcessPoolExecutor
) -> None:
    await configure(ledger, LaneConfig(id="lane", breaker=Breaker(failures=1)))
    admission = await ledger.reserve(wish())
    assert isinstance(admission, Admission)
    await ledger.settle(used(admission.rid, outcome=Outcome.FAILURE, failed_lanes=1))
    move_to(any_server, NOW_US + 5 * SECOND)

    answers = ask_all(pool, [Crowd(url=any_server.url, number=number, count=250) for number in range(PROCESSES)])

    assert [answer.probe for answer in answers if isinstance(answer, Admission)] == [True]
    assert {answer.binding.reason for answer in answers if isinstance(answer, Denial)} == {Reason.PROBE_IN_FLIGHT}


async def test_a_reserve_repeated_by_8_processes_is_one_reservation(
    ledger: ScriptLedger, any_server: Server, pool: ProcessPoolExecutor
) -> None:
    await configure(ledger, lane("lane", window(LIMIT)))

    answers = ask_all(pool, [Crowd(url=any_server.url, number=0, count=50)] * PROCESSES)

    replayed = [answer.replayed for answer in answers if isinstance(answer, Admission)]
    assert (replayed.count(False), replayed.count(True)) == (50, 350)
    assert (await ledger.lanes(["lane"]))[0].in_flight == 50


def test_the_processes_are_eight(pool: ProcessPoolExecutor) -> None:
    assert len(set(pool.map(identity, range(PROCESSES)))) == PROCESSES
