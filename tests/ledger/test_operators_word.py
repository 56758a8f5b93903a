"""What an operator knows better than the books: a limit that has counted nothing, a lane that need not cool."""

import pytest

from apikeyrouter.domain.models.accounting import Limit, Reason
from apikeyrouter.domain.models.system_error import LedgerConfigError
from tests.ledger.support import HOUR, bucket, calendar, cost, lane, local_cell, sliding, window, wish


@pytest.mark.parametrize("limit", [bucket(3), window(3), calendar(3), sliding(3)], ids=lambda each: str(each.kind))
async def test_a_limit_that_begins_anew_has_counted_nothing_and_takes_nothing_back(limit: Limit) -> None:
    cell = await local_cell(lane("lane", limit, bucket(3, name="tpm")))
    before = [await cell.admit(wish(charge=cost(1, tokens=1))) for _ in range(3)]
    await cell.restart("lane", limits=[limit.name, "tpm"])
    for _ in range(3):
        await cell.admit(wish(charge=cost(1, tokens=1)))
    for admission in before:
        await cell.release(admission.rid, sent=False)
    assert (await cell.deny(wish(charge=cost(1, tokens=1)))).binding.reason is Reason.LIMIT


async def test_a_limit_that_nobody_knows_does_not_begin_anew() -> None:
    cell = await local_cell(lane("lane", bucket(3)))
    await cell.admit(wish())
    before = cell.image()
    with pytest.raises(LedgerConfigError, match="no limit is called 'rpn'"):
        await cell.restart("lane", limits=["rpn"])
    assert cell.image() == before


async def test_a_lane_cools_no_more_when_an_operator_says_so() -> None:
    cell = await local_cell(lane("lane", bucket(3)))
    await cell.record("lane", blocked_for_us=HOUR)
    assert (await cell.deny(wish())).binding.reason is Reason.COOLDOWN
    await cell.restart("lane", cooling=True)
    await cell.admit(wish())
