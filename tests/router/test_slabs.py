"""A router under load, whose limits say `slabs: auto`: what comes from slabs is booked, explained and exact."""

import asyncio
from typing import Any

import pytest

from apikeyrouter.infrastructure.state_store.memory_store import InMemoryStateStore
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import SCOPE, House, house, until
from tests.servers import Server, default_flavour, running

pytestmark = pytest.mark.asyncio(loop_scope="package")
LIMITS = [{"quota_group": "org-a", "rpm": 300_000, "tpm": 60_000_000, "slabs": "auto"}]
BUDGET = {"name": "all", "scope": "global", "limit_usd": 1000, "period": "total", "enforcement": "hard"}
AT_ONCE = 16


async def under_load(made: House, *, until_admitted: int) -> None:
    """Requests, so many at once, until so many came from slabs."""

    async def one() -> None:
        while made.router.slabs.admitted < until_admitted:
            await made.route()

    async with asyncio.timeout(60):
        await asyncio.gather(*(one() for _ in range(AT_ONCE)))


async def test_what_comes_from_slabs_is_booked_once_and_told(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"], limits=LIMITS, budgets=[BUDGET]) as made:
        await under_load(made, until_admitted=100)
        slabs = made.router.slabs
        assert slabs.taken < slabs.admitted / 4
        by_slab = [facts for facts in made.finished if facts.slab]
        assert len(by_slab) >= 100
        explained = await made.router.explain(by_slab[-1].request_id)
        assert by_slab[-1].slab.hex() in explained.decision.explanation
        await made.router.drain()
        assert (slabs.held, slabs.stranded) == (0, (0, 0))
        (state,) = await made.router.ledger.scopes([SCOPE])
        assert (state.settled, state.held, state.suspense) == (await made.billed(), 0, 0)
        (lane,) = [lane for lane in await made.router.ledger.lanes(["g:org-a:*"]) if lane.limits]
        assert lane.requests_total == len(made.finished)
        assert lane.in_flight == 0
        assert await made.router.ledger.audit(lanes=[lane.id, "k:a1"], scopes=[SCOPE]) == []


@pytest.mark.parametrize(
    "limits",
    [
        [{**LIMITS[0], "slabs": "off"}],
        [{**LIMITS[0], "slabs": "auto"}, {"key": "a1", "rpm": 300_000}],
    ],
    ids=["off", "not every limit says so"],
)
async def test_without_the_word_of_every_limit_there_is_no_slab(
    simulator: SimulatorProcess, limits: list[dict[str, Any]]
) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"], limits=limits, budgets=[BUDGET]) as made:
        await asyncio.gather(*(made.route() for _ in range(200)))
        await made.router._housekeeper.tick()
        await asyncio.gather(*(made.route() for _ in range(50)))
        assert made.router.slabs.taken == 0
        through = made.router.slabs if len(limits) > 1 else made.router.ledger
        assert made.router._admissions.ledger is through


async def test_a_closed_router_gives_back_what_it_held(simulator: SimulatorProcess) -> None:
    with running(default_flavour()) as server:
        await _closed(simulator, server)


async def _closed(simulator: SimulatorProcess, server: Server) -> None:
    async with house(simulator, RedisStateStore(server.url), ["a1"], limits=LIMITS, budgets=[BUDGET]) as watching:
        async with house(simulator, RedisStateStore(server.url), ["a1"], limits=LIMITS, budgets=[BUDGET]) as made:
            await under_load(made, until_admitted=50)
        (state,) = await watching.router.ledger.scopes([SCOPE])
        assert (state.held, state.suspense) == (0, 0)
        assert state.settled == await watching.billed()


async def test_lowering_a_limit_ends_the_slabs(simulator: SimulatorProcess) -> None:
    async with house(simulator, InMemoryStateStore(), ["a1"], limits=LIMITS, budgets=[BUDGET]) as made:
        await under_load(made, until_admitted=50)
        await made.apply(["a1"], limits=[{**LIMITS[0], "slabs": "off"}], budgets=[BUDGET])
        await until(lambda: made.router.slabs.held == 0)
        before = made.router.slabs.admitted
        await asyncio.gather(*(made.route() for _ in range(100)))
        assert made.router.slabs.admitted == before
