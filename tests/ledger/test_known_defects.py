"""Defects that other routers and limiters had, each as a test that their algorithm would fail and ours passes."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apikeyrouter.domain.models.accounting import Limit, Period, Reason, Result, RetryKind, State
from apikeyrouter.domain.models.system_error import LedgerProtocolError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.records import unpack_numbers
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from tests.ledger.support import (
    DAY,
    HOUR,
    MINUTE,
    NAMESPACE,
    SECOND,
    LocalCell,
    bucket,
    budget,
    calendar,
    configure,
    cost,
    in_flight,
    lane,
    local_cell,
    new_rid,
    sliding,
    used,
    window,
    wish,
)
from tests.servers import Server

TOKENS = (bucket(1000, name="tpm"), window(1000, name="tpm"), sliding(1000, name="tpm"), calendar(1000, name="tpd"))
IDS = ("bucket", "window", "sliding", "calendar")


async def used_of(cell: LocalCell) -> int:
    """What the lane's only limit counts now, advanced by an empty look at it."""
    await cell.record("lane")
    return (await cell.lanes(["lane"]))[0].limits[0].used


@pytest.mark.parametrize("limit", TOKENS, ids=IDS)
async def test_a_settlement_that_comes_after_its_window_mints_no_quota(limit: Limit) -> None:
    cell = await local_cell(lane("lane", limit))
    late = await cell.admit(wish(charge=cost(0, tokens=900), lease_us=3 * DAY))
    cell.time.advance(2 * DAY)
    await cell.admit(wish(charge=cost(0, tokens=1000)))
    await cell.settle(used(late.rid, tokens=0))
    assert await used_of(cell) == 1000
    await cell.deny(wish(charge=cost(0, tokens=1)))


@pytest.mark.parametrize("limit", TOKENS, ids=IDS)
async def test_more_than_was_held_is_debt_in_the_window_that_was_charged(limit: Limit) -> None:
    cell = await local_cell(lane("lane", limit))
    admission = await cell.admit(wish(charge=cost(0, tokens=600)))
    await cell.settle(used(admission.rid, tokens=1500))
    assert await used_of(cell) == 1500
    await cell.deny(wish(charge=cost(0, tokens=1)))


@pytest.mark.parametrize("limit", [*TOKENS, in_flight(1)], ids=[*IDS, "concurrency"])
async def test_denied_calls_eat_no_quota(limit: Limit) -> None:
    cell = await local_cell(lane("lane", limit), budget(limit=1000))
    await cell.admit(wish(scopes=("budget",), charge=cost(900, tokens=900)))
    before = cell.image()
    for _ in range(50):
        await cell.deny(wish(scopes=("budget",), charge=cost(101, tokens=101)))
    assert cell.image() == before


@pytest.mark.parametrize("limit", TOKENS, ids=IDS)
async def test_a_request_larger_than_the_limit_never_fits_and_pins_nothing(limit: Limit) -> None:
    cell = await local_cell(lane("lane", limit))
    denial = await cell.deny(wish(charge=cost(0, tokens=1001)))
    assert (denial.binding.reason, denial.binding.retry_kind) == (Reason.NEVER_FITS, RetryKind.NEVER)
    await cell.admit(wish(charge=cost(0, tokens=1000)))


async def test_a_request_dearer_than_a_hard_budget_never_fits_and_holds_nothing() -> None:
    cell = await local_cell(lane(), budget(limit=1000))
    assert (await cell.deny(wish(scopes=("budget",), charge=cost(1001)))).binding.reason is Reason.NEVER_FITS
    await cell.admit(wish(scopes=("budget",), charge=cost(1000)))


async def test_a_repeated_settlement_is_counted_once_whatever_it_says() -> None:
    cell = await local_cell(lane("lane", TOKENS[0]), budget(limit=1000))
    admission = await cell.admit(wish(scopes=("budget",), charge=cost(500, tokens=500)))
    first = await cell.settle(used(admission.rid, tokens=200, cost=200))
    image = cell.image()
    again = [await cell.settle(used(admission.rid, tokens=tokens, cost=tokens)) for tokens in (200, 0, 900)]
    twice_in_one = await cell.settle_many([used(admission.rid, tokens=900, cost=900)] * 2)
    assert first.result is Result.OK
    assert {answer.result for answer in [*again, *twice_in_one]} == {Result.REPLAYED}
    assert cell.image() == image


async def test_two_equal_settlements_in_one_page_are_counted_once() -> None:
    cell = await local_cell(lane(), budget(limit=1000))
    admission = await cell.admit(wish(scopes=("budget",), charge=cost(500)))
    answers = await cell.settle_many([used(admission.rid, cost=200)] * 2)
    assert [answer.result for answer in answers] == [Result.OK, Result.REPLAYED]
    assert (await cell.scopes(["budget"]))[0].settled == 200


async def test_a_reserve_sent_again_holds_once() -> None:
    cell = await local_cell(lane("lane", TOKENS[0]), budget(limit=1000))
    request = wish(scopes=("budget",), charge=cost(600, tokens=600))
    first = await cell.admit(request)
    image = cell.image()
    again = await cell.admit(request)
    assert (again.replayed, again.deadline_us, again.index) == (True, first.deadline_us, first.index)
    assert cell.image() == image


async def test_many_workers_that_meet_a_cold_cell_count_each_request_once(valkey_server: Server) -> None:
    valkey_server.flush()
    workers = [ScriptLedger(RedisEngine(valkey_server.url, namespace=NAMESPACE, timeout_s=30)) for _ in range(8)]
    await asyncio.gather(*(worker.open() for worker in workers))
    await asyncio.gather(*(configure(worker, lane("lane", calendar(10**6)), budget(limit=10**6)) for worker in workers))
    await asyncio.gather(*(worker.reserve(wish(scopes=("budget",), charge=cost(3))) for worker in workers * 5))
    (state,), (scope,) = await workers[0].lanes(["lane"]), await workers[0].scopes(["budget"])
    assert (state.limits[0].used, state.in_flight, scope.held, scope.settled) == (40, 40, 120, 0)
    for worker in workers:
        await worker.close()


async def test_a_hold_of_a_worker_that_died_comes_back_at_its_lease_and_its_money_waits_in_suspense() -> None:
    cell = await local_cell(lane("lane", in_flight(1)), budget(limit=1000))
    await cell.admit(wish(scopes=("budget",), charge=cost(1000), lease_us=30 * SECOND))
    await cell.deny(wish())
    cell.time.advance(30 * SECOND)
    await cell.admit(wish())
    (scope,) = await cell.scopes(["budget"])
    assert (scope.held, scope.suspense) == (0, 1000)
    assert await cell.audit(lanes=["lane"], scopes=["budget"]) == []


async def test_a_settlement_after_the_lease_is_counted_and_not_lost() -> None:
    cell = await local_cell(lane(), budget(limit=1000))
    admission = await cell.admit(wish(scopes=("budget",), charge=cost(400)))
    cell.time.advance(31 * SECOND)
    await cell.sweep()
    answer = await cell.settle(used(admission.rid, cost=123))
    (scope,) = await cell.scopes(["budget"])
    assert (answer.result, answer.state) == (Result.OK, State.SETTLED)
    assert (scope.settled, scope.held, scope.suspense) == (123, 0, 0)


async def test_a_settlement_whose_reservation_nobody_knows_is_listed_and_not_added() -> None:
    cell = await local_cell(lane(), budget(limit=1000))
    await cell.admit(wish(scopes=("budget",), charge=cost(400)))
    before = await cell.scopes(["budget"])
    rid = new_rid()
    answers = [await cell.settle(used(rid, cost=123)) for _ in range(2)]
    assert [answer.result for answer in answers] == [Result.UNMATCHED] * 2
    assert await cell.scopes(["budget"]) == before
    assert list(cell.image()["U"]) == [b"r:" + rid]


async def test_a_period_that_ends_loses_no_concurrent_spend() -> None:
    cell = await local_cell(lane(), budget("day", 1000, period=Period.DAILY))
    before = [await cell.admit(wish(scopes=("day",), charge=cost(100), lease_us=2 * DAY)) for _ in range(5)]
    await cell.settle(used(before[0].rid, cost=90))
    cell.time.advance(DAY)
    after = await cell.admit(wish(scopes=("day",), charge=cost(10)))
    for admission in before[1:]:
        await cell.settle(used(admission.rid, cost=90))
    await cell.settle(used(after.rid, cost=9))
    (scope,) = await cell.scopes(["day"])
    assert (scope.settled, scope.held, scope.late) == (9, 0, 0)
    assert previous_settled(cell) == 450


async def test_a_settlement_older_than_the_previous_period_is_shown_as_late() -> None:
    cell = await local_cell(lane(), budget("day", 1000, period=Period.DAILY))
    admission = await cell.admit(wish(scopes=("day",), charge=cost(100), lease_us=5 * DAY))
    cell.time.advance(2 * DAY)
    await cell.admit(wish(scopes=("day",), charge=cost(10)))
    await cell.settle(used(admission.rid, cost=90))
    (scope,) = await cell.scopes(["day"])
    assert (scope.settled, scope.held, scope.late) == (0, 10, 90)


def previous_settled(cell: LocalCell) -> int:
    return unpack_numbers(cell.image()["L"][b"s:day"])[17]


async def test_a_call_that_is_cancelled_leaves_no_key_that_never_goes() -> None:
    cell = await local_cell(lane("lane", in_flight(10)), budget(limit=1000))
    for _ in range(3):
        admission = await cell.admit(wish(scopes=("budget",), charge=cost(10)))
        await cell.cancel(admission.rid)
    await cell.cancel(new_rid())
    assert (await cell.scopes(["budget"]))[0].held == 0
    for _ in range(2):  # the leases, then the tombstones
        cell.time.advance(DAY + HOUR)
        await cell.sweep()
    image = cell.image()
    assert [image[name] for name in ("D", "S", "G", "U")] == [{}, {}, {}, {}]
    assert image["L"].keys() == {b"", b"l:lane", b"s:budget"}


async def test_a_reserve_that_arrives_after_its_cancel_holds_nothing() -> None:
    cell = await local_cell(lane("lane", in_flight(10)), budget(limit=1000))
    request = wish(scopes=("budget",), charge=cost(10))
    await cell.cancel(request.rid)
    with pytest.raises(LedgerProtocolError, match="has ended: cancelled"):
        await cell.reserve(request)
    assert cell.image()["D"] == {}


async def test_a_reserve_cancelled_by_its_caller_is_ended_in_the_background(valkey_server: Server) -> None:
    valkey_server.flush()
    ledger = ScriptLedger(RedisEngine(valkey_server.url, namespace=NAMESPACE, timeout_s=30))
    await ledger.open()
    await configure(ledger, lane("lane", in_flight(10)))
    task = asyncio.create_task(ledger.reserve(wish()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.gather(*ledger._chores)
    assert await ledger.reservations() == []
    assert (await ledger.lanes(["lane"]))[0].in_flight == 0
    await ledger.close()


@pytest.mark.parametrize("limit", TOKENS, ids=IDS)
async def test_a_refund_gives_back_what_was_taken_and_no_more(limit: Limit) -> None:
    cell = await local_cell(lane("lane", limit))
    first = await cell.admit(wish(charge=cost(0, tokens=400)))
    await cell.admit(wish(charge=cost(0, tokens=600)))
    await cell.settle(used(first.rid, tokens=0))
    assert await used_of(cell) == 600
    await cell.deny(wish(charge=cost(0, tokens=401)))
    await cell.admit(wish(charge=cost(0, tokens=400)))


async def test_a_refund_after_the_bucket_drained_gives_nothing_back() -> None:
    cell = await local_cell(lane("lane", bucket(1000, name="tpm")))
    early = await cell.admit(wish(charge=cost(0, tokens=500)))
    cell.time.advance(MINUTE // 2)
    await cell.admit(wish(charge=cost(0, tokens=1000)))
    await cell.settle(used(early.rid, tokens=0))
    assert await used_of(cell) == 1000


async def test_a_limit_on_which_the_provider_keeps_its_estimate_gives_nothing_back() -> None:
    cell = await local_cell(lane("lane", replace(bucket(1000, name="tpm"), refund=False)))
    admission = await cell.admit(wish(charge=cost(0, tokens=1000)))
    await cell.settle(used(admission.rid, tokens=1))
    assert await used_of(cell) == 1000


async def test_a_release_after_a_settlement_changes_nothing() -> None:
    cell = await local_cell(lane("lane", TOKENS[0]), budget(limit=1000))
    admission = await cell.admit(wish(scopes=("budget",), charge=cost(500, tokens=500)))
    await cell.settle(used(admission.rid, tokens=500, cost=500))
    image = cell.image()
    answers = [await cell.release(admission.rid, sent=False), await cell.cancel(admission.rid)]
    assert [(answer.result, answer.state) for answer in answers] == [(Result.CONFLICT, State.SETTLED)] * 2
    assert cell.image() == image


async def test_a_flushed_store_refuses_instead_of_starting_from_zero() -> None:
    cell = await local_cell(lane(), budget(limit=1000))
    cell.engine.flush()
    with pytest.raises(LedgerUnavailableError, match="the cell is gone"):
        await cell.reserve(wish(scopes=("budget",), charge=cost(1)))


# --- what a provider's own bucket would see -------------------------------------------------------------------------

_STEP = st.one_of(
    st.tuples(st.just("reserve"), st.integers(min_value=0, max_value=60), st.integers(min_value=0, max_value=1)),
    st.tuples(st.just("settle"), st.integers(min_value=0, max_value=5), st.integers(min_value=0, max_value=60)),
    st.tuples(st.just("wait"), st.integers(min_value=0, max_value=700_000), st.just(0)),
)


@given(
    rate=st.sampled_from([1, 7, 50, 97]), burst=st.sampled_from([20, 50, 60, 100]),
    history=st.lists(_STEP, min_size=1, max_size=60),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_history_of_refunds_lets_through_more_than_the_providers_own_bucket_holds(
    rate: int, burst: int, history: list[tuple[str, int, int]]
) -> None:
    asyncio.run(_never_over(rate, burst, history))


async def _never_over(rate: int, burst: int, history: list[tuple[str, int, int]]) -> None:
    """Charge what was really used at the instants it was admitted; a settlement never finds more than was held."""
    cell = await local_cell(lane("lane", bucket(rate, SECOND, burst=burst, name="tpm")))
    open_ones: list[tuple[bytes, int, int]] = []
    arrivals: list[list[int]] = []
    for kind, first, second in history:
        if kind == "wait":
            cell.time.advance(first)
        elif kind == "reserve":
            request = wish(charge=cost(0, tokens=first), lease_us=HOUR)
            if not hasattr(await cell.reserve(request), "binding"):
                arrivals.append([cell.time.now_us, first])
                open_ones.append((request.rid, first, len(arrivals) - 1))
        elif open_ones:
            rid, held, arrival = open_ones.pop(first % len(open_ones))
            arrivals[arrival][1] = min(held, second)
            await cell.settle(used(rid, tokens=min(held, second)))
    assert peak_of(arrivals, rate) <= burst * SECOND


def peak_of(arrivals: list[list[int]], rate: int) -> int:
    """The highest level, in millionths, of a bucket that these amounts enter and `rate` a second leaves."""
    level, before, peak = 0, 0, 0
    for now, amount in arrivals:
        level = max(0, level - (now - before) * rate) + amount * SECOND
        before, peak = now, max(peak, level)
    return peak
