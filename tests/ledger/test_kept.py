"""Records that stay in memory between calls: whoever else wrote, brought back or broke something is seen."""

import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import cast

import pytest

from apikeyrouter.domain.models.system_error import LedgerProtocolError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.scripts import Library
from tests.ledger.cells import VirtualRedis, Witnessed, ledger_over
from tests.ledger.support import (
    DAY,
    SECOND,
    Clock,
    admitted,
    budget,
    cell_key,
    cost,
    denied,
    in_flight,
    lane,
    used,
    window,
    wish,
)
from tests.servers import Server, running

LIMIT = 10
MEGABYTE = 1 << 20
WRITER = 64
"""Where in the cell's own field its writer is told."""


@pytest.fixture(scope="module")
def other_server() -> Iterator[Server]:
    """A second server: what it keeps in memory is its own."""
    with running("valkey") as server:
        yield server


@pytest.fixture
async def engine_of_server(any_server: Server, clock: Clock) -> AsyncIterator[VirtualRedis]:
    made = VirtualRedis(any_server.url, clock)
    await made.open()
    yield made
    await made.close()


def another_copy(library: Library) -> Library:
    """The same scripts as another version's library: its functions, and what they keep, are its own."""
    name = f"{library.name}b"
    scripts = {
        key: replace(script, function=script.function.replace(library.name, name))
        for key, script in library.scripts.items()
    }
    return Library(name, library.text.replace(library.name, name), scripts)


async def test_workers_of_two_versions_see_each_others_writes(
    engine_of_server: VirtualRedis, any_server: Server, clock: Clock
) -> None:
    other = VirtualRedis(any_server.url, clock)
    other.engine._library = another_copy(other.engine._library)
    await other.open()
    witnessed = [Witnessed(engine_of_server, clock)]
    witnessed.append(Witnessed(other, clock, witnessed[0].oracle))
    ledgers = [ledger_over(engine) for engine in witnessed]
    await ledgers[0].open()
    await ledgers[1].open()
    await ledgers[0].put(lanes=[lane("lane", window(LIMIT))], scopes=[budget("budget", 3 * LIMIT)])
    for turn in range(LIMIT):
        rid = admitted(await ledgers[turn % 2].reserve(wish(scopes=("budget",), charge=cost(3)))).rid
        await ledgers[turn // 2 % 2].settle(used(rid, cost=2))
    for ledger in ledgers:
        denied(await ledger.reserve(wish()))
    assert await ledgers[0].audit(lanes=["lane"], scopes=["budget"]) == []
    await other.close()


async def test_a_state_that_was_brought_back_is_the_one_that_counts(
    engine_of_server: VirtualRedis, clock: Clock
) -> None:
    ledger = await opened(engine_of_server)
    client, key = engine_of_server.client, cell_key("L")
    admitted(await ledger.reserve(wish(lease_us=DAY)))
    early = cast("bytes", client.dump(key))
    for _ in range(LIMIT - 1):
        admitted(await ledger.reserve(wish(lease_us=DAY)))
    late = cast("bytes", client.dump(key))
    client.restore(key, 0, early, replace=True)
    engine_of_server.tick()
    admitted(await ledger.reserve(wish(lease_us=DAY)))
    client.restore(key, 0, late, replace=True)
    engine_of_server.tick()
    denied(await ledger.reserve(wish()))


async def test_a_history_of_another_server_with_the_same_number_and_time_is_seen(
    engine_of_server: VirtualRedis, other_server: Server, clock: Clock
) -> None:
    """As after a failover to a replica and back: only the writer tells the two from each other."""
    other_server.flush()
    there = VirtualRedis(other_server.url, Clock(clock.now_us - SECOND))
    await there.open()
    for engine in (engine_of_server, there):
        for _ in range(2):  # one makes the cell, the other is the first that finds one
            await engine.run("open", [1])
    there._clock.now_us = clock.now_us
    ledgers = [ledger_over(engine_of_server), ledger_over(there)]
    taken = (1, LIMIT - 1)
    for ledger, tokens in zip(ledgers, taken, strict=True):
        await ledger.put(lanes=[lane("lane", window(LIMIT, name="tpm"))])
        for rid, share in ((b"the same", tokens), (b"again", 0), (b"and again", 0)):  # what is written thrice is kept
            admitted(await ledger.reserve(wish(charge=cost(1, tokens=share), rid=rid)))
    here, key = engine_of_server.client, cell_key("L")
    cells = [cast("bytes", client.hget(key, "")) for client in (here, there.client)]
    assert cells[0][:WRITER] == cells[1][:WRITER], "they differ in their writer alone"
    fields = cast("dict[bytes, bytes]", there.client.hgetall(key))
    here.hset(key, mapping=fields)  # type: ignore[arg-type]
    denied(await ledgers[0].reserve(wish(charge=cost(1, tokens=LIMIT - 2))))
    await there.close()


async def test_what_a_call_had_begun_when_it_failed_is_not_used(engine_of_server: VirtualRedis, clock: Clock) -> None:
    ledger = await opened(engine_of_server, in_flight(LIMIT))
    await ledger.put(scopes=[budget()])
    asked = [wish(lease_us=DAY, scopes=("budget",), charge=cost(1)) for _ in range(3)]
    rids = [admitted(await ledger.reserve(request)).rid for request in asked]
    key, field = cell_key("L"), b"r:" + rids[1]
    whole = cast("bytes", engine_of_server.client.hget(key, field))
    many_marks = struct.pack("<d", 50)  # more than it has: its scopes are looked for behind its end
    engine_of_server.client.hset(key, field, whole[:80] + many_marks + whole[88:])
    for _ in range(3):
        with pytest.raises(LedgerProtocolError):
            await ledger.settle_many([used(rids[0]), used(rids[1])])
    engine_of_server.client.hset(key, field, whole)
    await ledger.settle(used(rids[0]))
    assert await ledger.audit(lanes=["lane"], scopes=["budget"]) == []
    (state,) = await ledger.lanes(["lane"])
    assert state.in_flight == 2


async def test_a_denial_that_came_at_a_later_time_leaves_the_time_as_it_was(
    engine_of_server: VirtualRedis, clock: Clock
) -> None:
    """The clock steps back behind a denial, which is not written: its window is not the one that counts."""
    ledger = ledger_over(Witnessed(engine_of_server, clock))
    await ledger.open()
    await ledger.put(lanes=[lane("lane", window(LIMIT), window(1, DAY, name="rpd"))])
    admitted(await ledger.reserve(wish(lease_us=DAY)))
    clock.advance(120 * SECOND)
    denied(await ledger.reserve(wish()))
    clock.advance(-119 * SECOND)
    denied(await ledger.reserve(wish()))
    await ledger.put(lanes=[lane("lane", window(LIMIT), window(2 * LIMIT, DAY, name="rpd"))])
    for _ in range(LIMIT - 1):
        admitted(await ledger.reserve(wish()))
    denied(await ledger.reserve(wish()))


async def test_what_is_kept_is_bounded(engine_of_server: VirtualRedis, clock: Clock) -> None:
    ledger = await opened(engine_of_server)
    client = engine_of_server.client

    def used_bytes() -> int:
        return int(client.info("memory")["used_memory_vm_functions"])

    sizes = []
    for turn in range(4):  # each more than are kept
        for number in range(0, 9_000, 6):
            names = [f"{turn}/{number + at}" for at in range(6)]
            await ledger.cancel(admitted(await ledger.reserve(wish(*names))).rid)
        sizes.append(used_bytes())
    assert max(sizes[1:]) < 2 * sizes[0] + 4 * MEGABYTE, sizes
    assert max(sizes) < 40 * MEGABYTE, sizes


async def opened(engine: VirtualRedis, *limits: object) -> ScriptLedger:
    """A ledger over that server with one lane."""
    ledger = ledger_over(engine)
    await ledger.open()
    await ledger.put(lanes=[lane("lane", *(limits or (window(LIMIT),)))])  # type: ignore[arg-type]
    return ledger
