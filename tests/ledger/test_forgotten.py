"""A store that forgot writes keeps an eighth of every limit and hard budget free for one lease (law 9)."""

import struct

import pytest
from msgspec import structs

from apikeyrouter.domain.models.accounting import LaneConfig, Limit, LimitKind, Reason, RetryKind, ScopeConfig
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger.codes import Code
from tests.ledger.support import (
    HOUR,
    SECOND,
    LocalCell,
    bucket,
    budget,
    calendar,
    cell_key,
    cost,
    in_flight,
    lane,
    local_cell,
    sliding,
    window,
    wish,
)

LEASE = 30 * SECOND
LIMITS = {
    "bucket": bucket(80), "fixed": window(80), "sliding": sliding(80), "calendar": calendar(80),
    "concurrency": in_flight(80), "small": window(9),
}  # fmt: skip


async def cell_that_forgot(*configs: LaneConfig | ScopeConfig) -> LocalCell:
    """A cell that lost everything, and has heard of it from the one worker."""
    cell = await local_cell(*configs)
    cell.engine.flush()
    await cell.open()
    await cell.put(lanes=[config for config in configs if isinstance(config, LaneConfig)],
                   scopes=[config for config in configs if isinstance(config, ScopeConfig)])  # fmt: skip
    assert await cell.note_forgotten(lease_us=LEASE) == cell.time.now_us + LEASE
    return cell


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS.keys())
async def test_an_eighth_of_every_limit_stays_free_until_the_lease_is_over(limit: Limit) -> None:
    cell = await cell_that_forgot(lane("lane", limit))
    most = limit.amount * 7 // 8
    for _ in range(most):
        await cell.admit(wish(lease_us=HOUR))
    denial = await cell.deny(wish())
    binding = denial.binding
    assert (binding.reason, binding.where, binding.limit) == (Reason.STORE_FORGOT, "lane", limit.name)
    assert (binding.retry_at_us, binding.retry_kind) == (cell.time.now_us + LEASE, RetryKind.ESTIMATED)
    cell.time.advance(LEASE - 1)
    if limit.kind is LimitKind.BUCKET:  # it drains, as fast as ever
        for _ in range(39):
            await cell.admit(wish(lease_us=HOUR))
        most = 39 + most - 40
    await cell.deny(wish())
    cell.time.advance(1)
    for _ in range(limit.amount - most):
        await cell.admit(wish(lease_us=HOUR))
    assert (await cell.deny(wish())).binding.reason is Reason.LIMIT


async def test_an_eighth_of_a_hard_budget_stays_free_and_none_of_a_soft_one() -> None:
    cell = await cell_that_forgot(lane(), budget(limit=800), budget("soft", limit=10, hard=False))
    await cell.admit(wish(scopes=("budget",), charge=cost(700)))
    denial = await cell.deny(wish(scopes=("budget",), charge=cost(1)))
    assert (denial.binding.reason, denial.binding.where) == (Reason.STORE_FORGOT, "budget")
    await cell.admit(wish(scopes=("budget",), charge=cost(0)))
    await cell.admit(wish(scopes=("soft",), charge=cost(500)))
    cell.time.advance(LEASE)
    await cell.admit(wish(scopes=("budget",), charge=cost(100)))


async def test_another_candidate_is_taken_where_the_first_keeps_its_eighth() -> None:
    cell = await cell_that_forgot(lane("small", in_flight(1)), lane("large", in_flight(100)))
    small, large = wish("small").candidates[0], wish("large").candidates[0]
    admission = await cell.admit(structs.replace(wish(), candidates=(small, large)))
    assert admission.index == 1
    assert [loss.reason for loss in admission.losses] == [Reason.STORE_FORGOT]


async def test_what_was_admitted_is_told_again_into_the_eighth() -> None:
    cell = await cell_that_forgot(lane("lane", in_flight(8)))
    for _ in range(7):
        await cell.admit(wish(lease_us=HOUR))
    late = wish(lease_us=HOUR)
    await cell.reassert(late, index=0)
    (state,) = await cell.lanes(["lane"])
    assert state.in_flight == 8
    assert (await cell.deny(wish())).binding.reason is Reason.LIMIT


async def test_who_has_nothing_new_to_say_of_a_loss_extends_nothing() -> None:
    cell = await cell_that_forgot(lane())
    assert await cell.note_forgotten(lease_us=LEASE) == 0, "it was told once"
    answers = []
    for epoch, seq in ((1, 2), (1, 1), (1, 2), (1, 3), (2, 1)):
        cell.time.advance(SECOND)
        code, _, _, now_us, _, until_us = await cell.engine.run("forgot", [epoch, seq, LEASE])
        answers.append((code, until_us - now_us))
    new, known = (Code.OK, LEASE), Code.REPLAYED
    assert answers == [new, (known, LEASE - SECOND), (known, LEASE - 2 * SECOND), new, new]


async def test_a_worker_tells_of_the_last_answer_that_it_saw() -> None:
    cell = await local_cell(lane())
    assert await cell.note_forgotten(lease_us=LEASE) == 0, "nothing was forgotten"
    await cell.admit(wish())
    seen = cell.stamp
    cell._on_another_server()
    await cell.admit(wish())
    cell._on_another_server()
    assert await cell.note_forgotten(lease_us=LEASE) > 0
    told = struct.unpack("<2d", cell.image()["L"][b"forgot"])
    assert told[0] == seen.epoch
    assert told[1] > seen.seq


async def test_a_cell_of_a_version_that_knew_no_caution_is_read_and_not_cautious() -> None:
    cell = await local_cell(lane("lane", in_flight(1)))
    doors, key = cell.engine._lua.globals(), cell_key("L").encode()
    doors[b"poke"](key, b"", bytes(doors[b"peek"](key)[b""])[:72])
    await cell.admit(wish())


async def test_an_absurd_lease_is_refused_and_an_absurd_setting_is_capped() -> None:
    cell = await local_cell(lane())
    with pytest.raises(LedgerConfigError):
        await cell._run("forgot", [1, 1, HOUR + 1])
    cell._on_another_server()
    assert await cell.note_forgotten(lease_us=9 * HOUR) == cell.time.now_us + HOUR
