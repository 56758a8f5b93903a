"""How reservations end: by one write, seen or not, and until when a repeat is answered."""

from apikeyrouter.domain.models.accounting import Result
from tests.ledger.support import DAY, HOUR, MINUTE, SECOND, budget, cost, lane, local_cell, new_rid, used, wish


async def test_the_tombstone_of_a_settlement_answers_for_a_day_unless_it_was_acknowledged() -> None:
    cell = await local_cell(lane())
    kept, seen = await cell.admit(wish(lease_us=HOUR)), await cell.admit(wish(lease_us=HOUR))
    await cell.settle_many([used(kept.rid), used(seen.rid)])
    await cell.acknowledge([seen.rid])
    for step in (HOUR, DAY - SECOND):  # its lease is over, and it is buried; a day after that is not
        cell.time.advance(step)
        await cell.sweep()
        assert (await cell.settle(used(kept.rid))).result is Result.REPLAYED
        assert (await cell.settle(used(seen.rid))).result is Result.UNMATCHED
    cell.time.advance(SECOND)
    await cell.sweep()
    assert (await cell.settle(used(kept.rid))).result is Result.UNMATCHED


async def test_an_ended_reservation_counts_no_more_though_its_end_was_not_acknowledged() -> None:
    cell = await local_cell(lane(), budget())
    ended, open_one = [await cell.admit(wish(scopes=("budget",), charge=cost(1), lease_us=SECOND)) for _ in range(2)]
    await cell.settle(used(ended.rid))
    assert [record.rid for record in await cell.reservations()] == [open_one.rid]
    assert await cell.renew([ended.rid, open_one.rid], lease_us=SECOND) == [ended.rid]
    cell.time.advance(2 * SECOND)
    await cell.sweep()
    assert await cell.reservations() == []
    assert [record.rid for record in await cell.reservations(suspended=True)] == [open_one.rid]
    assert await cell.audit(lanes=["lane"], scopes=["budget"]) == []


async def test_an_acknowledgement_buries_only_what_has_ended_and_takes_old_tombstones_out() -> None:
    cell = await local_cell(lane())
    ended, open_one = await cell.admit(wish(lease_us=HOUR)), await cell.admit(wish(lease_us=HOUR))
    await cell.settle(used(ended.rid))
    await cell.acknowledge([ended.rid, open_one.rid, new_rid()])
    assert [record.rid for record in await cell.reservations()] == [open_one.rid]
    cell.time.advance(2 * MINUTE)
    await cell.acknowledge([new_rid()])
    assert (await cell.settle(used(ended.rid))).result is Result.UNMATCHED
    assert (await cell.settle(used(open_one.rid))).result is Result.OK
