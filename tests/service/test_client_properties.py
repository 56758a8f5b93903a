"""What a client's settings say holds over HTTP: tokens and calls, its end, its weight and class, in each dialect."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, providers_of, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

CHAT = "/v1/chat/completions"
SAID: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
BODY: dict[str, Any] = {"model": "gpt-4o-mini", **SAID, "max_tokens": 5}
SLOW: dict[str, Any] = {**BODY, "model": "slow", "stream": True, "max_tokens": 4000}
BRIEF: dict[str, Any] = {**BODY, "model": "brief", "stream": True, "max_tokens": 4000}
DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, BODY),
    "chat-streamed": (CHAT, {**BODY, "stream": True}),
    "completion": ("/v1/completions", {"model": "gpt-4o-mini", "prompt": "hi", "max_tokens": 5}),
    "responses": ("/v1/responses", {"model": "gpt-4o-mini", "input": "hi"}),
    "responses-streamed": ("/v1/responses", {"model": "gpt-4o-mini", "input": "hi", "stream": True}),
    "embeddings": ("/v1/embeddings", {"model": "gpt-4o-mini", "input": "hi"}),
    "messages": ("/v1/messages", {**BODY, "model": "claude-haiku-4-5"}),
    "messages-streamed": ("/v1/messages", {**BODY, "model": "claude-haiku-4-5", "stream": True}),
    "gemini": ("/v1beta/models/gemini-2.5-flash:generateContent", {"contents": [{"parts": [{"text": "hi"}]}]}),
    "gemini-streamed": (
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", {"contents": [{"parts": [{"text": "hi"}]}]}
    ),
}  # fmt: skip


def token(name: str) -> dict[str, str]:
    """The headers of a client."""
    return {"authorization": f"Bearer the-token-of-{name}"}


def clients(**settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The section of a file."""
    return [{"name": name, "token": f"the-token-of-{name}", **told} for name, told in settings.items()]


def code_of(answer: httpx.Response) -> str:
    """The reason of an error, in any dialect."""
    error = answer.json()["error"]
    details = error.get("details") or {}
    return str(
        details[0]["reason"].lower() if isinstance(details, list) else details.get("error_code", error.get("code"))
    )


async def waiting(service: Running, count: int) -> None:
    async def are() -> bool:
        return service.runtime.router.waiting == count

    await wait_until(are)


async def at_rest(service: Running) -> None:
    router = service.runtime.router
    assert await router.drain(20)
    assert [lane.id for lane in await router.ledger.lanes(router.catalogue.lane_ids()) if lane.in_flight] == []


async def test_every_dialect_is_told_what_is_left_and_when_to_come_back(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    gemini = {"adapter": "gemini", "base_url": simulator.base_url("gemini")}
    config["providers"] = {**providers_of(simulator), "gemini": gemini}
    config["keys"].append({"id": "g1", "provider": "gemini", "key": "AIza-sim-service", "models": ["gemini-2.5-flash"]})
    names = {name: name.replace("-", "_") for name in DIALECTS}
    config["clients"] = clients(**{name: {"rpm": 1, "tpm": 90_000, "concurrency": 3} for name in names.values()})
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        for name, (path, body) in DIALECTS.items():
            served, denied = [await client.post(path, json=body, headers=token(names[name])) for _ in range(2)]
            wrong = await client.post(path, json={"model": 7}, headers=token(names[name]))
            assert (served.status_code, denied.status_code, wrong.status_code) == (200, 429, 400), (name, served.text)
            for answer in (served, denied, wrong):
                told = {part: int(answer.headers[f"x-ratelimit-limit-{part}"]) for part in ("requests", "tokens")}
                assert told == {"requests": 1, "tokens": 90_000}
                assert answer.headers["x-ratelimit-limit-concurrency"] == "3"
                assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            assert code_of(denied) == "tenant_rate_limited"
            assert denied.headers["x-should-retry"] == "true"
            after_ms = int(denied.headers["retry-after-ms"])
            assert 0 < after_ms <= 62_000
            assert int(denied.headers["retry-after"]) == -(-after_ms // 1000)


async def test_tokens_are_held_in_the_same_step_as_everything_else(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    config["clients"] = clients(app={"tpm": 1000})
    wide = {**BODY, "max_tokens": 400}
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        answers = await asyncio.gather(*(client.post(CHAT, json=wide, headers=token("app")) for _ in range(8)))
        never = await client.post(CHAT, json={**BODY, "max_tokens": 5000}, headers=token("app"))
        await at_rest(service)
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 6
    assert {code_of(answer) for answer in answers if answer.status_code == 429} == {"tenant_rate_limited"}
    assert (never.status_code, code_of(never)) == (400, "request_too_large")
    assert (await simulator.report())["total"]["arrived"] == 2, "what is denied is sent nowhere"


async def test_so_many_calls_at_once_and_no_more(service_valkey: Server, config: dict[str, Any]) -> None:
    config["keys"] = [{"id": "s", "provider": "openai", "key": "sk-sim-slow"}]
    config["clients"] = clients(app={"concurrency": 1}, other={})
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        async with client.stream("POST", CHAT, json=SLOW, headers=token("app")) as stream:
            async for _ in stream.aiter_bytes():
                break
            second = await client.post(CHAT, json=BODY, headers=token("app"))
        assert (second.status_code, code_of(second)) == (429, "tenant_rate_limited")
        await at_rest(service)
        async with client.stream("POST", CHAT, json=SLOW, headers=token("app")) as third:
            assert third.status_code == 200
        await at_rest(service)


@pytest.mark.parametrize("ends", ["expires", "is switched off", "is revoked"])
async def test_a_client_whose_time_is_over_ends_its_stream_and_begins_no_other(
    service_valkey: Server, config: dict[str, Any], ends: str
) -> None:
    config["keys"] = [{"id": "b", "provider": "openai", "key": "sk-sim-brief"}]
    async with (
        running_service(service_valkey.url, config) as service,
        service.operator() as operator,
        service.http() as client,
    ):
        made = (await operator.post("/api/v1/clients", json={"name": "app", "concurrency": 2})).json()["token"]
        named = {"authorization": f"Bearer {made}"}
        async with client.stream("POST", CHAT, json=BRIEF, headers=named) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            if ends == "is revoked":
                await operator.delete("/api/v1/clients/app")
                await operator.post("/api/v1/clients", json={"name": "another"})  # else anybody may call
            else:
                told = {"expires_at": "2020-01-01T00:00:00Z"} if ends == "expires" else {"enabled": False}
                assert (await operator.patch("/api/v1/clients/app", json=told)).status_code == 200
            refused = await client.post(CHAT, json=BODY, headers=named)
            rest = [line async for line in lines if line]
        await at_rest(service)
    assert refused.status_code == (403 if ends == "is switched off" else 401)
    assert rest[-1] == "data: [DONE]"
    assert not any("error" in json.loads(line.removeprefix("data: ")) for line in rest[:-1])


async def test_a_rotated_token_is_taken_until_its_grace_is_over(service: Running) -> None:
    async with service.operator() as operator, service.http() as client:
        first = (await operator.post("/api/v1/clients", json={"name": "app"})).json()["token"]
        second = (await operator.post("/api/v1/clients/app/rotate", json={"grace_seconds": 1})).json()["token"]

        async def over() -> bool:
            answer = await client.post(CHAT, json=BODY, headers={"x-api-key": first})
            assert answer.status_code in (200, 401)
            return answer.status_code == 401

        await wait_until(over)
        assert (await client.post(CHAT, json=BODY, headers={"x-goog-api-key": second})).status_code == 200


async def test_who_waits_goes_by_class_then_by_weight(service_valkey: Server, config: dict[str, Any]) -> None:
    key = {**config["keys"][0], "quota_group": "org-one"}
    config |= {
        "keys": [key],
        "limits": [{"quota_group": "org-one", "concurrency": 1}],
        "clients": clients(heavy={"weight": 3}, light={"weight": 1}, later={"priority": "batch", "weight": 100}),
        "routing": {"wait_max_ms": 20_000},
    }
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        leasing = service.runtime.router.lease("gpt-4o-mini", estimated_tokens=10)
        await leasing.__aenter__()
        order: list[str] = []

        async def send(name: str) -> None:
            told = {**token(name), "x-akr-priority": "interactive"}  # never better than the client's own
            answer = await client.post(CHAT, json=BODY, headers=told)
            assert answer.status_code == 200, answer.text
            order.append(name)

        tasks = []
        for count, name in enumerate(["later", *["light"] * 4, *["heavy"] * 6], 1):
            tasks.append(asyncio.create_task(send(name)))
            await waiting(service, count)
        await leasing.__aexit__(None, None, None)
        await asyncio.gather(*tasks)
        await at_rest(service)
    assert order[:8].count("heavy") == 6
    assert order[-1] == "later"


async def test_a_deadline_ends_the_waiting_and_is_never_waited_past(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    config["keys"] = [{"id": "l", "provider": "openai", "key": "sk-sim-late", "quota_group": "org-one"}]
    config["limits"] = [{"quota_group": "org-one", "concurrency": 1}]
    config["routing"] = {"wait_max_ms": 20_000, "attempts_max": 3}
    late = {"x-akr-timeout-ms": "500"}
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        served = await client.post(CHAT, json=BODY, headers=late)
        leasing = service.runtime.router.lease("gpt-4o-mini", estimated_tokens=10)
        await leasing.__aenter__()
        waited = await client.post(CHAT, json=BODY, headers=late)
        await leasing.__aexit__(None, None, None)
        await at_rest(service)
    assert (served.status_code, served.headers["x-should-retry"]) == (504, "false")
    assert (waited.status_code, waited.headers["x-should-retry"]) == (504, "false")
    assert "retry-after" not in waited.headers
    assert (await simulator.report())["total"]["arrived"] == 1, "neither tried again nor sent after its time"
