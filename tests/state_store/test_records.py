"""One body of tests over what management keeps beside entities, in every store."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from apikeyrouter.infrastructure.state_store import records as limits
from apikeyrouter.infrastructure.state_store.memory_records import MemoryRecords
from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.mongo_records import MongoRecords
from apikeyrouter.infrastructure.state_store.mongo_store import MongoStateStore
from apikeyrouter.infrastructure.state_store.records import Records, records_for
from apikeyrouter.infrastructure.state_store.redis_records import RedisRecords
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from tests.mongo_servers import DATABASE, FLAVOURS, drop, ferretdb_running, mongo_running
from tests.servers import flavours

LONG = 3600
TAKEN_AT_ONCE = {"test_a_job_is_put_once_taken_by_one_and_ended_by_whom_it_was_taken"}
"""What FerretDB 1 cannot keep, as it reads and writes in two steps; so the store refuses it (test_mongo_store.py)."""


@pytest.fixture(scope="module")
def mongodb() -> Iterator[str]:
    with mongo_running() as url:
        yield url


@pytest.fixture(scope="module")
def ferretdb() -> Iterator[str]:
    with ferretdb_running() as url:
        yield url


@pytest.fixture(params=["memory", *FLAVOURS, *flavours()])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Records, Records]]:
    """The records of two processes on one store; of the memory's, twice the same."""
    if request.param == "memory":
        one: Records = records_for(InMemoryStateStore())
        other = one
        assert isinstance(one, MemoryRecords)
    elif request.param in FLAVOURS:
        url = request.getfixturevalue(request.param)
        if request.param == "ferretdb" and request.function.__name__ in TAKEN_AT_ONCE:
            pytest.skip("FerretDB 1 loses changes that are made at once")
        drop(url)
        one, other = (records_for(MongoStateStore(url, DATABASE)) for _ in range(2))
        assert isinstance(one, MongoRecords)
    else:
        server = request.getfixturevalue("servers")[request.param]
        server.flush()
        one, other = (records_for(RedisStateStore(redis_url=server.url)) for _ in range(2))
        assert isinstance(one, RedisRecords)
    yield one, other
    await one.close()
    await other.close()


async def test_a_turn_is_one_holders_at_a_time(pair: tuple[Records, Records]) -> None:
    inside, most = 0, 0

    async def go(records: Records) -> None:
        nonlocal inside, most
        async with records.turn("x"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    await asyncio.gather(*(go(records) for records in pair * 4))
    assert (inside, most) == (0, 1)


async def test_a_journal_is_read_newest_first_page_by_page_and_is_capped(pair: tuple[Records, Records]) -> None:
    one, other = pair
    for n in range(7):
        await (one, other)[n % 2].append("diary", {"n": n}, kept=5)
    await one.append("another", {"n": 99}, kept=5)
    first = await other.entries("diary", limit=3)
    rest = await one.entries("diary", before=first[-1][0], limit=10)
    assert [entry["n"] for _, entry in (*first, *rest)] == [6, 5, 4, 3, 2]
    assert await one.entries("nothing") == []


async def test_a_name_is_claimed_once_and_memos_are_everybodys(pair: tuple[Records, Records]) -> None:
    one, other = pair
    claims = await asyncio.gather(*(records.claim("x", seconds=LONG) for records in pair * 3))
    await one.remember("x", {"a": 1}, seconds=LONG)
    await one.remember("x", {"a": 2}, seconds=LONG)
    assert sum(claims) == 1
    assert await other.claim("y", seconds=LONG)
    assert await other.recall("x") == {"a": 2}
    assert await other.recall("y") is None


async def test_counts_of_all_add_up(pair: tuple[Records, Records]) -> None:
    one, other = pair
    await one.add_counts("day", {"a": 1, "b.c$ {}": 2})
    await other.add_counts("day", {"a": 5})
    await other.add_counts("day", {})
    assert await one.all_counts("day") == {"a": 6, "b.c$ {}": 2}
    assert await one.all_counts("night") == {}


async def test_a_job_is_put_once_taken_by_one_and_ended_by_whom_it_was_taken(pair: tuple[Records, Records]) -> None:
    one, other = pair
    put = [await records.enqueue("q", "a", {"n": 1}, once_seconds=LONG) for records in pair]
    await one.enqueue("q", "b", {"n": 2}, once_seconds=LONG)
    both = await asyncio.gather(*(records.take("q", count=5, seconds=LONG) for records in pair))
    taken = sorted((job for found in both for job in found), key=lambda job: job.name)
    nothing = await other.take("q", count=5, seconds=LONG)
    later = await one.settle("q", taken[0], again={"n": 7}, delay=0)
    over = await other.settle("q", taken[1], again=None)
    repeated = await other.settle("q", taken[1], again=None)
    again = await other.take("q", count=5, seconds=LONG)
    assert put == [True, False]
    assert [(job.name, job.job) for job in taken] == [("a", {"n": 1}), ("b", {"n": 2})]
    assert (nothing, later, over, repeated) == ([], True, True, False)
    assert [(job.name, job.job) for job in again] == [("a", {"n": 7})]
    assert await one.enqueue("q", "b", {"n": 3}, once_seconds=LONG) is False


async def test_what_is_not_ended_in_time_is_the_next_ones(pair: tuple[Records, Records]) -> None:
    one, other = pair
    await one.enqueue("q", "a", {}, once_seconds=LONG)
    (dead,) = await one.take("q", count=1, seconds=0)
    (mine,) = await other.take("q", count=1, seconds=LONG)
    late = await one.settle("q", dead, again=None)
    waiting = await one.waiting("q", limit=10)
    assert (dead.name, late) == (mine.name, False)
    assert [(found.name, found.due_us) for found in waiting] == [("a", mine.claim)]
    assert await other.settle("q", mine, again={}, delay=LONG)
    assert await other.take("q", count=1, seconds=LONG) == []
    assert [found.name for found in await other.waiting("q", limit=10)] == ["a"]


async def test_a_queue_has_an_end(pair: tuple[Records, Records], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("memory_records", "redis_records", "mongo_records"):
        monkeypatch.setattr(f"apikeyrouter.infrastructure.state_store.{module}.QUEUE_LENGTH_MAX", 2)
    one, other = pair
    put = [await (one, other)[n % 2].enqueue("q", str(n), {}, once_seconds=LONG) for n in range(3)]
    assert put == [True, True, None]
    assert limits.QUEUE_LENGTH_MAX == 10_000
