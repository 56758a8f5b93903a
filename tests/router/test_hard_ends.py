"""Ends of which nobody told what was used, under a hard budget: it books the bound that it held, never too little."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from apikeyrouter import ProviderError
from apikeyrouter.domain.interfaces.state_store import StateStore
from apikeyrouter.infrastructure.adapters.transport import Timeouts
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import House, house, intent, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
BUDGETS: list[dict[str, Any]] = [
    {"name": "all", "scope": "global", "limit_usd": 1000, "period": "total", "enforcement": "soft"},
    {"name": "hard", "scope": "global", "limit_usd": 1, "period": "total", "enforcement": "hard"},
]
LONG = "a long question, the answer to which nobody can foresee " * 5


async def bound_of(made: House) -> tuple[Decimal, Decimal]:
    """What such a request is expected to cost, and at most."""
    estimate = await made.router.cost_controller.estimate_request_cost(intent(LONG))
    assert estimate is not None
    assert estimate.bound is not None
    return estimate.amount, estimate.bound


async def spent(made: House) -> dict[str, Decimal]:
    """By budget."""
    await made.at_rest()
    budgets = await made.router.cost_controller.list_budgets()
    return {budget.name: budget.current_spending for budget in budgets}


@pytest.mark.parametrize("failure", ["cut_mid_stream", "truncate", "disconnect", "cut_mid_body", "stall_mid_stream"])
async def test_what_broke_is_booked_by_its_bound(simulator: SimulatorProcess, store: StateStore, failure: str) -> None:
    async with house(simulator, store, ["a1"], budgets=BUDGETS) as made:
        made.router.timeouts = Timeouts(connect=2.0, first_byte=5.0, idle=0.3, total=5.0)
        expected, bound = await bound_of(made)
        await simulator.fail(failure, count=1)
        with pytest.raises(ProviderError):
            await (made.route(LONG) if failure in ("disconnect", "cut_mid_body") else made.stream(LONG))
        told = await spent(made)
        assert told["hard"] == bound >= Decimal(await made.billed()) / 10**9
        assert told["all"] == pytest.approx(expected, rel=Decimal("0.01")), "the body of a stream is a little longer"
        (facts,) = made.finished
        assert facts.cost_estimated
        assert facts.cost_nanousd == told["all"] * 10**9


async def test_what_was_left_is_booked_by_its_bound(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["s1"], budgets=BUDGETS) as made:
        _, bound = await bound_of(made)
        stream = made.router.route_stream(intent(LONG))
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        asking = asyncio.create_task(made.route(LONG))
        await until(lambda: len(made.router.books.open) == 1)
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        told = await spent(made)
        assert told["hard"] in (bound, 2 * bound), "the second may have ended before it was sent"
        assert told["hard"] >= Decimal(await made.billed()) / 10**9
        assert told["all"] * 10**9 == sum(facts.cost_nanousd or 0 for facts in made.finished)


async def test_what_was_told_is_booked_as_told(simulator: SimulatorProcess, store: StateStore) -> None:
    async with house(simulator, store, ["a1"], budgets=BUDGETS) as made:
        await made.route(LONG)
        await made.stream(LONG)
        told = await spent(made)
        assert told["hard"] == told["all"] == Decimal(await made.billed()) / 10**9


async def test_what_it_really_cost_is_no_news_to_a_hard_budget_that_booked_the_bound(
    simulator: SimulatorProcess, store: StateStore
) -> None:
    async with house(simulator, store, ["a1"], budgets=BUDGETS) as made:
        _, bound = await bound_of(made)
        await simulator.fail("cut_mid_stream", count=1)
        with pytest.raises(ProviderError):
            await made.stream(LONG)
        await made.at_rest()
        expected = Decimal(made.finished[0].cost_nanousd or 0) / 10**9
        real = (expected + bound) / 2
        booked = await made.router.cost_controller.record_actual_cost(made.finished[0].request_id, real)
        assert booked == real - expected
        assert await spent(made) == {"all": real, "hard": bound}
