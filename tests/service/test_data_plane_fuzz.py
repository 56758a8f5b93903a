"""The data plane against its own description: whatever fits it, and what does not, gets a described answer."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.described import DATA_PLANE
from tests.service.running import Running, described, providers_of, running_service

pytestmark = pytest.mark.asyncio(loop_scope="package")

EXAMPLES = 60 if os.environ.get("AKR_LONG") else 3
"""Of each endpoint, and of what fits its description and what does not."""
LENIENT = {"failures": 10_000}
CHECKS = (
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
)  # fmt: skip
MODELS = {
    "openai": ["gpt-4o-mini", "text-embedding-3-small", "gpt-3.5-turbo-instruct", "dall-e-2", "tts-1", "whisper-1",
               "omni-moderation-latest", "rerank-v3"],
    "anthropic": ["claude-haiku-4-5"],
    "gemini": ["gemini-2.5-flash", "gemini-embedding-001"],
}  # fmt: skip
KEYS = {"openai": "sk-sim-service-1", "anthropic": "sk-ant-sim-service", "gemini": "AIza-sim-service"}


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def running(service_valkey: Server, shared_simulator: SimulatorProcess) -> AsyncIterator[Running]:
    await shared_simulator.reset()
    gemini = {"adapter": "gemini", "base_url": shared_simulator.base_url("gemini")}
    providers = {**providers_of(shared_simulator), "gemini": gemini}
    config = {
        "providers": {name: {**one, "breaker": dict(LENIENT)} for name, one in providers.items()},
        "keys": [{"id": name, "provider": name, "key": key, "models": MODELS[name]} for name, key in KEYS.items()],
        "routing": {"translate": True},
    }
    async with running_service(service_valkey.url, config) as started:
        yield started


def _one_of(body: Any) -> Any:
    """A body that asks for a model that there is, where it asks for one at all."""
    return {**body, "model": "gpt-4o-mini"} if isinstance(body, dict) and isinstance(body.get("model"), str) else body


def _try(operation: Any, mode: GenerationMode, statuses: list[int]) -> list[str]:
    """Note the statuses of the answers; what was wrong with them."""

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            case.body = _one_of(case.body)
            case.headers.clear()
        answer = case.call(timeout=30)
        case.validate_response(answer, checks=list(CHECKS))
        statuses.append(answer.status_code)

    try:
        one()
    except FailureGroup as exc:
        return [str(failure) for failure in exc.exceptions]
    return []


def _try_all(url: str) -> tuple[list[int], list[str]]:
    """The statuses of all answers, and what was wrong with them."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: list[int] = []
    wrong: list[str] = []
    for found in schema.include(tag=DATA_PLANE).get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if "/v1/models/{model}:" not in operation.path:  # the same as under /v1beta/
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                wrong += _try(operation, mode, statuses)
    return statuses, wrong


async def test_every_answer_is_described_and_none_is_a_crash(running: Running) -> None:
    statuses, wrong = await asyncio.to_thread(_try_all, running.url)
    assert wrong == []
    assert len(statuses) > 2 * EXAMPLES * 20
    assert statuses.count(200) > 10 * EXAMPLES
    router = running.runtime.router
    assert await router.drain(10)
    assert router.books.open == {}


SAID = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
STREAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "gpt-4o-mini", **SAID}),
    "chat-usage": (
        "/v1/chat/completions", {"model": "gpt-4o-mini", **SAID, "stream_options": {"include_usage": True}}
    ),
    "completion": ("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "hi", "stream": True}),
    "responses": ("/v1/responses", {"model": "gpt-4o-mini", "input": "hi", "stream": True}),
    "messages": ("/v1/messages", {"model": "claude-haiku-4-5", "max_tokens": 9, **SAID}),
    "generate": (
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", {"contents": [{"parts": [{"text": "hi"}]}]}
    ),
    "translated": ("/v1/messages", {"model": "gpt-4o-mini", "max_tokens": 9, **SAID}),
}  # fmt: skip


@pytest.mark.parametrize("asked", list(STREAMED))
@pytest.mark.parametrize("breaks", [False, True], ids=["whole", "broken"])
async def test_every_event_of_a_stream_is_described(
    running: Running, shared_simulator: SimulatorProcess, asked: str, breaks: bool
) -> None:
    path, body = STREAMED[asked]
    if breaks:
        await shared_simulator.fail("cut_mid_stream", count=1)
    async with running.http() as client:
        answer = await client.post(path, json=body)
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert (answer.status_code, len(data) > 1) == (200, True), answer.text
    described().check_events(answer, data)
    assert ('"error":{' in answer.text or '"type":"error"' in answer.text) is breaks


async def test_what_is_described_is_checked() -> None:
    """A description that says nothing would find nothing wrong."""
    request = httpx.Request("POST", "http://x/v1/chat/completions")
    good = {"x-request-id": "r", "x-content-type-options": "nosniff", "x-should-retry": "false"}
    error = {"error": {"message": "no", "type": "t", "param": None, "code": None}}
    await described().check(httpx.Response(429, json=error, headers=good, request=request))
    for status, headers, body in (
        (402, good, {"error": "no"}),
        (429, {**good, "x-should-retry": "perhaps"}, error),
        (429, {**good, "x-akr-secret": "1"}, error),
        (429, {}, error),
        (200, good, {"choices": []}),
        (302, good, error),
    ):
        with pytest.raises(AssertionError):
            await described().check(httpx.Response(status, json=body, headers=headers, request=request))
