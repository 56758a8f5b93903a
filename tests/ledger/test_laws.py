"""The laws of the accounting, one test a part. `python -m tests.laws` breaks each law and sees its test turn red."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from apikeyrouter.domain.models.accounting import (
    AMOUNT_MAX,
    UNPRICED,
    Breaker,
    Candidate,
    Charge,
    LaneConfig,
    Limit,
    Outcome,
    Period,
    Reason,
    ReserveRequest,
    Result,
    RetryKind,
    ScopeConfig,
    State,
    UnpricedRule,
)
from apikeyrouter.domain.models.system_error import (
    LedgerConfigError,
    LedgerProtocolError,
    LedgerUnavailableError,
)
from apikeyrouter.infrastructure.ledger.arguments import rid_field
from apikeyrouter.infrastructure.ledger.codes import Code
from apikeyrouter.infrastructure.ledger.encoding import check_amount
from apikeyrouter.infrastructure.ledger.engine import Argument, Reply
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from tests.ledger.cells import ledger_over, local_engine
from tests.ledger.support import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Clock,
    LocalCell,
    bucket,
    budget,
    calendar,
    cost,
    in_flight,
    lane,
    local_cell,
    local_image,
    used,
    window,
    wish,
)

DAILY = ScopeConfig(id="budget", limit_nanousd=1000, hard=True, period=Period.DAILY)


async def used_of(cell: LocalCell, name: str = "lane") -> int:
    return (await cell.lanes([name]))[0].limits[0].used


async def in_flight_of(cell: LocalCell) -> int:
    return (await cell.lanes(["lane"]))[0].in_flight


async def money(cell: LocalCell) -> tuple[int, int, int]:
    """Settled, held, in suspense."""
    (scope,) = await cell.scopes(["budget"])
    return scope.settled, scope.held, scope.suspense


# --- 1: checks before writes; a denial costs nothing -----------------------------------------------------------------


async def test_a_denial_changes_nothing_that_the_cell_holds() -> None:
    cell = await local_cell(lane("lane", window(1)), lane("tokens", bucket(100, name="tpm")), budget())
    await cell.admit(wish("lane", "tokens", charge=cost(10, tokens=60), scopes=("budget",)))
    before = cell.image()
    for _ in range(3):
        await cell.deny(wish("lane", "tokens", charge=cost(10, tokens=60), scopes=("budget",)))
        await cell.deny(wish("tokens", charge=cost(2000, tokens=1), scopes=("budget",)))
    assert cell.image() == before


async def test_a_request_that_one_of_its_lanes_refuses_is_held_in_none() -> None:
    cell = await local_cell(lane("wide", window(100)), lane("full", window(1)), budget())
    await cell.admit(wish("full"))
    await cell.deny(wish("wide", "full", charge=cost(10), scopes=("budget",)))
    assert await cell.lanes(["wide"]) == []
    assert await cell.scopes(["budget"]) == []


# --- 2: integers only ------------------------------------------------------------------------------------------------


async def test_a_calendar_whose_number_has_fifteen_digits_is_found_again() -> None:
    cell = await local_cell(lane("lane", calendar(1)))
    await cell.admit(wish())
    denial = await cell.deny(wish())
    assert denial.binding.reason is Reason.LIMIT


@pytest.mark.parametrize("word", ["1.5", "-1", str(2**53), "nan", "inf", "x", ""])
async def test_what_is_no_exact_integer_enters_no_counter(word: str) -> None:
    cell = await local_cell(lane())
    args: list[Argument] = [b"r", 0, SECOND, "", 1, "", 0, 1, word, 1, 1, 1, 1, 1, 1, "lane", 0, 1]
    assert cell.engine.run_now("reserve", args)[0] == Code.BAD_ARGUMENT
    assert cell.engine.run_now("settle", [b"r", word, 1, 1, 0, 0, 0])[0] == Code.BAD_ARGUMENT


def test_an_amount_that_a_counter_would_round_is_refused() -> None:
    assert check_amount(AMOUNT_MAX, what="a limit") == AMOUNT_MAX
    with pytest.raises(LedgerConfigError):
        check_amount(AMOUNT_MAX + 1, what="a limit")


async def test_a_bucket_lets_in_at_its_microsecond_and_not_before() -> None:
    cell = await local_cell(lane("lane", bucket(7, burst=7)))
    for _ in range(7):
        await cell.admit(wish())
    retry_at = (await cell.deny(wish())).binding.retry_at_us
    cell.time.now_us = retry_at - 1
    await cell.deny(wish())
    cell.time.now_us = retry_at
    await cell.admit(wish())


# --- 3: time ---------------------------------------------------------------------------------------------------------


async def test_a_clock_that_steps_back_opens_no_window_again() -> None:
    cell = await local_cell(lane("lane", window(1)))
    cell.time.advance(MINUTE)
    await cell.admit(wish())
    cell.time.advance(-MINUTE)
    denial = await cell.deny(wish())
    assert denial.stamp.now_us == cell.time.now_us + MINUTE


async def test_while_the_clock_is_suspect_hard_budgets_refuse_and_soft_ones_do_not() -> None:
    cell = await local_cell(lane(), budget(), budget("soft", hard=False))
    await cell.suspect_clock(True)
    denial = await cell.deny(wish(scopes=("budget",)))
    assert denial.binding.reason is Reason.CLOCK_SUSPECT
    await cell.admit(wish(scopes=("soft",)))
    await cell.suspect_clock(False)
    await cell.admit(wish(scopes=("budget",)))


async def test_only_the_cells_clock_chooses_a_period() -> None:
    cell = await local_cell(lane("lane", calendar(1)))
    await cell.admit(wish())
    retry_at = (await cell.deny(wish())).binding.retry_at_us
    cell.time.now_us = retry_at - 1
    await cell.deny(wish())
    cell.time.now_us = retry_at
    await cell.admit(wish())
    assert retry_at % DAY == 0


# --- 4: every transition is idempotent -------------------------------------------------------------------------------


async def test_a_reserve_that_is_sent_again_holds_once() -> None:
    cell = await local_cell(lane("lane", window(5)), budget())
    request = wish(charge=cost(10), scopes=("budget",))
    first = await cell.admit(request)
    again = await cell.admit(request)
    assert (again.replayed, again.index, again.deadline_us) == (True, first.index, first.deadline_us)
    assert (await used_of(cell), await money(cell)) == (1, (0, 10, 0))


async def test_a_settlement_that_is_sent_again_is_booked_once() -> None:
    cell = await local_cell(lane(), budget())
    request = wish(charge=cost(10), scopes=("budget",))
    await cell.admit(request)
    answers = await cell.settle_many([used(request.rid, cost=4), used(request.rid, cost=4)])
    answers.append(await cell.settle(used(request.rid, cost=4)))
    assert [answer.result for answer in answers] == [Result.OK, Result.REPLAYED, Result.REPLAYED]
    assert await money(cell) == (4, 0, 0)


async def test_a_contradiction_is_told_and_changes_nothing() -> None:
    cell = await local_cell(lane("lane", window(5)), budget())
    request = wish(charge=cost(10), scopes=("budget",))
    await cell.admit(request)
    await cell.settle(used(request.rid, cost=4))
    before = cell.image()
    released = await cell.release(request.rid, sent=False)
    cancelled = await cell.cancel(request.rid)
    assert {released.result, cancelled.result} == {Result.CONFLICT}
    assert {released.state, cancelled.state} == {State.SETTLED}
    assert cell.image() == before


async def test_a_reserve_that_arrives_after_its_cancel_holds_nothing() -> None:
    cell = await local_cell(lane("lane", window(5)))
    request = wish()
    assert (await cell.cancel(request.rid)).result is Result.OK
    with pytest.raises(LedgerProtocolError, match="cancelled"):
        await cell.reserve(request)
    assert await cell.lanes(["lane"]) == []


async def test_a_settlement_of_an_unknown_reservation_is_listed_and_not_added() -> None:
    cell = await local_cell(lane(), budget())
    answer = await cell.settle(used(b"stranger", cost=4))
    assert (answer.result, answer.state) == (Result.UNMATCHED, None)
    assert list(cell.image()["U"]) == [b"r:stranger"]
    assert await cell.scopes(["budget"]) == []


async def test_a_settlement_is_remembered_for_a_day_unless_its_caller_has_seen_it() -> None:
    cell = await local_cell(lane(), budget())
    seen, unseen = wish(), wish()
    for request in (seen, unseen):
        await cell.admit(request)
        await cell.settle(used(request.rid))
    await cell.acknowledge([seen.rid])
    cell.time.advance(DAY - 1)
    await cell.sweep()
    assert (await cell.settle(used(unseen.rid))).result is Result.REPLAYED
    assert (await cell.settle(used(seen.rid))).result is Result.UNMATCHED


# --- 5: settlement belongs to the window that was charged ------------------------------------------------------------


async def test_a_late_settlement_gives_nothing_back_to_a_bucket_that_has_drained() -> None:
    cell = await local_cell(lane("lane", bucket(100, name="tpm")))
    early = wish(charge=cost(0, tokens=100), lease_us=HOUR)
    await cell.admit(early)
    cell.time.advance(MINUTE)
    await cell.admit(wish(charge=cost(0, tokens=100)))
    await cell.settle(used(early.rid, tokens=0))
    assert await used_of(cell) == 100


async def test_a_late_settlement_gives_nothing_back_to_the_next_window() -> None:
    cell = await local_cell(lane("lane", window(100, name="tpm")))
    early = wish(charge=cost(0, tokens=100), lease_us=HOUR)
    await cell.admit(early)
    cell.time.advance(MINUTE)
    await cell.admit(wish(charge=cost(0, tokens=100)))
    await cell.settle(used(early.rid, tokens=0))
    assert await used_of(cell) == 100


async def test_what_was_used_beyond_the_hold_is_debt() -> None:
    cell = await local_cell(lane("lane", bucket(100, name="tpm")), budget("budget", 50))
    request = wish(charge=cost(10, tokens=10), scopes=("budget",))
    await cell.admit(request)
    await cell.settle(used(request.rid, tokens=150, cost=60))
    assert (await used_of(cell), await money(cell)) == (150, (60, 0, 0))
    await cell.deny(wish(charge=cost(0, tokens=1)))
    await cell.deny(wish("other", charge=cost(1), scopes=("budget",)))


async def test_a_settlement_from_yesterday_leaves_todays_budget_alone() -> None:
    cell = await local_cell(lane(), DAILY)
    yesterday, older = (wish(charge=cost(10), scopes=("budget",), lease_us=4 * DAY) for _ in range(2))
    await cell.admit(older)
    cell.time.advance(DAY)
    await cell.admit(yesterday)
    cell.time.advance(DAY)
    await cell.admit(wish(charge=cost(1), scopes=("budget",)))
    await cell.settle(used(yesterday.rid, cost=7))
    await cell.settle(used(older.rid, cost=5))
    assert await money(cell) == (0, 1, 0)
    assert (await cell.scopes(["budget"]))[0].late == 5


# --- 6: leases -------------------------------------------------------------------------------------------------------


async def expired(*limits: Limit, breaker: Breaker | None = None, **more: Any) -> tuple[LocalCell, bytes]:
    """A cell in which one lease has just ended."""
    cell = await local_cell(LaneConfig(id="lane", limits=limits, breaker=breaker), budget(**more))
    request = wish(charge=cost(10, tokens=50), scopes=("budget",), lease_us=SECOND)
    await cell.admit(request)
    cell.time.advance(SECOND)
    assert await cell.sweep() == 1
    return cell, request.rid


async def test_when_a_lease_ends_its_place_in_flight_comes_back() -> None:
    cell, _ = await expired(in_flight(1))
    assert await in_flight_of(cell) == 0
    await cell.admit(wish())


async def test_when_a_lease_ends_requests_and_tokens_stay_counted() -> None:
    cell, _ = await expired(window(100, name="tpm"))
    assert await used_of(cell) == 50


async def test_when_a_lease_ends_its_money_waits_in_suspense_and_counts() -> None:
    cell, rid = await expired(limit=12)
    assert await money(cell) == (0, 0, 10)
    await cell.deny(wish(charge=cost(3), scopes=("budget",)))
    assert (await cell.settle(used(rid, cost=4))).result is Result.OK
    assert await money(cell) == (4, 0, 0)


async def test_suspense_that_nobody_settles_is_charged_after_an_hour() -> None:
    cell, rid = await expired()
    cell.time.advance(HOUR)
    assert await cell.sweep() == 1
    assert await money(cell) == (10, 0, 0)
    assert (await cell.settle(used(rid, cost=4))).result is Result.OK
    assert await money(cell) == (4, 0, 0)


async def test_a_probe_whose_lease_ends_has_failed() -> None:
    cell = await local_cell(LaneConfig(id="lane", breaker=Breaker(failures=1, open_us=SECOND)))
    failing = wish()
    await cell.admit(failing)
    await cell.settle(used(failing.rid, outcome=Outcome.FAILURE, failed_lanes=1))
    cell.time.advance(SECOND)
    assert (await cell.admit(wish(lease_us=SECOND))).probe
    assert (await cell.deny(wish())).binding.reason is Reason.PROBE_IN_FLIGHT
    cell.time.advance(SECOND)
    denial = await cell.deny(wish())
    assert (denial.binding.reason, denial.binding.retry_at_us) == (Reason.BREAKER_OPEN, cell.time.now_us + 2 * SECOND)


async def test_a_renewed_lease_does_not_end_and_an_ended_one_is_told() -> None:
    cell, ended = await expired()
    request = wish(lease_us=SECOND)
    await cell.admit(request)
    assert await cell.renew([request.rid, ended], lease_us=MINUTE) == [ended]
    cell.time.advance(MINUTE - 1)
    assert await cell.sweep() == 0


# --- 7: expected and bound -------------------------------------------------------------------------------------------


async def test_a_hard_budget_holds_the_bound_and_a_soft_one_what_is_expected() -> None:
    cell = await local_cell(lane(), budget(), budget("soft", hard=False))
    await cell.admit(wish(charge=cost(10, bound=30), scopes=("budget", "soft")))
    hard, soft = await cell.scopes(["budget", "soft"])
    assert (hard.held, soft.held) == (30, 10)


async def test_a_hard_budget_is_never_exceeded_by_what_is_settled_held_and_in_suspense() -> None:
    cell, _ = await expired(limit=30)
    settled, held = (wish(charge=cost(10), scopes=("budget",)) for _ in range(2))
    await cell.admit(settled)
    await cell.settle(used(settled.rid, cost=10))
    await cell.admit(held)
    assert await money(cell) == (10, 10, 10)
    denial = await cell.deny(wish(charge=cost(1), scopes=("budget",)))
    assert denial.binding.reason is Reason.BUDGET
    await cell.admit(wish(charge=cost(0), scopes=("budget",)))


async def test_what_has_no_price_is_denied_flat_or_metered_as_the_budget_says() -> None:
    base = budget("budget", 100)
    cell = await local_cell(lane(), base)
    unpriced = Charge(expected_nanousd=UNPRICED, bound_nanousd=UNPRICED)
    denial = await cell.deny(wish(charge=unpriced, scopes=("budget",)))
    assert (denial.binding.reason, denial.binding.retry_kind) == (Reason.UNPRICED, RetryKind.NEVER)
    for rule, booked in ((UnpricedRule.FLAT, (20, 50)), (UnpricedRule.METER, (20, 120))):
        await cell.put(scopes=[replace(base, unpriced=rule, flat_nanousd=20)])
        request = wish(charge=unpriced, scopes=("budget",))
        await cell.admit(request)
        await cell.settle(used(request.rid, cost=70))
        (scope,) = await cell.scopes(["budget"])
        assert (scope.settled, scope.unpriced) == booked


# --- 8: bounded work -------------------------------------------------------------------------------------------------


async def test_a_reserve_ends_at_most_four_leases() -> None:
    cell = await local_cell(lane())
    for _ in range(20):
        await cell.admit(wish(lease_us=SECOND))
    cell.time.advance(SECOND)
    await cell.admit(wish())
    assert await in_flight_of(cell) == 20 + 1 - 4


@pytest.mark.parametrize(
    ("candidates", "scopes", "lanes", "own"), [(65, 0, 1, 0), (0, 0, 1, 0), (1, 9, 1, 0), (1, 0, 7, 0), (1, 0, 1, 5)]
)
async def test_a_request_that_asks_for_too_much_work_is_refused(
    candidates: int, scopes: int, lanes: int, own: int
) -> None:
    cell = await local_cell(lane())
    offer = Candidate(lanes=tuple(f"lane{n}" for n in range(lanes)), scopes=tuple(f"own{n}" for n in range(own)))
    request = ReserveRequest(rid=b"r", candidates=(offer,) * candidates, scopes=tuple(f"s{n}" for n in range(scopes)))
    with pytest.raises(LedgerConfigError, match=r"takes 1 to 64|at most|1 to 4"):
        await cell.reserve(request)


# --- 9: every reply says where it stands -----------------------------------------------------------------------------


async def test_every_write_is_the_next_seq_and_a_denial_is_none() -> None:
    cell = await local_cell(lane("lane", window(1)))
    start = cell.stamp.seq
    request = wish()
    stamps = [
        (await cell.admit(request)).stamp,
        (await cell.deny(wish())).stamp,
        (await cell.settle(used(request.rid))).stamp,
        (await cell.record("lane", blocked_for_us=SECOND)),
        (await cell.cancel(b"unknown")).stamp,
        (await cell.settle(used(request.rid))).stamp,
    ]
    assert [stamp.seq - start for stamp in stamps] == [1, 1, 2, 3, 4, 4]


async def test_a_seq_that_goes_back_proves_that_writes_were_forgotten() -> None:
    cell = await local_cell(lane())
    image = local_image(cell.engine)
    for _ in range(3):
        await cell.admit(wish())
    poke = cell.engine._lua.globals()[b"poke"]
    poke(b"test:{c:main}:L", b"", image["L"][b""])
    assert cell.forgotten == 0
    await cell.admit(wish())
    assert cell.forgotten == 1


async def test_what_the_store_forgot_is_booked_again_once() -> None:
    cell = await local_cell(lane("lane", in_flight(1)), budget())
    request = wish(charge=cost(10), scopes=("budget",))
    await cell.admit(request)
    cell.engine.flush()
    await cell.open()
    await cell.put(lanes=[lane("lane", in_flight(1))], scopes=[budget()])
    results = [(await cell.reassert(request, index=0)).result for _ in range(2)]
    assert results == [Result.OK, Result.REPLAYED]
    assert (await in_flight_of(cell), await money(cell)) == (1, (0, 10, 0))
    await cell.deny(wish())


# --- 10: without the store nothing is admitted -----------------------------------------------------------------------


class Unreachable:
    """An engine that cannot be reached for reserves, as when the network is cut."""

    def __init__(self) -> None:
        self.inner = local_engine(Clock())
        self.asked: list[str] = []

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def run(self, name: str, args: list[Argument], *, pool: str = "") -> Reply:
        self.asked.append(name)
        if name == "reserve":
            raise LedgerUnavailableError("cut off")
        return await self.inner.run(name, args, pool=pool)


async def test_when_the_store_is_unreachable_nothing_is_admitted_and_the_doubt_is_cancelled() -> None:
    engine = Unreachable()
    ledger: ScriptLedger = ledger_over(engine)  # type: ignore[arg-type]
    await ledger.open()
    request = wish()
    with pytest.raises(LedgerUnavailableError):
        await ledger.reserve(request)
    await ledger.close()
    assert engine.asked.count("cancel") == 1
    assert (await engine.inner.run("cancel", [rid_field(request.rid)]))[0] == Code.REPLAYED


async def test_a_caller_that_leaves_while_reserving_leaves_nothing_held() -> None:
    engine = local_engine(Clock())
    ledger = ledger_over(engine)
    await ledger.open()
    asked = asyncio.Event()

    class Slow(Unreachable):
        async def run(self, name: str, args: list[Argument], *, pool: str = "") -> Reply:
            if name == "reserve":
                await engine.run(name, args, pool=pool)
                asked.set()
                await asyncio.Event().wait()
            return await engine.run(name, args, pool=pool)

    slow: ScriptLedger = ledger_over(Slow())  # type: ignore[arg-type]
    task = asyncio.create_task(slow.reserve(wish()))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await slow.close()
    assert (await ledger.lanes(["lane"]))[0].in_flight == 0
