"""A reservation for many calls: what it holds, and what its one settlement books, gives back and tells of its lanes."""

from dataclasses import replace

import pytest
from msgspec import structs

from apikeyrouter.domain.models.accounting import (
    Breaker,
    Limit,
    Outcome,
    ReserveRequest,
    Settlement,
    SlabUse,
)
from apikeyrouter.infrastructure.ledger.windows import window_ends_us
from tests.ledger.support import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    START_US,
    LocalCell,
    bucket,
    budget,
    calendar,
    cost,
    in_flight,
    lane,
    local_cell,
    sliding,
    window,
    wish,
)

CALLS = 10
USE = SlabUse(
    calls=4, metered_tokens=40, input_tokens=30, output_tokens=10, cost_nanousd=80, metered_used=24, succeeded=3,
    failed=1, failed_in_a_row=1,
)  # fmt: skip


def slab() -> ReserveRequest:
    """Ten calls of ten tokens, and of twenty nano-dollars each."""
    request = wish("lane", scopes=("budget",), charge=cost(200, tokens=60, output=40))
    return structs.replace(request, calls=CALLS)


def ended(request: ReserveRequest, use: SlabUse = USE, outcome: Outcome = Outcome.SUCCESS) -> Settlement:
    """Four calls used 24 tokens and 50 nano-dollars."""
    return Settlement(
        rid=request.rid, input_tokens=18, output_tokens=6, cost_nanousd=50, outcome=outcome, failed_lanes=1,
        latency_us=1000, slab=use,
    )  # fmt: skip


async def in_use(cell: LocalCell) -> dict[str, int]:
    (state,) = await cell.lanes(["lane"])
    return {limit.name: limit.used for limit in state.limits}


@pytest.mark.parametrize("refund", [True, False])
async def test_what_no_call_took_comes_back_whatever_the_rule(refund: bool) -> None:
    limits = [replace(limit, refund=refund) for limit in (window(100), window(1000, name="tpm"))]
    cell = await local_cell(lane("lane", *limits, in_flight(20)), budget(limit=1000))
    request = slab()
    await cell.admit(request)
    assert await in_use(cell) == {"rpm": 10, "tpm": 100, "concurrency": 10}
    await cell.settle(ended(request))
    assert await in_use(cell) == {"rpm": 4, "tpm": 24 if refund else 40, "concurrency": 0}
    (state,) = await cell.scopes(["budget"])
    assert (state.settled, state.held) == (50, 0)


async def test_what_comes_back_to_a_bucket_has_not_drained() -> None:
    cell = await local_cell(lane("lane", bucket(60, burst=20)), budget())
    request = slab()
    await cell.admit(request)
    cell.time.advance(7 * SECOND)  # seven of ten have drained
    await cell.settle(ended(request, structs.replace(USE, calls=1)))
    assert await in_use(cell) == {"rpm": 0}
    later = slab()
    await cell.admit(later)
    await cell.settle(ended(later))
    assert await in_use(cell) == {"rpm": 4}


@pytest.mark.parametrize("what", [in_flight(9), window(9), bucket(9)], ids=lambda limit: limit.name + limit.kind)
async def test_a_slab_needs_room_for_all_its_calls(what: Limit) -> None:
    cell = await local_cell(lane("lane", what), budget())
    await cell.deny(slab())
    await cell.admit(structs.replace(slab(), calls=9))


async def test_calls_count_as_ended_and_failures_in_a_row_open_a_breaker() -> None:
    broken = replace(lane("lane", window(100)), breaker=Breaker(failures=3))
    cell = await local_cell(broken, budget())
    first, second = slab(), slab()
    await cell.admit(first)
    await cell.settle(ended(first))
    (state,) = await cell.lanes(["lane"])
    assert (state.requests_total, state.successes, state.failures, state.failures_total) == (4, 3, 1, 1)
    assert state.breaker == "closed"
    await cell.admit(second)
    bad = structs.replace(USE, succeeded=1, failed=5, failed_in_a_row=3, calls=6)
    await cell.settle(ended(second, bad))
    (state,) = await cell.lanes(["lane"])
    assert (state.requests_total, state.successes, state.failures) == (10, 4, 6)
    assert state.breaker == "open"


async def test_an_expired_slab_gives_back_all_its_slots_and_its_money_waits() -> None:
    cell = await local_cell(lane("lane", window(100), in_flight(20)), budget())
    request = slab()
    await cell.admit(request)
    assert await cell.audit(lanes=["lane"], scopes=["budget"]) == []
    (record,) = await cell.reservations()
    assert record.calls == CALLS
    cell.time.advance(30 * SECOND)
    await cell.sweep()
    assert await in_use(cell) == {"rpm": 10, "concurrency": 0}
    (state,) = await cell.scopes(["budget"])
    assert (state.held, state.suspense) == (0, 200)
    await cell.settle(ended(request))
    (state,) = await cell.scopes(["budget"])
    assert (state.settled, state.suspense) == (50, 0)
    assert (await in_use(cell))["rpm"] == 4


async def test_a_slab_that_the_store_forgot_is_booked_again_whole() -> None:
    cell = await local_cell(lane("lane", window(100), in_flight(20)), budget())
    request = slab()
    await cell.reassert(request, index=0)
    assert await in_use(cell) == {"rpm": 10, "concurrency": 10}
    await cell.settle(ended(request))
    assert await in_use(cell) == {"rpm": 4, "concurrency": 0}


@pytest.mark.parametrize(
    ("limit", "ends_in_us"),
    [
        (window(1), MINUTE - 7), (sliding(1), 10 * SECOND - 7), (calendar(1), 16 * HOUR - 7),
        (bucket(1), None), (in_flight(1), None),
    ],
    ids=lambda value: value.kind.value if isinstance(value, Limit) else "",
)  # fmt: skip
def test_a_slab_ends_with_its_window(limit: Limit, ends_in_us: int | None) -> None:
    now_us = START_US + 7
    never = window_ends_us([], [budget()], now_us)
    assert window_ends_us([limit], [], now_us) == (never if ends_in_us is None else now_us + ends_in_us)


def test_a_slab_ends_with_its_budgets_period() -> None:
    daily = replace(budget(), period=calendar(1).calendar)
    assert window_ends_us([window(1, DAY * 7)], [budget(), daily], START_US) == START_US + 16 * HOUR
