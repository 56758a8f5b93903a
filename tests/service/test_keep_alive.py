"""Streams that are long in coming: comments for who skips them, none for who does not, and failures as events."""

import asyncio
from typing import Any

import anthropic
import httpx
import openai
import pytest

from apikeyrouter.simulator import SimulatorProcess
from apikeyrouter_proxy.http_protocol import ServiceProtocol
from apikeyrouter_proxy.keep_alive import COMMENT
from tests.servers import Server
from tests.service.running import Running, providers_of, running_service
from tests.service.speakers import gemini

pytestmark = pytest.mark.asyncio(loop_scope="package")

SAID: Any = [{"role": "user", "content": "hi"}]
HELD = {"PROXY_FIRST_BYTE_HOLD_SECONDS": "0.1"}
PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"model": "gpt-4o-mini", "messages": SAID, "stream": True}),
    "anthropic": (
        "/v1/messages", {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": SAID, "stream": True}
    ),
    "translated": ("/v1/messages", {"model": "gpt-4o-mini", "max_tokens": 9, "messages": SAID, "stream": True}),
}  # fmt: skip


@pytest.fixture
def config(config: dict[str, Any], simulator: SimulatorProcess) -> dict[str, Any]:
    """All dialects, translated where they differ."""
    google = {"adapter": "gemini", "base_url": simulator.base_url("gemini")}
    key = {"id": "g", "provider": "gemini", "key": "AIza-sim-service", "models": ["gemini-2.5-flash"]}
    return {
        "providers": {**providers_of(simulator), "gemini": google},
        "keys": [*config["keys"], key],
        "routing": {"translate": True},
    }


async def at_rest(service: Running) -> None:
    router = service.runtime.router
    assert await router.drain(20)
    assert router.books.open == {}


@pytest.mark.parametrize(
    ("way", "http"),
    [("openai", ServiceProtocol), ("anthropic", "httptools"), ("translated", "h11"), ("translated", ServiceProtocol)],
)
async def test_comments_come_until_the_answer_does_whatever_speaks_http(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess, way: str, http: Any
) -> None:
    await simulator.fail("slow_first_token", seconds=1, count=1)
    path, body = PATHS[way]
    running = running_service(service_valkey.url, config, environ=HELD, http=http)
    async with running as service, service.http() as client:
        held = await client.post(path, json=body)
        quick = await client.post(path, json=body)
        await at_rest(service)
    count = held.content.count(COMMENT)
    assert held.content.startswith(COMMENT * count)
    assert count >= 2
    assert held.headers["x-request-id"]
    last = b"data: [DONE]" if way == "openai" else b"message_stop"
    assert last in held.content[-100:]
    assert (COMMENT in quick.content, "x-akr-key-id" in quick.headers) == (False, True)


async def test_sdks_read_what_was_kept_alive(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    await simulator.fail("slow_first_token", seconds=0.5, count=3)
    async with running_service(service_valkey.url, config, environ=HELD) as service:
        async with service.openai() as client:
            stream = await client.chat.completions.create(model="gpt-4o-mini", messages=SAID, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        async with (
            service.anthropic() as claude,
            claude.messages.stream(model="claude-haiku-4-5", max_tokens=9, messages=SAID) as told,
        ):
            message = await told.get_final_message()
        models = gemini(service).aio.models
        chunks = await models.generate_content_stream(model="gemini-2.5-flash", contents="hi")
        google = "".join([chunk.text or "" async for chunk in chunks])
        await at_rest(service)
    assert text.startswith("You said: hi")
    assert message.stop_reason == "max_tokens"
    assert google.startswith("You said: hi")


async def test_what_fails_after_a_comment_is_an_event(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    late = {"x-akr-timeout-ms": "500"}
    async with running_service(service_valkey.url, config, environ=HELD) as service:
        async with service.openai() as client:
            stream = await client.chat.completions.create(
                model="gpt-4o-mini", messages=SAID, stream=True, extra_headers=late
            )
            with pytest.raises(openai.APIError) as caught:
                [chunk async for chunk in stream]
        async with service.anthropic() as claude:
            with pytest.raises(anthropic.APIStatusError) as told:
                async with claude.messages.stream(
                    model="claude-haiku-4-5", max_tokens=9, messages=SAID, extra_headers=late
                ) as answer:
                    await answer.get_final_message()
        await at_rest(service)
    assert caught.value.code == "upstream_timeout"
    assert (told.value.status_code, told.value.type) == (200, "timeout_error")


async def test_who_leaves_between_comments_leaves_nothing(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    path, body = PATHS["openai"]
    async with running_service(service_valkey.url, config, environ=HELD) as service:
        async with service.http() as client, client.stream("POST", path, json=body) as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == COMMENT
        await at_rest(service)
        async with asyncio.timeout(20):
            while (await simulator.report())["total"]["in_flight"]:
                await asyncio.sleep(0.02)


async def test_a_service_that_stops_tells_who_was_kept_alive(
    service_valkey: Server, config: dict[str, Any], simulator: SimulatorProcess
) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    path, body = PATHS["openai"]
    environ = {**HELD, "PROXY_DRAIN_SECONDS": "0"}
    async with (
        running_service(service_valkey.url, config, environ=environ) as service,
        service.http() as client,
        client.stream("POST", path, json=body) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        drained = asyncio.create_task(service.runtime.drain())
        rest = [line async for line in lines if line]
        await drained
    assert '"code":"shutting_down"' in rest[-1]


async def test_nothing_is_kept_alive_unasked(service: Running, simulator: SimulatorProcess) -> None:
    await simulator.fail("stall_before_first_byte", seconds=3600)
    path, body = PATHS["openai"]
    async with service.http() as client:
        answer: httpx.Response = await client.post(path, json=body, headers={"x-akr-timeout-ms": "400"})
    assert answer.status_code == 504
