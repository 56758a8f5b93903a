"""`x-akr-dry-run`: what would happen to a request, without anything happening."""

from typing import Any

import pytest

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

DRY = {"x-akr-dry-run": "true"}
CHAT: tuple[str, dict[str, Any]] = (
    "/v1/chat/completions", {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
)  # fmt: skip
MESSAGES: tuple[str, dict[str, Any]] = (
    "/v1/messages",
    {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True},
)


@pytest.mark.parametrize(
    "asked", [CHAT, (CHAT[0], {**CHAT[1], "stream": True}), MESSAGES], ids=["whole", "stream", "anthropic"]
)
async def test_a_dry_run_tells_who_would_serve_and_touches_nothing(
    simulator: SimulatorProcess, service: Running, asked: tuple[str, dict[str, Any]]
) -> None:
    path, body = asked
    async with service.http() as client:
        told = (await client.post(path, json=body, headers=DRY)).json()
        assert await simulator.journal() == []
        again = (await client.post(path, json=body, headers=DRY)).json()
        real = await client.post(path, json=body, headers={"x-akr-dry-run": "false"})
    assert (told["object"], told["would_be_served"], told["model"]) == ("routing.dry_run", True, body["model"])
    assert told["key_id"] in told["explanation"]
    assert again["key_id"] == told["key_id"] == real.headers["x-akr-key-id"]
    assert len(await simulator.journal()) == 1
    assert await service.count("apikeyrouter_requests_total") == 1


async def test_a_dry_run_tells_that_there_is_no_room(
    simulator: SimulatorProcess, service_valkey: Server, config: dict[str, Any]
) -> None:
    config["budgets"] = [
        {"name": "none", "scope": "global", "limit_usd": 0.0000001, "period": "total", "enforcement": "hard"}
    ]
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        told = (await client.post(CHAT[0], json=CHAT[1], headers=DRY)).json()
        refused = await client.post(CHAT[0], json=CHAT[1])
    assert (told["would_be_served"], told["key_id"]) == (False, None)
    assert "none" in told["explanation"]
    assert refused.status_code == 429
    assert await simulator.journal() == []


async def test_a_dry_run_is_wrong_where_the_request_is(service: Running) -> None:
    async with service.http() as client:
        unclear = await client.post(CHAT[0], json=CHAT[1], headers={"x-akr-dry-run": "perhaps"})
        unknown = await client.post(CHAT[0], json={**CHAT[1], "model": "nobody-has-it"}, headers=DRY)
    assert (unclear.status_code, "x-akr-dry-run" in unclear.json()["error"]["message"]) == (400, True)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
