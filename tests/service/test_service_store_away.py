"""A running service whose store is stopped: what is bounded is served and says so, and readiness tells the truth."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from apikeyrouter.infrastructure.state_store import redis_connection
from apikeyrouter.simulator import SimulatorProcess
from tests.router.house import until
from tests.servers import Server, default_flavour, running
from tests.service.running import Running, providers_of, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")
SIMULATED = {"organisations": [{"id": "org-a", "keys": ["sk-sim-away-number-1"], "output_tokens": 5}]}
BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that is ours to stop."""
    with running(default_flavour()) as made:
        yield made


def config(simulator: SimulatorProcess, **limit: Any) -> dict[str, Any]:
    """One key, of which twenty requests a day are known."""
    return {
        "providers": providers_of(simulator),
        "keys": [{"id": "k1", "provider": "openai", "key": "sk-sim-away-number-1", "quota_group": "org-a"}],
        "limits": [{"quota_group": "org-a", "rpd": 20, "kind": "fixed", "headroom": 0, **limit}],
    }


async def asked(made: Running) -> tuple[int, str | None]:
    """A request's status, and what its answer says of the store."""
    async with made.http() as client:
        answer = await client.post("/v1/chat/completions", json=BODY)
    return answer.status_code, answer.headers.get("x-akr-store")


async def ready(made: Running) -> tuple[int, str]:
    """What the probe is told."""
    async with made.http() as client:
        answer = await client.get("/health/ready")
    return answer.status_code, answer.json()["status"]


async def test_what_is_bounded_is_served_and_the_service_is_ready_for_it(server: Server) -> None:
    async with SimulatorProcess(SIMULATED) as simulator:
        bounded = config(simulator, on_store_loss="bounded", set_aside=0.5)
        async with running_service(server.url, bounded) as made:
            await until(lambda: made.runtime.router.standby.units == 1_000_000)
            assert await asked(made) == (200, None)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                answers = [await asked(made) for _ in range(12)]
                assert answers == [(200, "away")] * 10 + [(503, None)] * 2
                assert await ready(made) == (200, "store_unavailable_bounded")
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await until(lambda: not made.runtime.router.ledger.gate.away and not made.runtime.router.books.waiting)
            await until(lambda: _is_ready(made))
            assert await made.count("apikeyrouter_standby_admitted_total") == 10
            assert await made.count("apikeyrouter_store_away_total") == 1


async def test_who_looks_at_it_is_answered_at_once_with_what_is_known(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: long before the store's own clients give up."""
    monkeypatch.setattr(redis_connection, "ANSWER_SECONDS_MAX", 600.0)
    async with SimulatorProcess(SIMULATED) as simulator, running_service(server.url, config(simulator)) as made:
        assert await asked(made) == (200, None)
        async with made.http() as client, made.operator() as operator:
            assert "apikeyrouter_store_up 1" in (await client.get("/metrics")).text
            os.kill(server.pid, signal.SIGSTOP)
            try:
                metrics = (await client.get("/metrics")).text
                statuses = {path: (await operator.get(path)).status_code for path in ("/health/live", "/state")}
                while (await ready(made))[0] != 503:
                    """What was so a second ago is believed."""
                away = (await client.get("/metrics")).text
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert statuses == {"/health/live": 200, "/state": 503}
            for text in (metrics, away):
                assert 'apikeyrouter_key_state{key="k1"' in text
                assert "apikeyrouter_workers 1" in text
            assert "apikeyrouter_store_up 0" in away
            await until(lambda: _is_ready(made))


async def test_what_is_closed_is_refused_and_the_service_is_not_ready(server: Server) -> None:
    async with SimulatorProcess(SIMULATED) as simulator, running_service(server.url, config(simulator)) as made:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert [await asked(made) for _ in range(4)] == [(503, None)] * 4
            assert await ready(made) == (503, "store_unavailable")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await until(lambda: _is_ready(made))
        assert (await asked(made))[0] == 200


async def _is_ready(made: Running) -> bool:
    return await ready(made) == (200, "ready")
