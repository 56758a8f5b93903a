"""The server's functions are flushed again and again while processes are under load: nobody is told, all is booked."""

import asyncio
from collections.abc import Sequence

import pytest

from apikeyrouter.domain.models.accounting import Candidate, LaneConfig, ReserveRequest
from apikeyrouter.domain.models.system_error import LedgerRefusedError, LedgerUnavailableError
from apikeyrouter.infrastructure.ledger.engine import Argument
from apikeyrouter.infrastructure.ledger.ledger import ScriptLedger
from apikeyrouter.infrastructure.ledger.redis_engine import RedisEngine
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.faults.plan import KEYS, PARTS
from tests.faults.test_failover import FLAVOURS, booked_in_the_end, callers
from tests.router.house import SIMULATED, house
from tests.servers import binaries, default_flavour, running

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not binaries(), reason="no server programs here"),
]
ANSWERS, FLUSHES = 40, 20
PAUSE_SECONDS = 0.02
WAIT_SECONDS_MAX = 100.0
"""Processes begin slowly on a busy machine."""


class Silent(RedisEngine):
    """An engine whose second tries run, and are not answered."""

    async def _call(self, name: str, args: Sequence[Argument], pool: str) -> object:
        await super()._call(name, args, pool)
        await asyncio.Event().wait()
        raise AssertionError("it waits for ever")


async def test_a_reserve_that_is_refused_first_and_then_not_answered_is_cancelled() -> None:
    with running(default_flavour()) as server, server.client() as client:
        ledger = ScriptLedger(RedisEngine(server.url))
        await ledger.open()
        await ledger.put(lanes=[LaneConfig(id="lane")])
        doubtful = ScriptLedger(Silent(server.url))
        await doubtful.open()
        client.function_flush()
        unanswered: list[bytes] = []
        doubtful.on_unanswered = unanswered.append
        request = ReserveRequest(rid=bytes(16), candidates=(Candidate(lanes=("lane",)),))
        with pytest.raises(LedgerUnavailableError) as raised:
            await doubtful.reserve(request)
        assert not isinstance(raised.value, LedgerRefusedError), "nobody knows whether it ran"
        assert unanswered == [request.rid]
        (lane,) = await ledger.lanes(["lane"])
        assert lane.in_flight == 1, "it ran"
        await ledger.cancel(request.rid)
        (lane,) = await ledger.lanes(["lane"])
        assert lane.in_flight == 0
        await doubtful.close()
        await ledger.close()


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_functions_that_are_flushed_at_any_moment_under_load_cost_no_settlement(flavour: str) -> None:
    with running(flavour) as server, server.client() as client:
        async with SimulatorProcess(SIMULATED) as simulator, callers(server.url, simulator) as working:
            flushes = 0
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                while flushes < FLUSHES or any(process.facts["answered"] < ANSWERS for process in working):
                    if any(process.facts["answered"] for process in working):
                        client.function_flush()
                        client.script_flush()
                        flushes += 1
                    await asyncio.sleep(PAUSE_SECONDS)
            told = [await process.stop() for process in working]
            assert all(facts["forgotten"] == 0 for facts in told), "a flush of functions loses no data"
            async with house(simulator, RedisStateStore(server.url), KEYS, **PARTS) as made:
                cost = sum(facts["cost"] for facts in told)
                assert await made.billed() == cost > 0
                assert await booked_in_the_end(made, cost)
