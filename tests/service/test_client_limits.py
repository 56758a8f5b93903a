"""What a client is told of its own limits, on every answer."""

from typing import Any

import pytest

from tests.servers import Server
from tests.service.running import running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
MESSAGES: dict[str, Any] = {**BODY, "model": "claude-haiku-4-5", "max_tokens": 5}


async def test_answers_tell_what_is_left_of_the_clients_limits(service_valkey: Server, config: dict[str, Any]) -> None:
    config["clients"] = [
        {"name": "limited", "token": "a-token-that-is-long", "rpm": 3, "tpm": 100_000, "concurrency": 7},
        {"name": "free", "token": "another-token-that-is-long"},
    ]
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        limited = {"authorization": "Bearer a-token-that-is-long"}
        whole = await client.post("/v1/chat/completions", json=BODY, headers=limited)
        streamed = await client.post("/v1/chat/completions", json={**BODY, "stream": True}, headers=limited)
        other = await client.post("/v1/messages", json=MESSAGES, headers=limited)
        denied = await client.post("/v1/chat/completions", json=BODY, headers=limited)
        free = await client.post("/v1/chat/completions", json=BODY, headers={"x-api-key": "another-token-that-is-long"})
    answers = (whole, streamed, other, denied)
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-limit-requests"] for answer in answers] == ["3"] * 4
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert [answer.headers["x-ratelimit-limit-tokens"] for answer in answers] == ["100000"] * 4
    assert [answer.headers["x-ratelimit-limit-concurrency"] for answer in answers] == ["7"] * 4
    assert not [name for name in free.headers if name.startswith("x-ratelimit")]


async def test_what_other_workers_served_is_told_too(service_valkey: Server, config: dict[str, Any]) -> None:
    config["clients"] = [{"name": "limited", "token": "a-token-that-is-long", "rpm": 1000}]
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        limited = {"authorization": "Bearer a-token-that-is-long"}
        await client.post("/v1/chat/completions", json=BODY, headers=limited)
        router = service.runtime.router
        for _ in range(50):
            await router.route({**BODY, "client": "limited"})

        async def seen() -> bool:
            answer = await client.post("/v1/chat/completions", json=BODY, headers=limited)
            return int(answer.headers["x-ratelimit-remaining-requests"]) < 950

        await wait_until(seen)
