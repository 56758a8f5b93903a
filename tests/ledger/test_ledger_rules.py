"""What the ledger does by rule: suspense, what cannot be priced, the end of a lease, and the circuit breaker."""

from dataclasses import replace

import pytest

from apikeyrouter.domain.models.accounting import (
    UNPRICED,
    Admission,
    Breaker,
    Denial,
    LaneConfig,
    Outcome,
    Reason,
    Result,
    RetryKind,
    SuspenseRule,
    UnpricedRule,
)
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from tests.ledger.support import (
    HOUR,
    SECOND,
    LocalCell,
    bucket,
    budget,
    cost,
    in_flight,
    lane,
    local_cell,
    used,
    window,
    wish,
)


async def the_scope(ledger: ScriptLedger, id: str = "budget") -> tuple[int, int, int]:
    """(settled, held, suspense) of a budget."""
    (state,) = await ledger.scopes([id])
    return state.settled, state.held, state.suspense


# --- suspense and unpriced -------------------------------------------------------------------------------------------


async def suspended(rule: SuspenseRule) -> tuple[LocalCell, bytes]:
    """A cell in which 40 of a budget of 100 are in suspense, due in an hour."""
    cell = await local_cell(lane(), replace(budget(limit=100), suspense=rule))
    admission = await cell.admit(wish(scopes=("budget",), charge=cost(40), lease_us=SECOND))
    cell.time.advance(SECOND)
    await cell.sweep()
    assert await the_scope(cell) == (0, 0, 40)
    return cell, admission.rid


async def test_money_in_suspense_counts_against_a_hard_budget() -> None:
    cell, _ = await suspended(SuspenseRule.CHARGE)
    await cell.admit(wish(scopes=("budget",), charge=cost(60)))
    assert (await cell.deny(wish(scopes=("budget",), charge=cost(1)))).binding.reason is Reason.BUDGET


@pytest.mark.parametrize(
    ("rule", "after"),
    [(SuspenseRule.CHARGE, (40, 0, 0)), (SuspenseRule.REFUND, (0, 0, 0)), (SuspenseRule.HOLD, (0, 0, 40))],
)
@pytest.mark.parametrize("late", [False, True], ids=["nobody-settles", "settled-late"])
async def test_suspense_ends_by_its_rule_after_an_hour_and_a_late_settlement_corrects_it(
    rule: SuspenseRule, after: tuple[int, int, int], late: bool
) -> None:
    cell, rid = await suspended(rule)
    cell.time.advance(HOUR - 1)
    await cell.sweep()
    assert await the_scope(cell) == (0, 0, 40)
    cell.time.advance(1)
    await cell.sweep()
    assert await the_scope(cell) == after
    if late:
        assert (await cell.settle(used(rid, cost=33))).result is Result.OK
        assert await the_scope(cell) == (33, 0, 0)
        assert (await cell.settle(used(rid, cost=99))).result is Result.REPLAYED


@pytest.mark.parametrize(
    ("rule", "admitted", "settled", "unpriced"),
    [(UnpricedRule.DENY, False, 0, 0), (UnpricedRule.FLAT, True, 25, 8), (UnpricedRule.METER, True, 0, 33)],
)
async def test_what_cannot_be_priced_follows_the_budgets_rule(
    rule: UnpricedRule, admitted: bool, settled: int, unpriced: int
) -> None:
    cell = await local_cell(lane(), replace(budget(limit=100), unpriced=rule, flat_nanousd=25))
    answer = await cell.reserve(wish(scopes=("budget",), charge=cost(UNPRICED)))
    assert isinstance(answer, Admission) == admitted
    if isinstance(answer, Denial):
        assert (answer.binding.reason, answer.binding.retry_kind) == (Reason.UNPRICED, RetryKind.NEVER)
        return
    await cell.settle(used(answer.rid, cost=33))
    (state,) = await cell.scopes(["budget"])
    assert (state.settled, state.held, state.unpriced, state.unpriced_requests) == (settled, 0, unpriced, 1)


async def test_a_hard_budget_holds_the_bound_and_a_soft_one_the_expectation() -> None:
    cell = await local_cell(lane(), budget(limit=100), budget("soft", 100, hard=False))
    await cell.admit(wish(scopes=("budget", "soft"), charge=cost(10, bound=70)))
    assert (await the_scope(cell))[1] == 70
    assert (await the_scope(cell, "soft"))[1] == 10
    await cell.deny(wish(scopes=("budget",), charge=cost(1, bound=31)))


async def test_a_soft_budget_that_is_exceeded_admits_and_says_so() -> None:
    cell = await local_cell(lane(), budget("soft", 100, hard=False))
    assert (await cell.admit(wish(scopes=("soft",), charge=cost(100)))).soft_exceeded == ()
    assert (await cell.admit(wish(scopes=("soft",), charge=cost(1)))).soft_exceeded == ("soft",)


# --- leases and the breaker -------------------------------------------------------------------------------------------


async def test_at_its_lease_a_reservation_gives_back_concurrency_and_keeps_requests_and_tokens() -> None:
    cell = await local_cell(lane("lane", in_flight(1), window(10, HOUR), bucket(100, HOUR, name="tpm")))
    await cell.admit(wish(charge=cost(0, tokens=60), lease_us=SECOND))
    cell.time.advance(SECOND)
    await cell.sweep()
    (state,) = await cell.lanes(["lane"])
    assert state.in_flight == 0
    assert {limit.name: limit.used for limit in state.limits} == {"concurrency": 0, "rpm": 1, "tpm": 60}


def guarded(failures: int = 3) -> LaneConfig:
    return LaneConfig(id="lane", breaker=Breaker(failures=failures, open_us=SECOND, open_max_us=5 * SECOND))


async def fail(cell: LocalCell, times: int = 1) -> None:
    for _ in range(times):
        admission = await cell.admit(wish())
        await cell.settle(used(admission.rid, outcome=Outcome.FAILURE, failed_lanes=1))


async def test_failures_in_a_row_open_the_breaker_and_a_success_between_them_does_not() -> None:
    cell = await local_cell(guarded())
    await fail(cell, 2)
    admission = await cell.admit(wish())
    await cell.settle(used(admission.rid))
    await fail(cell, 3)
    denial = await cell.deny(wish())
    assert (denial.binding.reason, denial.binding.retry_at_us) == (Reason.BREAKER_OPEN, cell.time.now_us + SECOND)


async def test_a_probe_that_succeeds_closes_the_breaker() -> None:
    cell = await local_cell(guarded(1))
    await fail(cell)
    cell.time.advance(SECOND)
    probe = await cell.admit(wish())
    assert probe.probe
    assert (await cell.deny(wish())).binding.reason is Reason.PROBE_IN_FLIGHT
    await cell.settle(used(probe.rid))
    assert [(await cell.admit(wish())).probe for _ in range(2)] == [False, False]


@pytest.mark.parametrize("ending", ["failure", "lease"])
async def test_a_probe_that_fails_or_is_never_heard_of_again_doubles_the_time(ending: str) -> None:
    cell = await local_cell(guarded(1))
    await fail(cell)
    waits = []
    for wait_us in (SECOND, 2 * SECOND, 4 * SECOND, 5 * SECOND):
        cell.time.advance(wait_us)
        probe = await cell.admit(wish(lease_us=SECOND))
        if ending == "failure":
            await cell.settle(used(probe.rid, outcome=Outcome.FAILURE, failed_lanes=1))
        else:
            cell.time.advance(SECOND)
            await cell.sweep()
        waits.append((await cell.deny(wish())).binding.retry_at_us - cell.time.now_us)
    assert waits == [2 * SECOND, 4 * SECOND, 5 * SECOND, 5 * SECOND]


async def test_a_straggler_of_before_says_nothing_about_an_open_breaker() -> None:
    cell = await local_cell(guarded(1))
    straggler = await cell.admit(wish())
    await fail(cell)
    await cell.settle(used(straggler.rid))
    assert (await cell.deny(wish())).binding.reason is Reason.BREAKER_OPEN
