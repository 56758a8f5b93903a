"""One slab in process: what its calls may take, when it takes none, and what its settlement sums up."""

from dataclasses import replace

import pytest
from msgspec import structs

from apikeyrouter.domain.components.slab_sizes import free_calls, with_slack
from apikeyrouter.domain.models.accounting import (
    Charge,
    LaneConfig,
    Outcome,
    Settlement,
)
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger.encoding import capacities
from apikeyrouter.serving.bookkeeping import Bookkeeper, Release
from apikeyrouter.serving.slab import Slab
from tests.ledger.support import LocalCell, bucket, budget, lane, local_cell, used, window, wish

CALL = Charge(input_tokens=6, output_tokens=4, metered_tokens=12, expected_nanousd=20, bound_nanousd=30)


async def held(calls: int = 3, *, of: int = 3) -> tuple[Slab, LocalCell]:
    """A slab for so many calls, with tokens and money for `of`."""
    cell = await local_cell(lane("lane", window(100), window(1000, name="tpm")), budget())
    charge = Charge(
        input_tokens=6 * of, output_tokens=4 * of, metered_tokens=12 * of, expected_nanousd=20 * of,
        bound_nanousd=30 * of,
    )  # fmt: skip
    request = structs.replace(wish("lane", scopes=("budget",), charge=charge), calls=calls)
    return Slab(Bookkeeper(cell), request, await cell.admit(request), 1.0, hard=True), cell


async def booked(slab: Slab, cell: LocalCell) -> tuple[int, int, dict[str, int]]:
    slab.close()
    slab.end_if_over()
    await slab._books._flush_some()
    (scope,), (state,) = await cell.scopes(["budget"]), await cell.lanes(["lane"])
    assert state.in_flight == 0
    return scope.settled, scope.held, {limit.name: limit.used for limit in state.limits}


def charged(name: str, value: int) -> Charge:
    return structs.replace(CALL, **{name: value})


@pytest.mark.parametrize(
    ("name", "most"),
    [("input_tokens", 18), ("output_tokens", 12), ("metered_tokens", 36), ("expected_nanousd", 60)],
)
async def test_a_call_takes_no_more_than_is_left(name: str, most: int) -> None:
    slab, _ = await held()
    assert not slab.take(b"a", charged(name, most + 1))
    assert slab.take(b"a", charged(name, most))
    assert not slab.take(b"b", charged(name, 1))
    assert slab.take(b"b", charged(name, 0))


async def test_calls_of_a_slab_never_cost_more_than_it_holds() -> None:
    slab, cell = await held(10, of=3)
    dear = charged("bound_nanousd", 60)
    taken = [rid for rid in (b"a", b"b", b"c") if slab.take(rid, structs.replace(dear, expected_nanousd=0))]
    assert taken == [b"a"]
    slab.ended(used(b"a", tokens=1, cost=45))
    assert (slab.bound, slab.take(b"b", charged("bound_nanousd", 46))) == (45, False)
    assert slab.take(b"b", charged("bound_nanousd", 45))
    slab.ended(used(b"b", tokens=1, cost=45))
    assert not slab.take(b"c", CALL)
    assert (await booked(slab, cell))[:2] == (90, 0)


async def test_a_slab_takes_so_many_calls_and_no_more() -> None:
    slab, _ = await held(2, of=9)
    assert [slab.take(rid, CALL) for rid in (b"a", b"b", b"c")] == [True, True, False]
    slab.ended(used(b"a"))
    assert not slab.take(b"c", CALL), "a call that has ended was counted by the provider all the same"
    slab.ended(Release(rid=b"b", sent=False))
    assert slab.take(b"c", CALL), "one that was never sent was not"


async def test_it_settles_the_sum_of_what_its_calls_used_when_the_last_has_ended() -> None:
    slab, cell = await held(5, of=5)
    for rid in (b"a", b"b", b"c"):
        assert slab.take(rid, CALL)
    slab.close()
    slab.ended(used(b"a", tokens=5, output=1, cost=7))
    slab.ended(Settlement(rid=b"b", input_tokens=2, output_tokens=1, cost_nanousd=-1))
    slab.end_if_over()
    assert not slab._books.waiting
    slab.ended(Release(rid=b"c", sent=True))
    slab.ended(used(b"c", cost=100))  # a second end of the same call
    assert await booked(slab, cell) == (7 + 30, 0, {"rpm": 3, "tpm": 6 + 3 + 12})


async def test_one_that_no_call_took_gives_everything_back() -> None:
    slab, cell = await held()
    assert slab.take(b"a", CALL)
    slab.ended(Release(rid=b"a", sent=False))
    assert await booked(slab, cell) == (0, 0, {"rpm": 0, "tpm": 0})


async def test_three_failures_in_a_row_end_it() -> None:
    slab, cell = await held(9, of=9)
    for number in range(4):
        slab.take(b"%d" % number, CALL)
    for number, outcome in enumerate((Outcome.FAILURE, Outcome.FAILURE, Outcome.SUCCESS, Outcome.FAILURE)):
        slab.ended(used(b"%d" % number, outcome=outcome, failed_lanes=1))
    assert (slab.closed, slab.worse) == (False, False)
    for number in range(2):
        slab.take(b"more%d" % number, CALL)
        slab.ended(Release(rid=b"more%d" % number, sent=True, failed_lanes=1))
    assert (slab.closed, slab.worse) == (True, True)
    await booked(slab, cell)
    (state,) = await cell.lanes(["lane"])
    assert (state.successes, state.failures, state.requests_total) == (1, 5, 6)


def test_a_bucket_with_slabs_keeps_back_what_drains_while_one_is_used() -> None:
    limit = replace(bucket(60, 1_000_000, burst=300), slabs=True)
    assert with_slack(limit).burst == 180
    assert capacities(LaneConfig(id="lane", limits=(limit,))) == [180]
    assert with_slack(bucket(60, burst=30)).burst == 30
    with pytest.raises(LedgerConfigError, match="slabs need a burst of at least 4 seconds"):
        capacities(LaneConfig(id="lane", limits=(replace(bucket(60, 1_000_000, burst=200), slabs=True),)))


async def test_near_a_limit_there_is_nothing_to_hold() -> None:
    _, cell = await held(94, of=1)
    means = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    lanes = await cell.lanes(["lane"])
    assert free_calls(lanes, [], means, holders=1) == 3
    assert free_calls(lanes, [], means, holders=2) == 1
    await cell.admit(structs.replace(wish("lane"), calls=1))
    assert free_calls(await cell.lanes(["lane"]), [], means, holders=1) == 0
    (scope,) = await cell.scopes(["budget"])
    assert free_calls([], [scope], [*means[:-1], 97.0], holders=1) == 5
