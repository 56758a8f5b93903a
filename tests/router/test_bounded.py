"""Routers whose limits are bounded, and whose store is away: they serve from their share, and the books agree after."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from apikeyrouter.domain.models.system_error import LedgerUnavailableError
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import SCOPE, House, house, until
from tests.servers import Server, default_flavour, running

pytestmark = pytest.mark.asyncio(loop_scope="package")
BUDGET = {
    "name": "all", "scope": "global", "limit_usd": 1000, "period": "total", "enforcement": "soft",
    "on_store_loss": "bounded",
}  # fmt: skip
HARD = {**BUDGET, "name": "hard", "enforcement": "hard", "on_store_loss": "closed"}
PURSED = {**BUDGET, "name": "pursed", "enforcement": "hard", "limit_usd": 0.0004, "set_aside": 0.5}
PURSED_ID = "global:pursed"
PURSE_NANOUSD = 100_000
"""What each of two routers holds of it."""
LIMIT = 40
LIMITS = [
    {"quota_group": "org-a", "rpd": LIMIT, "kind": "fixed", "headroom": 0, "on_store_loss": "bounded", "set_aside": 0.5}
]


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that is ours to stop."""
    with running(default_flavour()) as made:
        yield made


async def served(made: House, count: int, **parameters: object) -> int:
    """How many of so many requests were answered; the others were told that the store is away, or full."""
    answers = await asyncio.gather(*(made.route(parameters=parameters) for _ in range(count)), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, LedgerUnavailableError):
            raise answer
    return sum(not isinstance(answer, BaseException) for answer in answers)


async def test_two_routers_serve_from_their_shares_while_the_server_is_stopped(
    simulator: SimulatorProcess, server: Server
) -> None:
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(
                house(simulator, RedisStateStore(server.url), ["a1"], limits=LIMITS, budgets=[BUDGET])
            )
            for _ in range(2)
        ]
        await until(lambda: all(one.router.standby.units == 500_000 for one in made))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            total = 0
            for one in made:
                for _ in range(4):
                    total += await served(one, 5)
                assert one.router.ledger.gate.away
                assert await served(one, 3) == 0  # the share is used up
            assert total == LIMIT // 2
            explained = await made[0].router.explain(made[0].finished[3].request_id)
            assert "store was away" in explained.decision.explanation
            assert {facts.standby for one in made for facts in one.finished if facts.outcome == "ok"} == {True}
        finally:
            os.kill(server.pid, signal.SIGCONT)
        for one in made:
            await until(lambda one=one: not one.router.ledger.gate.away and not one.router.books.waiting)
        (state,) = await made[0].router.ledger.scopes([SCOPE])
        assert (state.settled, state.held, state.suspense) == (await made[0].billed(), 0, 0)
        assert state.settled > 0
        (lane,) = [lane for lane in await made[0].router.ledger.lanes(["g:org-a:*"]) if lane.limits]
        assert lane.limits[0].used == LIMIT // 2


async def test_a_hard_budget_pays_from_what_each_router_holds_of_it_and_is_settled_at_what_that_did_cost(
    simulator: SimulatorProcess, server: Server
) -> None:
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(house(simulator, RedisStateStore(server.url), ["a1"], budgets=[PURSED]))
            for _ in range(2)
        ]
        ledger = made[0].router.ledger
        await until(lambda: all(one.router.standby.stands for one in made))
        await until(lambda: held_is(made[0], PURSE_NANOUSD * 2))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            counts = [0, 0]
            for at, one in enumerate(made):
                while more := await served(one, 4, max_tokens=20):
                    counts[at] += more
                assert one.router.ledger.gate.away
            assert min(counts) > 0
            billed = await made[0].billed()
            assert billed <= 2 * PURSE_NANOUSD
            assert {facts.standby for one in made for facts in one.finished if facts.outcome == "ok"} == {True}
        finally:
            os.kill(server.pid, signal.SIGCONT)
        for one in made:
            await until(lambda one=one: not one.router.ledger.gate.away and not one.router.books.waiting)
        await until(lambda: settled_is(made[0], billed))
        (state,) = await ledger.scopes([PURSED_ID])
        assert state.settled + state.held + state.suspense <= state.limit
        assert state.suspense == 0


async def held_is(made: House, nanousd: int) -> bool:
    """Whether so much is held of the budget."""
    return sum(state.held for state in await made.router.ledger.scopes([PURSED_ID])) == nanousd


async def settled_is(made: House, nanousd: int) -> bool:
    """Whether so much is booked in it."""
    return sum(state.settled for state in await made.router.ledger.scopes([PURSED_ID])) == nanousd


@pytest.mark.parametrize(
    "parts",
    [
        {"limits": [{**LIMITS[0], "on_store_loss": "closed", "set_aside": None}], "budgets": [BUDGET]},
        {"limits": LIMITS, "budgets": [{**BUDGET, "on_store_loss": "closed"}]},
        {"limits": LIMITS, "budgets": [BUDGET, HARD]},
    ],
    ids=["lane", "soft budget", "hard budget"],
)  # fmt: skip
async def test_what_is_closed_serves_nobody(
    simulator: SimulatorProcess, server: Server, parts: dict[str, object]
) -> None:
    limits = [{k: v for k, v in row.items() if v is not None} for row in parts["limits"]]  # type: ignore[attr-defined]
    store = RedisStateStore(server.url)
    async with house(simulator, store, ["a1"], limits=limits, budgets=parts["budgets"]) as made:
        await until(lambda: made.router.standby.units or parts["limits"] != LIMITS)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert await served(made, 5) == 0
            assert (await made.seen("org-a"))["arrived"] == 0
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await until(lambda: not made.router.ledger.gate.away)
        assert await served(made, 1) == 1
