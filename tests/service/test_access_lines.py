"""One line a request, whatever became of it: answered, refused, cancelled, cut off, broken upstream."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, providers_of, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

BODY: dict[str, Any] = {"model": "brief", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
STREAM = {**BODY, "model": "slow", "stream": True, "max_tokens": 4000}
TOKEN = {"authorization": "Bearer the-token-of-a-client"}


@pytest.fixture
def config(simulator: SimulatorProcess) -> dict[str, Any]:
    keys = [{"id": n, "provider": "openai", "key": f"sk-sim-{n}", "models": [n]} for n in ("slow", "brief", "late")]
    limited = {"id": "none", "provider": "openai", "key": "sk-sim-service-1", "models": ["none"], "quota_group": "none"}
    return {
        "providers": providers_of(simulator),
        "keys": [*keys, limited, {"id": "bad", "provider": "openai", "key": "sk-unknown", "models": ["bad"]}],
        "limits": [{"quota_group": "none", "rpm": 1}],
        "clients": [{"name": "app", "token": "the-token-of-a-client"}],
    }


async def _lines(service: Running, count: int) -> dict[str, dict[str, Any]]:
    """The lines by request id, when there are so many; a moment later there are no more."""
    found: list[dict[str, Any]] = []

    async def written() -> bool:
        await service.runtime._access_log.flush()
        found[:] = [json.loads(line) for line in service.log.read_text().splitlines()]
        return len(found) >= count

    await wait_until(written)
    lines = {line["request_id"]: line for line in found}
    assert len(lines) == len(found) == count
    return lines


async def _gone_in_the_middle(client: httpx.AsyncClient, request_id: str, body: dict[str, Any]) -> None:
    headers = {**TOKEN, "x-request-id": request_id}
    if body.get("stream"):
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            await anext(answer.aiter_lines())
        return
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/v1/chat/completions", json=body, headers=headers, timeout=2.0)


async def test_every_request_has_its_line_and_its_count(service_valkey: Server, config: dict[str, Any]) -> None:
    asked: dict[str, tuple[str, dict[str, Any], str]] = {
        "req-answered": ("/v1/chat/completions", {"json": BODY, "headers": TOKEN}, "ok"),
        "req-streamed": ("/v1/chat/completions", {"json": {**BODY, "stream": True}, "headers": TOKEN}, "ok"),
        "req-stranger": ("/v1/chat/completions", {"json": BODY}, "not_allowed"),
        "req-malformed": ("/v1/chat/completions", {"content": b"{", "headers": TOKEN}, "invalid_request"),
        "req-nowhere": ("/v1/nowhere", {"json": BODY, "headers": TOKEN}, "invalid_request"),
        "req-no-model": ("/v1/chat/completions", {"json": {**BODY, "model": "?"}, "headers": TOKEN}, "*"),
        "req-first": ("/v1/chat/completions", {"json": {**BODY, "model": "none"}, "headers": TOKEN}, "*"),
        "req-denied": ("/v1/chat/completions", {"json": {**BODY, "model": "none"}, "headers": TOKEN}, "*"),
        "req-bad-key": ("/v1/chat/completions", {"json": {**BODY, "model": "bad"}, "headers": TOKEN}, "*"),
    }
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        for request_id, (path, how, _) in asked.items():
            headers = {**how.pop("headers", {}), "x-request-id": request_id}
            await client.post(path, headers=headers, **how)
        await _gone_in_the_middle(client, "req-left-stream", STREAM)
        await _gone_in_the_middle(client, "req-left-early", {**BODY, "model": "late"})
        lines = await _lines(service, len(asked) + 2)
        for request_id, (_, _, outcome) in asked.items():
            assert lines[request_id]["outcome"] == outcome or outcome == "*", lines[request_id]
            assert lines[request_id]["total_us"] > 0
        assert (lines["req-left-stream"]["outcome"], lines["req-left-early"]["outcome"]) == (
            "disconnected",
            "cancelled",
        )
        assert lines["req-denied"]["denied_by"]
        assert lines["req-stranger"].get("client") is None
        assert {line["client"] for name, line in lines.items() if name != "req-stranger"} == {"app"}

        async def counted() -> bool:
            return await service.count("apikeyrouter_requests_total") == len(lines)

        await wait_until(counted)


async def test_a_request_that_is_cut_off_at_the_end_has_its_line(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    environ = {"PROXY_DRAIN_SECONDS": "0"}
    async with running_service(service_valkey.url, config, environ=environ) as service, service.http() as client:
        headers = {**TOKEN, "x-request-id": "req-cut"}
        async with client.stream("POST", "/v1/chat/completions", json=STREAM, headers=headers) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            drained = asyncio.create_task(service.runtime.drain())
            rest = [line async for line in lines if line]
            await drained
        told = await _lines(service, 1)
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert told["req-cut"]["outcome"] not in ("ok", "pending")
    assert told["req-cut"]["output_tokens"] > 0
