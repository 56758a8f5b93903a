"""`routing.translate`: every SDK is served by every provider, in its own dialect; nothing is lost without a word."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
import yaml

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, running_service, wait_until
from tests.service.speakers import SDKS, Speaker, speaking

pytestmark = pytest.mark.asyncio(loop_scope="package")

MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5", "gemini": "gemini-2.5-flash"}
STOPPED = {"openai": "stop", "anthropic": "end_turn", "gemini": "STOP"}
CUT = {"openai": "length", "anthropic": "max_tokens", "gemini": "MAX_TOKENS"}
CALLED = {"openai": "tool_calls", "anthropic": "tool_use", "gemini": "STOP"}
PIXEL = "iVBORw0KGgo="
HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
CROSSED = [(sdk, provider) for sdk in SDKS for provider in MODELS if sdk != provider]
crossed = pytest.mark.parametrize(("sdk", "provider"), CROSSED)


def everyone(simulator: SimulatorProcess, **parts: Any) -> dict[str, Any]:
    """A configuration with a provider of each dialect, and one name for a model of each."""
    return {
        "providers": {
            "openai": {"adapter": "openai", "base_url": simulator.openai_url},
            "anthropic": {"adapter": "anthropic", "base_url": simulator.anthropic_url},
            "google": {"adapter": "gemini", "base_url": simulator.base_url("gemini")},
        },
        "keys": [
            {"id": "k1", "provider": "openai", "key": "sk-sim-service-1"},
            {"id": "a1", "provider": "anthropic", "key": "sk-ant-sim-service"},
            {"id": "g1", "provider": "google", "key": "AIza-sim-service"},
        ],
        "models": {
            "any": [
                {"provider": {"gemini": "google"}.get(name, name), "model": model} for name, model in MODELS.items()
            ]
        },
        "routing": {"translate": True},
        **parts,
    }


@pytest_asyncio.fixture(loop_scope="package")
async def translating(service_valkey: Server, simulator: SimulatorProcess) -> AsyncIterator[Running]:
    """A service that translates."""
    async with running_service(service_valkey.url, everyone(simulator)) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="package")
async def speaker(translating: Running, sdk: str) -> AsyncIterator[Speaker]:
    """One SDK."""
    async with speaking(translating, sdk) as made:
        yield made


async def served_by(running: Running) -> str:
    """The dialect of the provider that served last."""
    decisions = running.runtime.router.decisions

    async def told() -> bool:
        return bool(decisions)

    await wait_until(told)
    return {"google": "gemini"}.get(decisions[-1].provider_id, decisions[-1].provider_id)


@crossed
async def test_each_sdk_gets_an_answer_of_each_provider(
    translating: Running, speaker: Speaker, sdk: str, provider: str
) -> None:
    said = await speaker.says(MODELS[provider], "hello there", most=3)
    assert said.text.startswith("You said")
    assert said.finish == CUT[sdk]
    assert said.usage[0] > 0
    assert said.usage[1] >= 3
    assert await served_by(translating) == provider


@crossed
async def test_each_sdk_streams_an_answer_of_each_provider(
    translating: Running, speaker: Speaker, sdk: str, provider: str
) -> None:
    said = await speaker.streams(MODELS[provider], "hello there")
    assert said.text.startswith("You said: hello there")
    assert said.finish == STOPPED[sdk]
    facts = translating.runtime.router.decisions[-1]
    assert facts.usage is not None
    assert said.usage == (facts.usage.input_tokens, facts.usage.output_tokens)
    assert await served_by(translating) == provider


@crossed
@pytest.mark.parametrize("stream", [False, True])
async def test_each_sdk_has_functions_called_by_each_provider(
    translating: Running, speaker: Speaker, sdk: str, provider: str, stream: bool
) -> None:
    said = await speaker.calls(MODELS[provider], stream=stream)
    assert said.calls == (("weather", {"city": "sample"}),)
    assert said.finish == CALLED[sdk]


@crossed
async def test_each_sdk_gives_each_provider_the_results_of_functions(speaker: Speaker, provider: str) -> None:
    assert (await speaker.replies(MODELS[provider])).text


@crossed
async def test_each_sdk_gets_structured_output_of_each_provider(speaker: Speaker, provider: str) -> None:
    assert json.loads((await speaker.shapes(MODELS[provider])).text) == {"text": "sample"}


@crossed
async def test_each_sdk_shows_each_provider_a_picture(speaker: Speaker, provider: str) -> None:
    plain = await speaker.says(MODELS[provider], "what?")
    shown = await speaker.says(MODELS[provider], "what?", image=PIXEL)
    assert shown.usage[0] > plain.usage[0] + 200


async def test_a_request_goes_on_to_a_provider_of_another_dialect_when_the_first_fails(
    translating: Running, simulator: SimulatorProcess
) -> None:
    await simulator.fail("overloaded", key="org-alpha/1")
    for sdk in SDKS:
        async with speaking(translating, sdk) as made:
            said = await made.says("any", "hello there")
            streamed = await made.streams("any", "hello there")
        assert said.text.startswith("You said")
        assert streamed.text.startswith("You said")
        assert await served_by(translating) != "openai"


async def test_a_translated_answer_tells_who_served_it_and_what_it_cost(translating: Running) -> None:
    async with translating.openai() as client:
        raw = await client.chat.completions.with_raw_response.create(model=MODELS["anthropic"], messages=HELLO)
    answer: Any = raw.parse()
    metadata = answer.model_extra["routing_metadata"]
    assert (metadata["provider_id"], metadata["key_used"]) == ("anthropic", "a1")
    assert float(raw.headers["x-akr-cost-usd"]) == metadata["cost"] > 0
    assert answer.id.startswith("chatcmpl-")
    assert raw.headers["content-type"] == "application/json"


async def test_a_client_that_did_not_ask_for_usage_gets_none_of_another_provider_either(translating: Running) -> None:
    async with translating.openai() as client:
        stream = await client.chat.completions.create(model=MODELS["anthropic"], messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


async def test_a_stream_that_breaks_ends_with_an_error_in_the_clients_dialect(
    translating: Running, simulator: SimulatorProcess
) -> None:
    await simulator.fail("cut_mid_stream", key="org-beta/1")
    async with translating.openai() as client:
        stream = await client.chat.completions.create(model=MODELS["anthropic"], messages=HELLO, stream=True)
        with pytest.raises(openai.APIError) as broken:
            assert [chunk async for chunk in stream]
    assert not isinstance(broken.value, openai.APIConnectionError)


@pytest.mark.parametrize(
    ("model", "more", "field"),
    [
        ("anthropic", {"logprobs": True}, "logprobs"),
        ("anthropic", {"n": 2}, "n"),
        ("gemini", {"n": 2}, "n"),
        ("gemini", {"parallel_tool_calls": False, "tools": [{"type": "function", "function": {"name": "f"}}]}, "par"),
        ("anthropic", {"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
async def test_what_a_provider_cannot_do_is_refused_by_name(
    translating: Running, model: str, more: dict[str, Any], field: str
) -> None:
    async with translating.openai() as client:
        with pytest.raises(openai.BadRequestError, match=f"{field}") as refused:
            await client.chat.completions.create(model=MODELS[model], messages=HELLO, **more)
    assert "parameters." not in refused.value.message


@pytest.mark.parametrize(("model", "key"), [("gemini", "proj-gamma/1"), ("anthropic", "org-beta/1")])
async def test_what_a_provider_says_of_the_request_reaches_the_client_in_its_own_words(
    translating: Running, simulator: SimulatorProcess, model: str, key: str
) -> None:
    await simulator.fail("context_length", key=key)
    async with translating.openai() as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODELS[model], messages=HELLO)
    assert (refused.value.type, refused.value.code) == ("invalid_request_error", "context_length_exceeded")


async def test_what_only_one_equivalent_can_do_is_asked_of_that_one(translating: Running) -> None:
    async with translating.openai() as client:
        for _ in range(3):
            raw = await client.chat.completions.with_raw_response.create(
                model="any", messages=HELLO, logprobs=True, n=2
            )
            assert raw.headers["x-akr-provider"] == "openai"


@pytest.mark.parametrize("packed", ["float", "base64"])
async def test_openai_gets_embeddings_of_gemini(translating: Running, packed: Any) -> None:
    async with translating.openai() as client:
        answer = await client.embeddings.create(
            model="gemini-embedding-001", input=["one", "two"], encoding_format=packed
        )
    assert [len(entry.embedding) > 1 for entry in answer.data] == [True, True]
    assert await served_by(translating) == "gemini"


async def test_without_the_switch_nothing_is_translated(service_valkey: Server, simulator: SimulatorProcess) -> None:
    config = everyone(simulator, routing={"translate": False})
    async with running_service(service_valkey.url, config) as service, service.http() as client:
        answers = [
            await client.post("/v1/chat/completions", json={"model": MODELS["anthropic"], "messages": HELLO}),
            await client.post("/v1/messages", json={"model": "gpt-4o-mini", "messages": HELLO, "max_tokens": 9}),
        ]
        own = await client.post("/v1/chat/completions", json={"model": "any", "messages": HELLO})
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json()["error"]["code"] == "unsupported_endpoint"
    assert answers[1].json()["error"]["details"]["error_code"] == "unsupported_endpoint"
    assert own.headers["x-akr-provider"] == "openai"


async def test_the_switch_is_taken_over_when_the_file_is_read_again(
    service_valkey: Server, simulator: SimulatorProcess
) -> None:
    config = everyone(simulator, routing={"translate": False})
    body = {"model": MODELS["anthropic"], "messages": HELLO}
    async with running_service(service_valkey.url, config) as service, service.operator() as client:
        before = await client.post("/v1/chat/completions", json=body)
        _rewrite(service, {**config, "routing": {"translate": True}})
        assert (await client.post("/api/v1/config/reload")).status_code == 200
        after = await client.post("/v1/chat/completions", json=body)
    assert (before.status_code, after.status_code) == (400, 200)


def _rewrite(service: Running, config: dict[str, Any]) -> None:
    """Put another configuration into a running service's file."""
    assert service.runtime.settings.config is not None
    Path(service.runtime.settings.config).write_text(yaml.safe_dump(config))
