"""What is read of the lanes between requests costs by what was written, and misses nothing."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence

import pytest

from apikeyrouter.domain.models.accounting import (
    Candidate,
    LaneConfig,
    LaneState,
    Limit,
    LimitKind,
    Metric,
    Outcome,
    ReserveRequest,
    Settlement,
)
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.serving import lane_reading
from apikeyrouter.serving.lane_reading import LaneReading

IDS = [f"k:{n:04}" for n in range(600)]
RPM = Limit(name="rpm", metric=Metric.REQUESTS, kind=LimitKind.FIXED, amount=1000, period_us=60_000_000)


class Counting(ScriptLedger):
    """Counts lanes that were asked for, and that came."""

    asked = came = 0

    async def lanes(self, ids: Sequence[str], *, since_seq: int = 0) -> list[LaneState]:
        """As ever."""
        found = await super().lanes(ids, since_seq=since_seq)
        self.asked, self.came = self.asked + len(ids), self.came + len(found)
        return found


@pytest.fixture
async def ledger(redis_url: str) -> AsyncIterator[Counting]:
    made = Counting(RedisEngine(redis_url))
    await made.open()
    await made.put(lanes=[LaneConfig(id=lane_id, limits=(RPM,)) for lane_id in IDS])
    yield made
    await made.close()


async def use(ledger: ScriptLedger, *lanes: str) -> None:
    for lane_id in lanes:
        request = ReserveRequest(rid=os.urandom(16), candidates=(Candidate(lanes=(lane_id,)),))
        await ledger.reserve(request)
        await ledger.settle(
            Settlement(rid=request.rid, input_tokens=1, output_tokens=1, cost_nanousd=0, outcome=Outcome.SUCCESS)
        )


async def read(reading: LaneReading, ids: Sequence[str] = IDS, restless: Sequence[str] = ()) -> set[str]:
    """What one tick reads."""
    lanes = await reading.read(ids)
    reading.note(lanes, lambda lane: lane.id in restless)
    return {lane.id for lane in lanes}


async def test_a_tick_in_which_nobody_wrote_reads_no_lane(ledger: Counting) -> None:
    await use(ledger, *IDS[:300])
    reading = LaneReading(ledger)
    assert await read(reading) == set(IDS[:300])
    asked = ledger.asked
    for _ in range(5):
        assert await read(reading) == set()
    assert ledger.asked == asked


async def test_what_was_written_is_read_and_nothing_else(ledger: Counting) -> None:
    await use(ledger, *IDS[:300])
    reading = LaneReading(ledger)
    await read(reading)
    await use(ledger, IDS[3], IDS[599])
    came = ledger.came
    assert await read(reading) == {IDS[3], IDS[599]}
    assert ledger.came == came + 2


async def test_of_very_many_lanes_each_is_seen_within_a_second(
    ledger: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_reading, "PAGE_SNAPSHOT", 16)
    reading = LaneReading(ledger)
    for _ in range(4):
        await read(reading)
    await use(ledger, IDS[0], IDS[300], IDS[599])
    seen: set[str] = set()
    for _ in range(4):
        seen |= await read(reading)
    assert seen == {IDS[0], IDS[300], IDS[599]}
    assert await read(reading) == set()


async def test_what_is_out_or_scarce_is_read_at_every_tick_and_what_ages_now_and_then(
    ledger: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    await use(ledger, *IDS[:5])
    reading = LaneReading(ledger)
    await read(reading, restless=IDS[:2])
    assert await read(reading, restless=IDS[:2]) == set(IDS[:2])
    assert await read(reading) == set(IDS[:2])
    assert await read(reading) == set()
    monkeypatch.setattr(lane_reading, "AGED_SECONDS", 0.0)
    assert await read(reading) == set(IDS[:5])
    monkeypatch.setattr(lane_reading, "AGED_PER_TICK", 2)
    assert [len(await read(reading)) for _ in range(3)] == [2, 2, 2]


async def test_other_lanes_come_into_use_and_only_they_are_read(ledger: Counting) -> None:
    await use(ledger, *IDS[:20])
    reading, first = LaneReading(ledger), IDS[10:]
    assert await read(reading, first) == set(IDS[10:20])
    assert await read(reading, IDS[5:]) == set(IDS[5:10])
    assert await read(reading, IDS[5:]) == set()
    assert await read(reading, []) == set()
    assert await read(reading, IDS) == set(IDS[:20])


async def test_after_the_store_forgot_all_is_read_again_and_so_is_what_was_lost_on_its_way(ledger: Counting) -> None:
    await use(ledger, *IDS[:3])
    reading = LaneReading(ledger)
    await read(reading)
    ledger.forgotten += 1
    assert await read(reading) == set(IDS[:3])
    reading.begin_anew()
    assert await read(reading) == set(IDS[:3])
    assert await read(reading) == set()


async def test_another_process_is_seen_and_so_is_a_write_between_two_pages(
    ledger: Counting, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_reading, "PAGE_SNAPSHOT", 100)
    other = ScriptLedger(RedisEngine(redis_url))
    await other.open()
    reading, seen = LaneReading(ledger), set[str]()
    await read(reading)

    async def write() -> None:
        for lane_id in IDS[::40]:
            await use(other, lane_id)

    writing = asyncio.create_task(write())
    while not writing.done():
        seen |= await read(reading)
    for _ in range(2):
        seen |= await read(reading)
    assert seen == set(IDS[::40])
    await other.close()
