"""A budget that three cells spend: never more than there is, and nobody denied while there is some."""

import asyncio
import random

import pytest

from apikeyrouter.domain.models.accounting import Admission, Denial, Period, Reason, RetryKind
from apikeyrouter.domain.models.escrow import ChildBooks
from apikeyrouter.domain.models.system_error import LedgerUnavailableError
from tests.cells.parts import SCOPE, cells
from tests.ledger.support import DAY, SECOND

pytestmark = pytest.mark.asyncio


async def test_three_cells_spend_one_budget_to_its_last_nanodollar() -> None:
    async with cells(1000) as made:
        admitted = sum([await made.spend(at % 3, 7) for at in range(300)])
        assert admitted == 1000 // 7
        assert await made.spent() == 142 * 7
        assert await made.spend(1, 6)
        assert not await made.spend(2, 1)
        assert await made.spent() == 1000


async def test_money_that_lies_in_another_cell_is_called_back_before_a_request_is_denied() -> None:
    async with cells(1000) as made:
        books = await made.ledger.home.grant(SCOPE, 1, await made.ledger.cells[1].fund(SCOPE), asked=1000)
        await made.ledger.cells[1].fund(SCOPE, start_us=books.start_us, granted=1000)
        assert (await made.home()).free == 0
        assert await made.spend(2, 600)
        assert await made.spend(0, 400)
        assert not await made.spend(1, 1)


async def test_a_request_larger_than_a_cells_part_is_no_request_that_never_fits() -> None:
    async with cells(1000) as made:
        assert await made.spend(1, 900)
        denial = await made.reserve(2, 200)
        assert isinstance(denial, Denial)
        assert (denial.binding.reason, denial.binding.retry_kind) == (Reason.BUDGET, RetryKind.ESTIMATED)
        never = await made.reserve(2, 1001)
        assert isinstance(never, Denial)
        assert (never.binding.reason, never.binding.retry_kind) == (Reason.NEVER_FITS, RetryKind.NEVER)


async def test_a_period_begins_with_nothing_funded_and_late_money_goes_to_its_own() -> None:
    async with cells(1000) as made:
        held = await made.reserve(1, 300)
        assert isinstance(held, Admission)
        assert await made.spend(1, 600)
        made.clock.advance(DAY)
        looked = await made.ledger.cells[1].fund(SCOPE)
        assert (looked.funded, looked.settled, looked.free) == (0, 0, 0)
        assert await made.spend(1, 1000)
        await made.ledger.cells[1].release(held.rid, sent=False)
        assert not await made.spend(2, 1)
        (state,) = await made.ledger.scopes([SCOPE])
        assert (state.settled, state.held, state.granted) == (1000, 0, 0)


async def test_what_was_told_of_another_period_changes_nothing() -> None:
    async with cells(1000) as made:
        home, child = made.ledger.home, made.ledger.cells[1]
        yesterday = await home.grant(SCOPE, 1, await child.fund(SCOPE), asked=400)
        made.clock.advance(DAY)
        late = await child.fund(SCOPE, start_us=yesterday.start_us, granted=400)
        assert late.funded == 0
        told = await home.grant(SCOPE, 1, ChildBooks(yesterday.start_us, 0, 400, 300), asked=100)
        assert told.sums[0] == (0, 0)


@pytest.mark.parametrize("hard", [True, False])
async def test_a_soft_budget_refuses_nobody_and_says_when_it_is_exceeded(hard: bool) -> None:
    async with cells(100, hard=hard, period=Period.TOTAL) as made:
        answers = [await made.reserve(1, 60) for _ in range(2)]
        if hard:
            assert [type(answer) for answer in answers] == [Admission, Denial]
        else:
            assert all(isinstance(answer, Admission) for answer in answers)
            assert answers[1].soft_exceeded == (SCOPE,)  # type: ignore[union-attr]


async def test_the_books_of_all_cells_add_up() -> None:
    async with cells(1000) as made:
        assert await made.spend(0, 100)
        assert await made.spend(1, 200, cost=150)
        assert isinstance(await made.reserve(2, 50), Admission)
        (state,) = await made.ledger.scopes([SCOPE])
        assert (state.limit, state.settled, state.held, state.suspense) == (1000, 250, 50, 0)
        assert {name: (one.settled, one.held) for name, one in state.cells} == {
            "main": (100, 0), "north": (150, 0), "south": (0, 50),
        }  # fmt: skip
        assert await made.ledger.audit(lanes=["g:n:*"], scopes=[SCOPE]) == []


async def test_a_lowered_limit_is_fetched_from_where_the_money_lies() -> None:
    async with cells(1000) as made:
        child = made.ledger.cells[1]
        books = await made.ledger.home.grant(SCOPE, 1, await child.fund(SCOPE), asked=800)
        await child.fund(SCOPE, start_us=books.start_us, granted=800)
        made.scope = type(made.scope)(id=SCOPE, limit_nanousd=100, hard=True, period=Period.DAILY)
        await made.ledger.put(scopes=[made.scope])
        await made.escrow.tick()
        assert (await child.fund(SCOPE)).free == 0
        assert (await made.home()).free == 100


async def test_a_cell_that_runs_low_is_filled_and_one_that_lies_idle_is_emptied() -> None:
    async with cells(1_000_000) as made:
        for _ in range(10):
            assert await made.spend(1, 100)
            made.clock.advance(SECOND)
            await made.escrow.tick()
        filled = await made.ledger.cells[1].fund(SCOPE)
        assert 100 <= filled.free <= 1000
        for _ in range(2):
            made.clock.advance(20 * SECOND)
            await made.escrow.tick()
        assert (await made.ledger.cells[1].fund(SCOPE)).free == 0
        assert (await made.home()).free == 1_000_000 - 1000


async def test_many_at_once_in_all_cells_are_admitted_to_the_limit_exactly() -> None:
    async with cells(1000) as made:
        chance = random.Random(7)
        answers = await asyncio.gather(*(made.reserve(chance.randrange(3), 10) for _ in range(400)))
        assert sum(isinstance(answer, Admission) for answer in answers) == 100


async def test_a_new_period_spends_nothing_of_the_money_of_the_last() -> None:
    async with cells(1000) as made:
        books = await made.ledger.home.grant(SCOPE, 1, await made.ledger.cells[1].fund(SCOPE), asked=800)
        await made.ledger.cells[1].fund(SCOPE, start_us=books.start_us, granted=800)
        made.clock.advance(DAY)
        assert await made.spend(0, 1000)
        assert not await made.spend(1, 1)


async def test_what_is_told_twice_is_credited_and_returned_once() -> None:
    async with cells(1000) as made:
        home, child = made.ledger.home, made.ledger.cells[1]
        told = await home.grant(SCOPE, 1, await child.fund(SCOPE), asked=400)
        for _ in range(2):
            assert (await child.fund(SCOPE, start_us=told.start_us, granted=400)).free == 400
        for _ in range(2):
            books = await child.fund(SCOPE, start_us=told.start_us, recall=150)
            assert (books.returned, books.free) == (150, 250)
        for _ in range(2):
            assert (await home.grant(SCOPE, 1, books)).free == 750


async def test_money_is_given_back_before_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cells(1000) as made:
        child = made.ledger.cells[1]
        books = await made.ledger.home.grant(SCOPE, 1, await child.fund(SCOPE), asked=800)
        await child.fund(SCOPE, start_us=books.start_us, granted=800)
        fund = child.fund

        async def unheard(scope: str, **told: int) -> ChildBooks:
            if told.get("recall"):
                raise LedgerUnavailableError("lost on its way")
            return await fund(scope, **told)

        monkeypatch.setattr(child, "fund", unheard)
        assert not await made.spend(2, 600)
        assert await made.spend(1, 800)
        made.clock.advance(SECOND)
        assert not await made.spend(2, 600)
