"""A cell is one hash and requests come packed: names that mislead, numbers that do not fit, keys that are lost."""

from collections.abc import AsyncIterator

import pytest

from apikeyrouter.domain.models.accounting import Candidate, ReserveRequest, Result, check_id
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.engine import Engine
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from tests.ledger.cells import VirtualRedis, Witnessed, ledger_over, local_engine
from tests.ledger.histories import Offer, Wish, doubles
from tests.ledger.support import (
    HOUR,
    MINUTE,
    SECOND,
    Clock,
    admitted,
    budget,
    cell_key,
    cost,
    denied,
    in_flight,
    lane,
    local_cell,
    used,
    window,
    wish,
)
from tests.servers import Server

NAMES = ("\0", "a\0b", ":", "l:lane", "s:", "é" * 100, "x" * 200, "-1", "%d+", " ", "\r", "\u2028")
RIDS = (b"\0", b"\n", b"l:lane", b"s:budget", b"\nvirtual_now", b"\xff" * 200, b"r:", b"-inf", b"(1", b"XX")
CHARGE = (1.0, 1.0, 2.0, 0.0, 0.0)


@pytest.fixture(params=["LuaJIT", "Lua 5.1", "server"])
async def any_engine(request: pytest.FixtureRequest, any_server: Server, clock: Clock) -> AsyncIterator[Engine]:
    """The scripts wherever they run."""
    engine: Engine = local_engine(clock, jit=request.param == "LuaJIT")
    if request.param == "server":
        engine = VirtualRedis(any_server.url, clock)
    await engine.open()
    yield engine
    await engine.close()


@pytest.fixture
async def cell(any_engine: Engine, clock: Clock) -> ScriptLedger:
    """An open cell, every reply of which is held against the oracle."""
    ledger = ledger_over(Witnessed(any_engine, clock))
    await ledger.open()
    return ledger


async def test_lanes_and_scopes_of_any_name_are_told_apart_in_a_text_of_many(cell: ScriptLedger) -> None:
    await cell.put(lanes=[lane("room"), *(lane(name, window(1)) for name in NAMES)], scopes=[budget(n) for n in NAMES])
    for name in NAMES:
        admitted(await cell.reserve(wish(name)))
    full = tuple(Candidate(lanes=(name,), scopes=(name,)) for name in NAMES)
    answer = denied(await cell.reserve(ReserveRequest(rid=b"denied", candidates=full)))
    assert tuple(loss.where for loss in answer.losses) == NAMES
    last = Candidate(lanes=("room",), scopes=NAMES[:4], charge=cost(2))
    taken = admitted(await cell.reserve(ReserveRequest(rid=b"taken", candidates=(*full, last))))
    assert taken.index == len(NAMES)
    await cell.settle(used(b"taken", cost=3))
    assert [state.settled for state in await cell.scopes(NAMES[:4])] == [3] * 4


async def test_a_reservation_is_never_taken_for_what_its_id_looks_like(cell: ScriptLedger, clock: Clock) -> None:
    await cell.put(lanes=[lane("lane", in_flight(len(RIDS)))], scopes=[budget("budget")])
    for rid in RIDS:
        assert not admitted(await cell.reserve(wish(rid=rid, scopes=("budget",), charge=cost(1)))).replayed
    assert {record.rid for record in await cell.reservations()} == set(RIDS)
    assert await cell.renew(RIDS, lease_us=HOUR) == []
    ends = [answer.result for answer in await cell.settle_many([used(rid, cost=2) for rid in (*RIDS, *RIDS)])]
    assert ends == [Result.OK] * len(RIDS) + [Result.REPLAYED] * len(RIDS)
    await cell.acknowledge(RIDS)
    clock.advance(HOUR)
    await cell.sweep()
    (state,) = await cell.scopes(["budget"])
    assert (state.settled, state.held) == (2 * len(RIDS), 0)
    answers = await cell.settle_many([used(rid, cost=2) for rid in RIDS])
    assert {answer.result for answer in answers} == {Result.UNMATCHED}


@pytest.mark.parametrize("number", [0, 2, 2**32 + 1, 858_993_460, 10**30, 10**400])
async def test_a_charge_that_the_request_does_not_have_is_refused(any_engine: Engine, number: int) -> None:
    await any_engine.run("open", [1])
    await any_engine.run("record", ["l:cools", MINUTE])
    asked = Wish(charges=(CHARGE,), offers=(Offer(("cools",)), Offer(("other",), charge=number)))
    assert (await any_engine.run("reserve", asked.reserve().args))[0] == Code.BAD_ARGUMENT


@pytest.mark.parametrize("count", [2, 1_025, 2**53 - 1])
async def test_an_entry_that_says_more_numbers_than_it_has_is_refused_at_once(any_engine: Engine, count: int) -> None:
    await any_engine.run("open", [1])
    few = [0] * min(count - 1, 1_500)
    assert (await any_engine.run("configure", ["put", 0, "l:lane", count, *few]))[0] == Code.BAD_ARGUMENT


async def test_an_entry_of_more_numbers_than_a_record_may_have_is_refused(any_engine: Engine) -> None:
    await any_engine.run("open", [1])
    assert (await any_engine.run("configure", ["put", 0, "l:lane", 1_025, *[0] * 1_025]))[0] == Code.BAD_ARGUMENT


@pytest.mark.parametrize("words", [[b""], [doubles(1, 1, 1, 1, 0, float("nan"))], [doubles(1, 1, 1, 1, 0, 0), b"r:2"]])
async def test_a_settlement_that_is_not_six_integers_is_refused(any_engine: Engine, words: list[bytes]) -> None:
    await any_engine.run("open", [1])
    assert (await any_engine.run("settle", [b"r:1", *words]))[0] == Code.BAD_ARGUMENT


def test_a_name_that_is_no_text_is_refused_as_any_other_bad_name() -> None:
    with pytest.raises(LedgerConfigError, match="one line"):
        check_id("\ud800", what="scope")


async def test_a_cell_that_is_made_anew_begins_without_the_leases_of_the_one_before(
    any_server: Server, clock: Clock
) -> None:
    """Somebody deletes L alone: leases, suspense and tombstones without a record would stop every reserve for ever."""
    server = VirtualRedis(any_server.url, clock)
    cell = ledger_over(server)
    await cell.open()
    config = {"lanes": [lane("lane", in_flight(1))], "scopes": [budget()]}
    await cell.put(**config)  # type: ignore[arg-type]
    await cell.reserve(wish(rid=b"suspended", scopes=("budget",), charge=cost(1), lease_us=SECOND))
    clock.advance(MINUTE)
    await cell.sweep()
    await cell.reserve(wish(rid=b"open", scopes=("budget",), charge=cost(1), lease_us=SECOND))
    server.client.delete(cell_key("L"))
    await cell.open()
    await cell.put(**config)  # type: ignore[arg-type]
    again = wish(rid=b"suspended", scopes=("budget",), charge=cost(1), lease_us=SECOND)
    assert (await cell.reassert(again, index=0)).result is Result.OK
    clock.advance(2 * HOUR)
    admitted(await cell.reserve(wish()))
    while await cell.sweep():
        pass
    assert await cell.audit(lanes=["lane"], scopes=["budget"]) == []
    await server.close()


async def test_a_cell_holds_no_more_fields_after_many_requests_than_after_some() -> None:
    cell = await local_cell(lane(), budget(limit=10**9))
    sizes = set[int]()
    for _ in range(4):
        for _ in range(10):
            rids = [(await cell.admit(wish(scopes=("budget",), charge=cost(1)))).rid for _ in range(32)]
            await cell.settle_many([used(rid, cost=1) for rid in rids])
            await cell.acknowledge(rids)
            cell.time.advance(30 * SECOND)
        sizes.add(len(cell.image()["L"]))
        assert len(cell.image()["G"]) == len(cell.image()["L"]) - 3
    assert max(sizes) < 200
