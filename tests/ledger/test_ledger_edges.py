"""The ledger where it refuses, waits, forgets and changes: arguments, foreign bytes, flushes, configuration, rules."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from apikeyrouter.domain.models.accounting import (
    Admission,
    Candidate,
    Period,
    Reason,
    ReserveRequest,
    Result,
    RetryKind,
    State,
)
from apikeyrouter.domain.models.system_error import (
    LedgerConfigError,
    LedgerProtocolError,
    LedgerUnavailableError,
    StaleConfigError,
)
from apikeyrouter.infrastructure.ledger.arguments import reserve_args, rid_field
from apikeyrouter.infrastructure.ledger.calendars import calendar_number
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.engine import Argument
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.ledger.support import (
    HOUR,
    MINUTE,
    NAMESPACE,
    SECOND,
    bucket,
    budget,
    calendar,
    cell_key,
    configure,
    cost,
    in_flight,
    lane,
    local_cell,
    new_rid,
    used,
    whole_image,
    window,
    wish,
)
from tests.servers import Server, free_port, running


@pytest_asyncio.fixture
async def real(valkey_server: Server) -> AsyncIterator[ScriptLedger]:
    valkey_server.flush()
    ledger = ledger_over(valkey_server)
    await ledger.open()
    yield ledger
    await ledger.close()
    valkey_server.flush()


def ledger_over(server: Server) -> ScriptLedger:
    return ScriptLedger(RedisEngine(server.url, namespace=NAMESPACE, timeout_s=30))


async def the_scope(ledger: ScriptLedger, id: str = "budget") -> tuple[int, int, int]:
    """(settled, held, suspense) of a budget."""
    (state,) = await ledger.scopes([id])
    return state.settled, state.held, state.suspense


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: msgspec.structs.replace(wish(), candidates=()),
        lambda: msgspec.structs.replace(wish(), candidates=tuple(wish().candidates) * 65),
        lambda: wish(scopes=tuple(f"scope {number}" for number in range(9))),
        lambda: wish("a", "b", "c", "d", "e", "f", "g"),
        lambda: msgspec.structs.replace(wish(), candidates=(Candidate(lanes=()),)),
        lambda: msgspec.structs.replace(wish(), candidates=(Candidate(lanes=("a",), scopes=("s",) * 5),)),
        lambda: wish(scopes=("nobody declared this",)),
        lambda: wish(charge=cost(-2)),
        lambda: wish(charge=cost(0, tokens=-1)),
        lambda: wish(charge=cost(2**53)),
        lambda: wish(lease_us=-1),
        lambda: wish(weight=0),
    ],
)
async def test_a_reserve_that_cannot_be_counted_is_refused_and_writes_nothing(
    request_of: Callable[[], ReserveRequest],
) -> None:
    cell = await local_cell(lane("lane", bucket(10)), budget())
    before = cell.image()
    with pytest.raises(LedgerConfigError):
        await cell.reserve(request_of())
    assert cell.image() == before


@pytest.mark.parametrize("amount", [1.5, -2.0, float("nan"), float("inf"), 1e300, 2.0**53])
@pytest.mark.parametrize("engine", ["local", "server"])
async def test_a_script_refuses_itself_what_no_counter_holds_exactly(
    amount: float, engine: str, real: ScriptLedger
) -> None:
    ledger = await local_cell() if engine == "local" else real
    await configure(ledger, lane("lane", bucket(10, name="tpm")), budget())
    args = reserve_args(wish(scopes=("budget",)))
    numbers = args[2]
    assert isinstance(numbers, bytes)
    for position in range(0, len(numbers), 8):
        args[2] = numbers[:position] + struct.pack("<d", amount) + numbers[position + 8 :]
        reply = await ledger.engine.run("reserve", args)
        assert reply[0] == Code.BAD_ARGUMENT
    for wrong in (b"", numbers[:-1], numbers[:-8], numbers + b"\0"):
        args[2] = wrong
        assert (await ledger.engine.run("reserve", args))[0] == Code.BAD_ARGUMENT
    assert await ledger.reservations() == []


@pytest.mark.parametrize("tokens", [(-1, 0), (0, -1), (2**31 + 1, 0), (0, 2**31 + 1)])
async def test_a_settlement_of_impossible_counts_is_refused(tokens: tuple[int, int]) -> None:
    cell = await local_cell(lane())
    admission = await cell.admit(wish())
    with pytest.raises(LedgerConfigError, match="token counts"):
        await cell.settle(used(admission.rid, tokens=tokens[0], output=tokens[1]))
    assert len(await cell.reservations()) == 1


async def test_pages_of_every_size_arrive_whole() -> None:
    cell = await local_cell(lane("lane", in_flight(500)), budget(limit=10**9))
    rids = [(await cell.admit(wish(scopes=("budget",), charge=cost(1)))).rid for _ in range(300)]
    assert await cell.renew([*rids, new_rid()], lease_us=MINUTE) != []
    answers = await cell.settle_many([used(rid, cost=1) for rid in rids])
    assert {answer.result for answer in answers} == {Result.OK}
    await cell.acknowledge(rids)
    assert await the_scope(cell) == (300, 0, 0)


# --- foreign bytes, undeclared keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["C0", "L", "D", "G"])
async def test_a_key_of_another_type_is_an_error_and_nothing_is_written(
    structure: str, real: ScriptLedger, valkey_server: Server
) -> None:
    await configure(real, lane("lane", bucket(10)), budget())
    admission = await real.reserve(wish(scopes=("budget",), charge=cost(1)))
    assert isinstance(admission, Admission)
    with valkey_server.client() as client:
        client.delete(cell_key(structure))
        client.set(cell_key(structure), "a string")
        before = whole_image(client)
        with pytest.raises((LedgerProtocolError, LedgerConfigError)):
            if structure == "G":
                await real.cancel(new_rid())
            else:
                await real.reserve(wish("fresh", scopes=("budget",), charge=cost(1)))
        assert whole_image(client) == before


@pytest.mark.parametrize("field", ["", "l:lane", "s:budget", None])
async def test_garbage_in_a_record_is_an_error_and_nothing_is_written(
    field: str | None, real: ScriptLedger, valkey_server: Server
) -> None:
    await configure(real, lane("lane", bucket(10)), budget())
    admission = await real.reserve(wish(scopes=("budget",), charge=cost(1)))
    assert isinstance(admission, Admission)
    with valkey_server.client() as client:
        client.hset(cell_key("L"), b"r:" + admission.rid if field is None else field, b"garbage")
        client.function_flush()  # what the library has kept of the record would do instead
        before = whole_image(client)
        with pytest.raises(LedgerProtocolError):
            if field is None:
                await real.settle(used(admission.rid))
            else:
                await real.reserve(wish(scopes=("budget",), charge=cost(1)))
        assert whole_image(client) == before


async def test_a_cell_of_another_schema_is_refused(real: ScriptLedger, valkey_server: Server) -> None:
    with valkey_server.client() as client:
        packed = client.hget(cell_key("L"), "")
        assert isinstance(packed, bytes)
        client.hset(cell_key("L"), "", struct.pack("<d", 2) + packed[8:])
    with pytest.raises(LedgerProtocolError, match="another version"):
        await real.reserve(wish())


async def test_no_script_touches_a_key_that_it_does_not_declare_on_a_cluster_node() -> None:
    with running("valkey", options=("--cluster-enabled", "yes")) as server:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while "ok" not in str(client.execute_command("CLUSTER", "INFO")).partition("cluster_state:")[2][:4]:
                await asyncio.sleep(0.01)
        ledger = ledger_over(server)
        await ledger.open()
        await every_transition(ledger)
        await ledger.close()


async def every_transition(ledger: ScriptLedger) -> None:
    """Each script once, with a swept lease among them."""
    lanes, scopes = [lane("lane", bucket(1000), in_flight(50), fair=True)], [budget(limit=10**6)]
    await configure(ledger, *lanes, *scopes)
    stamp = await ledger.replace(lanes=lanes, scopes=scopes, expected_version=ledger.stamp.config_version)
    asked = wish(scopes=("budget",), charge=cost(10), principal="tenant", pool="pool")
    admissions = [
        await ledger.reserve(msgspec.structs.replace(asked, rid=new_rid(), lease_us=lease))
        for lease in (MINUTE, MINUTE, MINUTE, 0)
    ]
    rids = [admission.rid for admission in admissions if isinstance(admission, Admission)]
    await ledger.reserve(asked)
    await ledger.settle(used(rids[0], cost=5))
    await ledger.release(rids[1], sent=False)
    await ledger.cancel(rids[2])
    await ledger.reassert(msgspec.structs.replace(asked, rid=new_rid()), index=0)
    await ledger.renew([asked.rid], lease_us=MINUTE)
    await ledger.acknowledge(rids)
    await ledger.sweep()
    await ledger.record("lane", blocked_for_us=1)
    await ledger.suspect_clock(False)
    assert await ledger.audit(lanes=["lane"], scopes=["budget"]) == []
    assert ledger.stamp.config_version == stamp.config_version


# --- the store forgets ------------------------------------------------------------------------------------------------


async def test_scripts_that_a_server_lost_in_mid_run_are_loaded_again(
    real: ScriptLedger, valkey_server: Server
) -> None:
    await configure(real, lane("lane", in_flight(1000)))
    with valkey_server.client() as client:
        for _ in range(20):
            answers = asyncio.gather(*(real.reserve(wish()) for _ in range(10)))
            client.function_flush()
            assert all(isinstance(answer, Admission) for answer in await answers)
    assert (await real.lanes(["lane"]))[0].in_flight == 200


async def test_a_flushed_store_is_unavailable_and_counted_as_forgotten(
    real: ScriptLedger, valkey_server: Server
) -> None:
    await configure(real, lane(), budget())
    valkey_server.flush()
    with pytest.raises(LedgerUnavailableError, match="the cell is gone"):
        await real.reserve(wish(scopes=("budget",), charge=cost(1)))
    assert real.forgotten > 0


async def test_a_seq_that_goes_back_is_counted_as_forgotten(real: ScriptLedger, valkey_server: Server) -> None:
    await configure(real, lane())
    with valkey_server.client() as client:
        before = client.hget(cell_key("L"), "")
        assert isinstance(before, bytes)
        await real.reserve(wish())
        await real.reserve(wish())
        assert real.forgotten == 0
        client.hset(cell_key("L"), "", before)
    await real.reserve(wish())
    assert real.forgotten == 1


async def test_every_write_moves_the_seq_and_no_read_does() -> None:
    cell = await local_cell(lane("lane", in_flight(1)))
    seqs = [cell.stamp.seq]
    admission = await cell.admit(wish())
    seqs.append(admission.stamp.seq)
    denial = await cell.deny(wish())
    assert denial.stamp.seq == admission.stamp.seq
    await cell.lanes(["lane"])
    for answer in (await cell.settle(used(admission.rid)), await cell.settle(used(admission.rid))):
        seqs.append(answer.stamp.seq)
    assert [later - earlier for earlier, later in pairwise(seqs)] == [1, 1, 0]


async def test_a_server_that_cannot_be_reached_admits_nothing() -> None:
    ledger = ScriptLedger(RedisEngine(f"redis://127.0.0.1:{free_port()}/0", namespace=NAMESPACE))
    with pytest.raises(LedgerUnavailableError):
        await ledger.reserve(wish())
    await ledger.close()


async def test_an_open_reservation_is_booked_again_after_a_flush_and_counts() -> None:
    cell = await local_cell(lane("lane", in_flight(1)), budget(limit=10))
    request = wish(scopes=("budget",), charge=cost(10))
    admission = await cell.admit(request)
    cell.engine.flush()
    await cell.open()
    await configure(cell, lane("lane", in_flight(1)), budget(limit=10))
    assert (await cell.reassert(request, index=admission.index)).state is State.OPEN
    assert (await cell.reassert(request, index=admission.index)).result is Result.REPLAYED
    assert await the_scope(cell) == (0, 10, 0)
    await cell.deny(wish())


# --- time ---------------------------------------------------------------------------------------------------------


async def test_time_never_runs_backwards_inside_a_cell() -> None:
    cell = await local_cell(lane("lane", window(1)))
    cell.time.advance(MINUTE)
    now = (await cell.admit(wish())).stamp.now_us
    cell.time.advance(-HOUR)
    denial = await cell.deny(wish())
    assert denial.stamp.now_us == now
    assert denial.binding.retry_at_us == now + MINUTE


async def test_while_the_clock_is_in_doubt_hard_budgets_refuse_and_soft_ones_do_not() -> None:
    cell = await local_cell(lane(), budget(), budget("soft", hard=False))
    await cell.suspect_clock(True)
    denial = await cell.deny(wish(scopes=("budget",), charge=cost(1)))
    assert (denial.binding.reason, denial.binding.retry_kind) == (Reason.CLOCK_SUSPECT, RetryKind.ESTIMATED)
    await cell.admit(wish(scopes=("soft",), charge=cost(1)))
    await cell.suspect_clock(False)
    await cell.admit(wish(scopes=("budget",), charge=cost(1)))


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "Europe/London", "Africa/Cairo"])
async def test_a_calendar_of_any_number_is_found_again_by_its_cell(zone: str) -> None:
    for period in (Period.HOURLY, Period.DAILY, Period.WEEKLY, Period.MONTHLY):
        cell = await local_cell(lane("lane", calendar(1, period, timezone=zone)))
        await cell.admit(wish())
        assert (await cell.deny(wish())).binding.retry_kind is RetryKind.EXACT
    assert max(calendar_number(Period.DAILY, name) for name in ("UTC", zone)) < 2**48


async def test_a_reserve_ends_at_most_four_leases_and_the_next_one_the_rest() -> None:
    cell = await local_cell(lane("lane", in_flight(100)))
    for _ in range(10):
        await cell.admit(wish(lease_us=SECOND))
    cell.time.advance(2 * SECOND)
    left = []
    for _ in range(3):
        await cell.admit(wish(lease_us=HOUR))
        left.append(len([record for record in await cell.reservations() if record.deadline_us <= cell.time.now_us]))
    assert left == [6, 2, 0]


# --- configuration --------------------------------------------------------------------------------------------------


async def test_a_put_that_changes_nothing_makes_no_new_version() -> None:
    cell = await local_cell(lane("lane", bucket(10)), budget())
    version, image = cell.stamp.config_version, cell.image()
    await configure(cell, lane("lane", bucket(10)), budget())
    assert (cell.stamp.config_version, cell.image()) == (version, image)
    await configure(cell, lane("lane", bucket(11)))
    assert cell.stamp.config_version == version + 1


async def test_a_replacement_is_seen_old_or_new_and_never_half() -> None:
    old = [lane(f"lane {number}", in_flight(1)) for number in range(200)]
    new = [lane(f"lane {number}", in_flight(2)) for number in range(200)]
    cell = await local_cell(*old)
    seen: list[set[int]] = []
    run = cell.engine.run

    async def between(name: str, args: Sequence[Argument], *, pool: str = "") -> Any:
        if name == "configure":
            seen.append(await capacities(run))
        reply = await run(name, args, pool=pool)
        if name == "configure":
            seen.append(await capacities(run))
        return reply

    cell.engine.run = between  # type: ignore[method-assign]
    await cell.replace(lanes=new, scopes=[], expected_version=cell.stamp.config_version)
    assert {frozenset(found) for found in seen} == {frozenset({1}), frozenset({2})}
    assert seen[-1] == {2}


async def capacities(run: Any) -> set[int]:
    """What two lanes far apart in the configuration allow now: how many of three reserves each admits."""
    found = set()
    for number in (0, 199):
        rids = [new_rid() for _ in range(3)]
        replies = [await run("reserve", reserve_args(wish(f"lane {number}", rid=rid))) for rid in rids]
        for rid in rids:
            await run("cancel", [rid_field(rid)])
        found.add(sum(reply[0] == Code.ADMITTED for reply in replies))
    return found


async def test_of_two_replacements_at_once_one_wins_whole() -> None:
    cell = await local_cell(lane("lane", in_flight(1)))
    version = cell.stamp.config_version
    await cell.replace(lanes=[lane("lane", in_flight(2))], scopes=[], expected_version=version)
    with pytest.raises(StaleConfigError):
        await cell.replace(lanes=[lane("lane", in_flight(3))], scopes=[], expected_version=version)
    await cell.admit(wish())
    await cell.admit(wish())
    await cell.deny(wish())


async def test_a_reserve_made_under_another_configuration_is_refused() -> None:
    cell = await local_cell(lane())
    version = cell.stamp.config_version
    await cell.admit(wish(config_version=version))
    await configure(cell, lane("lane", bucket(1)))
    with pytest.raises(StaleConfigError):
        await cell.reserve(wish(config_version=version))
    await cell.admit(wish(config_version=version + 1))


@pytest.mark.parametrize("changed", [bucket(20, name="tpm"), window(20, name="tpm")], ids=["rate", "kind"])
async def test_a_limit_that_is_changed_under_load_keeps_what_was_used(changed: Any) -> None:
    cell = await local_cell(lane("lane", bucket(10, name="tpm")))
    await cell.admit(wish(charge=cost(0, tokens=10)))
    await configure(cell, lane("lane", changed))
    await cell.deny(wish(charge=cost(0, tokens=11)))
    await cell.admit(wish(charge=cost(0, tokens=10)))


async def test_a_budget_that_is_lowered_below_what_is_spent_admits_nothing_and_forgets_nothing() -> None:
    cell = await local_cell(lane(), budget(limit=100))
    admission = await cell.admit(wish(scopes=("budget",), charge=cost(80)))
    await cell.settle(used(admission.rid, cost=80))
    await configure(cell, budget(limit=50))
    assert (await cell.deny(wish(scopes=("budget",), charge=cost(1)))).binding.reason is Reason.BUDGET
    await configure(cell, budget(limit=100))
    await cell.admit(wish(scopes=("budget",), charge=cost(20)))
    await cell.deny(wish(scopes=("budget",), charge=cost(1)))


# --- other versions, other users, first moments --------------------------------------------------------------------


async def test_lanes_without_a_cell_are_an_older_versions_and_are_left_alone(valkey_server: Server) -> None:
    valkey_server.flush()
    with valkey_server.client() as client:
        client.hset(cell_key("L"), "l:lane", b"\0" * 448)
        before = whole_image(client)
        ledger = ledger_over(valkey_server)
        with pytest.raises(LedgerProtocolError, match="another version"):
            await ledger.open()
        assert whole_image(client) == before
        await ledger.close()


async def test_a_user_who_may_not_load_functions_is_told_what_to_grant_and_leaves_no_connection() -> None:
    with running() as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "poor", "on", ">secret", "~*", "+@all", "-function")
        before = len(client.client_list())
        ledger = ScriptLedger(RedisEngine(server.url.replace("redis://", "redis://poor:secret@")))
        for _ in range(3):
            with pytest.raises(LedgerConfigError, match=r"docs/redis-keys\.md"):
                await ledger.open()
        await asyncio.sleep(0.05)
        assert len(client.client_list()) == before
        await ledger.close()


async def test_the_deadline_of_a_call_holds_from_the_first_moment(valkey_server: Server) -> None:
    valkey_server.flush()
    ledger = ScriptLedger(RedisEngine(valkey_server.url, namespace=NAMESPACE, timeout_s=0.2), tries=1)
    await ledger.open()
    with valkey_server.client() as client:
        client.execute_command("CLIENT", "PAUSE", "2500", "ALL")
        with pytest.raises(LedgerUnavailableError):
            await ledger.lanes(["lane"])
    await ledger.close()
