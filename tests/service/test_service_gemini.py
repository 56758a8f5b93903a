"""google-genai, unmodified, against the service: its own paths, framing, errors and credentials."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from google.genai import errors

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, running_service
from tests.service.speakers import GeminiSpeaker, gemini, speaking

pytestmark = pytest.mark.asyncio(loop_scope="package")

MODEL = "gemini-2.5-flash"
HELLO = {"contents": [{"role": "user", "parts": [{"text": "hello there"}]}]}


def google(simulator: SimulatorProcess, **parts: Any) -> dict[str, Any]:
    """A configuration with Gemini alone."""
    return {
        "providers": {"google": {"adapter": "gemini", "base_url": simulator.base_url("gemini")}},
        "keys": [{"id": "g1", "provider": "google", "key": "AIza-sim-service"}],
        **parts,
    }


@pytest_asyncio.fixture(loop_scope="package")
async def running(service_valkey: Server, simulator: SimulatorProcess) -> AsyncIterator[Running]:
    """A service for Gemini."""
    async with running_service(service_valkey.url, google(simulator)) as started:
        yield started


async def test_google_genai_generates_streams_and_calls_functions(running: Running) -> None:
    async with speaking(running, "gemini") as speaker:
        assert isinstance(speaker, GeminiSpeaker)
        said = await speaker.says(MODEL, "hello there", most=8)
        streamed = await speaker.streams(MODEL, "hello there")
        called = await speaker.calls(MODEL)
    assert said.text == "You said: hello there You said: "
    assert streamed.text.startswith("You said: hello there")
    assert called.calls == (("weather", {"city": "sample"}),)
    facts = running.runtime.router.decisions
    assert [each.operation for each in facts] == ["generate", "stream_events", "generate"]
    assert all(each.usage is not None and each.cost_nanousd for each in facts)


async def test_google_genai_counts_embeds_and_lists(running: Running) -> None:
    models = gemini(running).aio.models
    counted = await models.count_tokens(model=MODEL, contents="hello there")
    embedded = await models.embed_content(model="gemini-embedding-001", contents=["one", "two"])
    listed = [model.name async for model in await models.list()]
    one = await models.get(model=MODEL)
    assert counted.total_tokens == 10
    assert len(embedded.embeddings or []) == 2
    assert f"models/{MODEL}" in listed
    assert one.name == f"models/{MODEL}"


async def test_a_stream_without_events_is_an_array(running: Running) -> None:
    async with running.http() as client:
        answer = await client.post(f"/v1beta/models/{MODEL}:streamGenerateContent", json=HELLO)
        events = await client.post(f"/v1/models/{MODEL}:streamGenerateContent?alt=sse", json=HELLO)
    text = "".join(part.get("text", "") for chunk in answer.json() for part in _parts(chunk) if not part.get("thought"))
    assert text.startswith("You said: hello there")
    assert answer.headers["content-type"].startswith("application/json")
    assert events.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in events.text.splitlines() if line), "comments break the SDK"


@pytest.mark.parametrize("query", ["", "?alt=sse"])
async def test_a_stream_that_breaks_says_so_in_its_own_framing(
    running: Running, simulator: SimulatorProcess, query: str
) -> None:
    await simulator.fail("cut_mid_stream", key="proj-gamma/1")
    async with running.http() as client:
        answer = await client.post(f"/v1beta/models/{MODEL}:streamGenerateContent{query}", json=HELLO)
    told = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")] or answer.json()
    assert _parts(told[0])
    assert told[-1]["error"]["code"] == 502


async def test_google_genai_raises_what_is_wrong(service_valkey: Server, simulator: SimulatorProcess) -> None:
    clients = [{"name": "app", "token": "app-token-of-the-tests", "models": [MODEL], "rpm": 1}]
    async with running_service(service_valkey.url, google(simulator, clients=clients)) as service:
        stranger, known = gemini(service).aio.models, gemini(service, "app-token-of-the-tests").aio.models
        with pytest.raises(errors.ClientError) as refused:
            await stranger.generate_content(model=MODEL, contents="hi")
        with pytest.raises(errors.ClientError) as elsewhere:
            await known.generate_content(model="gemini-2.5-pro", contents="hi")
        with pytest.raises(errors.ClientError) as bad:
            await known.generate_content(model=MODEL, contents="hi", config={"max_output_tokens": -1})
        assert (await known.generate_content(model=MODEL, contents="hi")).text
        with pytest.raises(errors.ClientError) as limited:
            await known.generate_content(model=MODEL, contents="hi")
    found = [(each.value.code, each.value.status) for each in (refused, elsewhere, bad, limited)]
    assert found == [
        (401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"), (400, "INVALID_ARGUMENT"), (429, "RESOURCE_EXHAUSTED"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"/v1beta/models/{MODEL}:generateContent", 405),
        ("POST", f"/v1beta/models/{MODEL}:predictLongRunning", 404),
        ("POST", "/v1beta/cachedContents", 404),
        ("GET", "/v1beta/models/none", 404),
        ("POST", "/v1beta/models/gpt-4o-mini:generateContent", 404),
    ],
)
async def test_errors_are_in_geminis_shape(running: Running, method: str, path: str, status: int) -> None:
    async with running.http() as client:
        answer = await client.request(method, path, json=HELLO if method == "POST" else None)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, status)
    assert {"message", "status"} <= error.keys()


def _parts(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    return [part for candidate in chunk.get("candidates", ()) for part in candidate["content"].get("parts", ())]
