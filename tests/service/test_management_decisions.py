"""What a decision tells of a request after its end, and a reservation of the call that it is held for."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from apikeyrouter.domain.components.reservation_ids import process_tag
from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, providers_of, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def service(service_valkey: Server, shared_simulator: SimulatorProcess) -> AsyncIterator[Running]:
    await shared_simulator.reset()
    keys = [
        {"id": "refused", "provider": "openai", "key": "sk-nobody-knows", "models": ["gpt-4o-mini"]},
        {"id": "good", "provider": "openai", "key": "sk-sim-service-1", "models": ["gpt-4o-mini"]},
        {"id": "late", "provider": "openai", "key": "sk-sim-late", "models": ["gpt-4o"]},
    ]
    budgets = [{"name": "all", "scope": "global", "limit_usd": 10, "period": "daily"}]
    config = {"providers": providers_of(shared_simulator), "keys": keys, "budgets": budgets}
    async with running_service(service_valkey.url, config) as started:
        yield started


async def _get(service: Running, path: str, **params: Any) -> Any:
    async with service.operator() as client:
        answer = await client.get(f"/api/v1{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def test_a_retried_request_tells_each_attempt_what_it_took_and_what_it_cost(service: Running) -> None:
    async with service.http() as caller:
        ids = [(await caller.post("/v1/chat/completions", json=CHAT)).headers["x-request-id"] for _ in range(4)]
    decisions = [await _get(service, f"/decisions/{id_}") for id_ in ids]
    told = next(one for one in decisions if one["attempts"] == 2)
    first, second = told["tried"]
    assert (first["key_id"], first["status"], second["key_id"], second["failure"]) == ("refused", 401, "good", "")
    assert first["failure"] == "authentication_error"
    assert first["worker"] == second["worker"] == process_tag()
    assert [first["reservation_id"], second["reservation_id"]] == told["hold_ids"]
    assert (told["outcome"], told["team"], told["stream"]) == ("ok", None, False)
    assert 0 < told["upstream_us"] < told["total_us"]
    assert second["reserve_us"] > 0
    assert told["output_tokens"] <= second["expected_output_tokens"] == 9
    assert float(told["cost"]) > 0
    assert float(second["expected_cost"]) > 0
    listed = next(
        one for one in (await _get(service, "/decisions", only="retried"))["decisions"] if one["id"] == told["id"]
    )
    assert all(one["attempts"] > 1 for one in (await _get(service, "/decisions", only="retried"))["decisions"])
    assert listed["cost"] == told["cost"]
    assert "tried" not in listed


async def test_a_refused_request_tells_that_nothing_was_tried(service: Running) -> None:
    async with service.http() as caller:
        answer = await caller.post("/v1/chat/completions", json={**CHAT, "max_tokens": 200_000_000})
    told = await _get(service, f"/decisions/{answer.headers['x-request-id']}")
    refused = (await _get(service, "/decisions", only="refused"))["decisions"]
    assert told["id"] in [one["id"] for one in refused]
    assert not any(one["selected_key_id"] for one in refused)
    assert (answer.status_code >= 400, told["tried"], told["cost"], told["outcome"] not in ("ok", "")) == (
        True, [], None, True,
    )  # fmt: skip


async def test_an_open_reservation_tells_the_call_that_it_is_held_for(service: Running) -> None:
    body = {**CHAT, "model": "gpt-4o", "stream": True}

    async def call() -> None:
        async with service.http(headers={"x-request-id": "still-open"}) as caller:
            await caller.post("/v1/chat/completions", json=body)

    task = asyncio.create_task(call())
    try:
        found: list[Any] = []

        async def held() -> bool:
            found[:] = (await _get(service, "/reservations"))["reservations"]
            return bool(found)

        await wait_until(held)
        assert found[0]["worker"] == process_tag()
        assert found[0]["call"] == {
            "request_id": "still-open", "model": "gpt-4o", "client": None, "attempt": 1, "stream": True,
        }  # fmt: skip

        async def is_told_to_the_others() -> bool:
            await service.runtime.fleet.beat()
            return [call.request_id for one in await service.runtime.fleet._all() for call in one.oldest] == [
                "still-open"
            ]

        await wait_until(is_told_to_the_others)
    finally:
        task.cancel()
        await asyncio.wait([task])
