"""SIGSTOP of a worker for longer than its lease: others get its slots; it goes on with its own open calls and no more,
and ends them when it wakes."""

import asyncio
import os
import signal

import pytest

from apikeyrouter.domain.models.system_error import ApiKeyRouterError
from apikeyrouter.infrastructure.state_store.redis_store import RedisStateStore
from apikeyrouter.simulator import SimulatorProcess
from tests.faults.plan import CONCURRENCY, KEYS, LEASE_MS, PARTS
from tests.faults.test_kill import STREAMS, organisations, orphans, said, sweep_all, worker
from tests.router.house import SIMULATED, House, house, intent, until

LONG = bool(os.environ.get("AKR_LONG"))
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not LONG, reason="the long variant: AKR_LONG=1, make faults"),
]


async def begun(made: House) -> bool:
    """Whether a stream was begun that the ledger admitted, whatever its provider says."""
    stream = made.router.route_stream(intent(provider_id="openai"))
    try:
        await anext(stream)
    except ApiKeyRouterError:
        return False
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
    return True


async def test_a_worker_stopped_for_longer_than_its_lease_is_over_by_its_own_calls_at_most(redis_url: str) -> None:
    async with (
        SimulatorProcess(SIMULATED) as simulator,
        house(simulator, RedisStateStore(redis_url), KEYS, **PARTS) as made,
        worker(redis_url, simulator) as process,
    ):
        await said(process)
        assert (await said(process))["open"] == STREAMS
        os.kill(process.pid, signal.SIGSTOP)
        held = {record.rid for record in await orphans(made, set()) if "g:org-s:*" in record.lanes}
        assert len(held) == STREAMS
        lease_over = made.router.ledger.stamp.now_us + LEASE_MS * 1000
        await until(lambda: made.router.ledger.stamp.now_us > lease_over)
        await sweep_all(made)
        assert held.isdisjoint(record.rid for record in await made.router.ledger.reservations())
        seen = (await organisations(simulator))["org-s"]
        assert seen["in_flight"] == STREAMS, "the provider has its calls still"
        tried = await asyncio.gather(*(begun(made) for _ in range(CONCURRENCY - STREAMS + 5)))
        assert sum(tried) >= 1
        after = (await organisations(simulator))["org-s"]
        assert after["over_limit"] <= STREAMS, "over by more than its own open calls"
        assert after["peak_concurrency"] <= CONCURRENCY

        os.kill(process.pid, signal.SIGCONT)

        async def aborted() -> bool:
            return bool((await organisations(simulator))["org-s"]["in_flight"] == 0)

        await until(aborted)
        await until(lambda: made.router.in_flight == 0)
        await sweep_all(made)
        (lane,) = await made.router.ledger.lanes(["g:org-s:*"])
        assert lane.in_flight == 0
