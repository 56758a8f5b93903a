"""Wrong requests: a clear error in the route's dialect, nothing sent, nothing held."""

import asyncio
import json
from typing import Any

import pytest

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, running_service, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="package")

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
GOOD = '{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}]'
MANY = "".join(f',"k{number}":1' for number in range(1000))
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (CHAT, "", 400, "invalid_request"),
        (CHAT, "{", 400, "invalid_request"),
        (CHAT, "[]", 400, "invalid_request"),
        (CHAT, "null", 400, "invalid_request"),
        (CHAT, DEEP, 400, "invalid_request"),
        (CHAT, b"\xff\xfe{}", 400, "invalid_request"),
        (CHAT, '{"messages":[]}', 400, "invalid_request"),
        (CHAT, '{"model":"","messages":[]}', 400, "invalid_request"),
        (CHAT, '{"model":7,"messages":[]}', 400, "invalid_request"),
        (CHAT, '{"model":"gpt-4o-mini","messages":"hi"}', 400, "invalid_request"),
        (CHAT, GOOD + ',"stream":"yes"}', 400, "invalid_request"),
        (CHAT, GOOD + ',"max_tokens":-1}', 400, "invalid_request"),
        (CHAT, GOOD + ',"max_tokens":1e99}', 400, "invalid_request"),
        (CHAT, GOOD + ',"max_tokens":9007199254740993}', 400, "invalid_request"),
        (CHAT, GOOD + ',"n":0}', 400, "invalid_request"),
        pytest.param(CHAT, GOOD + MANY + "}", 400, "invalid_request", id="a-thousand-members-more"),
        (CHAT, GOOD.replace("gpt-4o-mini", "no-such-model") + "}", 404, "model_not_found"),
        (MESSAGES, "{", 400, "invalid_request"),
        (MESSAGES, '{"model":"claude-haiku-4-5","messages":[]}', 400, "invalid_request"),
        (
            MESSAGES,
            '{"model":"claude-no","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}',
            404,
            "model_not_found",
        ),
    ],
)
async def test_a_wrong_body_is_refused_before_anything_is_held(
    simulator: SimulatorProcess, service: Running, path: str, body: str | bytes, status: int, code: str
) -> None:
    async with service.http() as client:
        answer = await client.post(path, content=body)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (status, "false")
    error = answer.json()
    if path == MESSAGES:
        assert error["type"] == "error"
        assert error["error"]["details"] == {"error_code": code}
        assert error["request_id"] == answer.headers["request-id"]
    else:
        assert set(error["error"]) == {"message", "type", "param", "code"}
        assert error["error"]["code"] == code
    assert await service.count("apikeyrouter_requests_total") == 1
    assert await service.count("apikeyrouter_settlements_total") == 0
    assert service.runtime.router.in_flight == 0
    assert await simulator.journal() == []


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"x-akr-objective": "cheapest"}, "x-akr-objective"),
        ({"x-akr-timeout-ms": "-5"}, "x-akr-timeout-ms"),
        ({"x-akr-timeout-ms": "nan"}, "x-akr-timeout-ms"),
        ({"x-akr-provider": "nobody"}, "x-akr-provider"),
        ({"x-akr-session": "x" * 300}, "x-akr-session"),
        ({"x-akr-team": ""}, "x-akr-team"),
    ],
)
async def test_a_wrong_header_is_refused_by_its_name(service: Running, headers: dict[str, str], field: str) -> None:
    async with service.http() as client:
        answer = await client.post(CHAT, content=GOOD + "}", headers=headers)
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]


async def test_right_headers_are_taken(service: Running) -> None:
    headers = {
        "x-akr-objective": "Cost", "x-akr-timeout-ms": "20000", "x-akr-provider": "openai", "x-akr-session": "s",
        "x-stainless-read-timeout": "nonsense",
    }  # fmt: skip
    async with service.http() as client:
        answer = await client.post(CHAT, content=GOOD + "}", headers=headers)
    assert answer.status_code == 200
    assert service.runtime.router.decisions[-1].objective == "cost"


async def test_a_registered_strategy_is_named_like_any_objective(service: Running) -> None:
    service.runtime.router.routing_engine.register_strategy("by-length", lambda candidate: len(candidate.key_id))
    async with service.http() as client:
        answer = await client.post(CHAT, content=GOOD + "}", headers={"x-akr-objective": "By-Length"})
    assert answer.status_code == 200
    assert service.runtime.router.decisions[-1].objective == "by-length"


async def test_a_body_beyond_the_bound_is_a_413_declared_or_chunked(
    service_valkey: Server, config: dict[str, Any]
) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b"x" * 1000

    async with (
        running_service(service_valkey.url, config, environ={"PROXY_BODY_BYTES_MAX": "10000"}) as service,
        service.http() as client,
    ):
        declared = await client.post(CHAT, content=b"x" * 10_001)
        chunked = await client.post(MESSAGES, content=pieces())
        fits = await client.post(CHAT, content=(GOOD + "}").ljust(10_000))
    assert (declared.status_code, declared.json()["error"]["code"]) == (413, "request_too_large")
    assert (chunked.status_code, chunked.json()["error"]["type"]) == (413, "request_too_large")
    assert fits.status_code == 200


async def test_compressed_bodies_and_floods_of_headers_are_refused(service: Running) -> None:
    async with service.http() as client:
        packed = await client.post(CHAT, content=b"x", headers={"content-encoding": "gzip"})
        flood = await client.post(CHAT, content=GOOD + "}", headers={f"x-{n}": "1" for n in range(200)})
    assert (packed.status_code, flood.status_code) == (415, 431)


async def test_a_body_that_stops_coming_is_given_up_with_a_408(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apikeyrouter_proxy.requests.BODY_IDLE_SECONDS_MAX", 0.05)
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"x-should-retry: true" in answer
    assert b'"error_code":"request_timeout"' in answer


async def test_requests_that_never_reach_the_router_are_counted_under_few_outcomes(service: Running) -> None:
    async with service.http() as client:
        await client.get(CHAT)
        await client.post("/v1/nothing")
        await client.post(CHAT, content="{")
        await client.post(CHAT, content=GOOD + "}", headers={"origin": "https://elsewhere.example"})
    for route, outcome in [("chat", "invalid_request"), ("unknown", "invalid_request"), ("chat", "not_allowed")]:
        labels = f'route="{route}",provider="",model="",outcome="{outcome}"'
        assert await service.count(f"apikeyrouter_requests_total{{{labels}}}") >= 1

    async def written() -> bool:
        return service.log.read_text().count("\n") == 4

    await wait_until(written)
    codes = [json.loads(line)["denied_by"] for line in service.log.read_text().splitlines()]
    assert codes == ["method_not_allowed", "unknown_url", "invalid_request", "remote_caller"]


async def test_health_answers_to_head(service: Running) -> None:
    async with service.http() as client:
        for path in ("/health", "/health/live", "/health/ready"):
            answer = await client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")


async def test_unknown_paths_and_methods_answer_in_json(service: Running) -> None:
    async with service.http() as client:
        unknown = await client.post("/v1/nothing", content="{}")
        theirs = await client.post("/v1/nothing", content="{}", headers={"anthropic-version": "2023-06-01"})
        wrong = await client.get(CHAT)
        deleted = await client.delete("/v1/models/gpt-4o")
        no_version = await client.post("/chat/completions", content="{}")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    assert (theirs.status_code, theirs.json()["error"]["type"]) == (404, "not_found_error")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert deleted.status_code == 405
    assert no_version.status_code == 404
    assert "/v1" in no_version.json()["error"]["message"]
