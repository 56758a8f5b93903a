"""Endpoints that only one provider has, served by the others: responses, completions, counts of tokens."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from apikeyrouter.simulator import SimulatorProcess
from tests.servers import Server
from tests.service.running import Running, running_service, wait_until
from tests.service.speakers import gemini
from tests.service.test_service_translation import HELLO, MODELS, everyone, served_by

pytestmark = pytest.mark.asyncio(loop_scope="package")

OTHERS = [MODELS["anthropic"], MODELS["gemini"], "mistral-small"]
SERVED = {MODELS["anthropic"]: "anthropic", MODELS["gemini"]: "gemini", "mistral-small": "mistral"}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
others = pytest.mark.parametrize("model", OTHERS)


class Said(BaseModel):
    """A shape to answer in."""

    text: str


@pytest_asyncio.fixture(loop_scope="package", scope="module")
async def running(service_valkey: Server, shared_simulator: SimulatorProcess) -> AsyncIterator[Running]:
    """A service that translates, also for a server of OpenAI's dialect that has chat alone."""
    await shared_simulator.reset()
    config = everyone(shared_simulator)
    config["providers"]["mistral"] = {
        "adapter": "mistral",
        "base_url": shared_simulator.openai_url,
        "options": {"models": ["mistral-small"]},
    }
    config["keys"][0]["models"] = [MODELS["openai"]]
    config["keys"].append({"id": "m1", "provider": "mistral", "key": "sk-sim-service-2", "models": ["mistral-small"]})
    config["models"]["mixed"] = [
        {"provider": "openai", "model": MODELS["openai"]},
        {"provider": "anthropic", "model": MODELS["anthropic"]},
    ]
    async with running_service(service_valkey.url, config) as started:
        yield started


async def at_rest(running: Running) -> None:
    """Nothing is held anywhere, and the counters equal what is open."""
    router = running.runtime.router
    assert await router.books.flush(seconds=20)
    lanes = router.catalogue.lane_ids()
    assert [lane.id for lane in await router.ledger.lanes(lanes) if lane.in_flight] == []
    assert await router.ledger.audit(lanes=lanes, scopes=[scope.id for scope in router.catalogue.budgets()]) == []


@others
async def test_a_response_is_answered_by_whoever_serves_the_model(running: Running, model: str) -> None:
    async with running.openai() as client:
        answer = await client.responses.create(
            model=model, input="hello there", instructions="be brief", metadata={"a": "b"}, max_output_tokens=100
        )
    assert answer.output_text.startswith("You said: hello there")
    assert (answer.status, answer.instructions, answer.metadata) == ("completed", "be brief", {"a": "b"})
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    assert await served_by(running) == SERVED[model]
    await at_rest(running)


@others
async def test_a_response_is_streamed_by_whoever_serves_the_model(running: Running, model: str) -> None:
    async with running.openai() as client, client.responses.stream(model=model, input="hello there") as stream:
        told = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        answer = await stream.get_final_response()
    assert told == answer.output_text
    assert told.startswith("You said: hello there")
    facts = running.runtime.router.decisions[-1]
    assert answer.usage is not None
    assert facts.usage is not None
    assert answer.usage.output_tokens == facts.usage.output_tokens
    assert await served_by(running) == SERVED[model]


@others
@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_calls_functions_and_goes_on_with_their_results(
    running: Running, model: str, stream: bool
) -> None:
    asked: Any = {"model": model, "input": "hi", "tools": [WEATHER], "store": False}
    asked["tool_choice"] = {"type": "function", "name": "weather"}
    async with running.openai() as client:
        if stream:
            async with client.responses.stream(**asked) as events:
                answer: Any = await events.get_final_response()
        else:
            answer = await client.responses.create(**asked)
        call = next(item for item in answer.output if item.type == "function_call")
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "sample"})
        said: Any = [{"role": "user", "content": "hi"}, *[item.to_dict() for item in answer.output]]
        said.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
        later = await client.responses.create(model=model, input=said, tools=[WEATHER])
    assert later.output_text


@others
async def test_a_response_is_parsed_into_a_shape(running: Running, model: str) -> None:
    async with running.openai() as client:
        answer = await client.responses.parse(model=model, input="hi", text_format=Said)
    assert answer.output_parsed == Said(text="sample")


async def test_a_cut_response_says_that_it_is_incomplete(running: Running) -> None:
    async with running.openai() as client:
        answer = await client.responses.create(model=MODELS["anthropic"], input="hello there", max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
    ],
)
async def test_what_only_the_one_provider_can_do_is_refused_by_name(
    running: Running, more: dict[str, Any], field: str
) -> None:
    async with running.openai() as client:
        asked: dict[str, Any] = {"model": MODELS["anthropic"], "input": "hi", **more}
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(**asked)
        assert refused.value.param == field or f"{field}:" in refused.value.message
        if field != "input":
            elsewhere = await client.responses.with_raw_response.create(**{**asked, "model": "mixed"})
            assert elsewhere.headers["x-akr-provider"] == "openai"
    await at_rest(running)


async def test_a_translated_response_is_kept_nowhere_and_says_so(running: Running) -> None:
    async with running.openai() as client:
        answer = await client.responses.create(model=MODELS["anthropic"], input="hi")
        assert (answer.model_extra or {})["store"] is False
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model=MODELS["anthropic"], input="and?", previous_response_id=answer.id)
        assert refused.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(answer.id)


async def test_what_was_made_at_one_provider_goes_on_there_although_others_are_equivalent(running: Running) -> None:
    async with running.openai() as client:
        first = await client.responses.create(model="mixed", input="hi", extra_headers={"x-akr-provider": "openai"})
        later = await client.responses.with_raw_response.create(
            model="mixed", input="and?", previous_response_id=first.id
        )
    assert later.headers["x-akr-provider"] == "openai"


@others
@pytest.mark.parametrize("stream", [False, True])
async def test_a_completion_is_answered_by_whoever_serves_the_model(running: Running, model: str, stream: bool) -> None:
    async with running.openai() as client:
        if stream:
            chunks = [
                chunk
                async for chunk in await client.completions.create(
                    model=model, prompt="hello there", stream=True, stream_options={"include_usage": True}
                )
            ]
            text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
            finish, usage = chunks[-2].choices[0].finish_reason, chunks[-1].usage
        else:
            answer = await client.completions.create(model=model, prompt="hello there", max_tokens=100)
            text, finish, usage = answer.choices[0].text, answer.choices[0].finish_reason, answer.usage
    assert text.startswith("You said: hello there")
    assert finish == "stop"
    assert usage is not None
    assert usage.completion_tokens > 0
    assert await served_by(running) == SERVED[model]


async def test_what_a_completion_cannot_ask_of_chat_is_refused_by_name(running: Running) -> None:
    async with running.openai() as client:
        for more in ({"echo": True}, {"suffix": "x"}, {"n": 2}, {"prompt": ["a", "b"]}, {"prompt": [1, 2]}):
            asked: dict[str, Any] = {"model": MODELS["anthropic"], "prompt": "hi", **more}
            with pytest.raises(openai.BadRequestError) as refused:
                await client.completions.create(**asked)
            assert next(iter(more)) in refused.value.message
    await at_rest(running)


async def test_the_tokens_of_a_message_are_counted_by_what_was_learned(running: Running) -> None:
    async with running.anthropic() as client:
        for model, exact in ((MODELS["openai"], False), (MODELS["gemini"], False), ("mixed", True)):
            raw = await client.messages.with_raw_response.count_tokens(model=model, messages=HELLO, system="be brief")
            count = (await raw.parse()).input_tokens
            assert 2 <= count <= 40
            assert (raw.headers.get("x-akr-token-count") == "estimate") is not exact
            assert ("x-akr-provider" in raw.headers) is exact
        long = await client.messages.count_tokens(
            model=MODELS["openai"], messages=[{"role": "user", "content": "hello there " * 200}]
        )
        assert 100 <= long.input_tokens <= 1000
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.count_tokens(
                model=MODELS["openai"], messages=HELLO, tools=[{"type": "web_search_20250305", "name": "web_search"}]
            )
        assert "tools" in refused.value.message
    await at_rest(running)


async def test_an_estimate_comes_near_what_the_provider_then_counts(running: Running) -> None:
    text = "the quick brown fox jumps over the lazy dog and runs away from it " * 20
    async with running.anthropic() as client:
        asked: Any = {"model": MODELS["openai"], "messages": [{"role": "user", "content": text}]}
        for _ in range(12):
            used = (await client.messages.create(**asked, max_tokens=5)).usage.input_tokens
        count = (await client.messages.count_tokens(**asked)).input_tokens
    assert abs(count - used) <= 0.1 * used


async def test_google_genai_has_its_tokens_counted_too(running: Running) -> None:
    client = gemini(running)
    try:
        assert ((await client.aio.models.count_tokens(model=MODELS["openai"], contents="hello")).total_tokens or 0) >= 2
    finally:
        await client.aio.aclose()


async def test_counting_is_logged_and_costs_nothing(running: Running) -> None:
    async with running.http() as client:
        answer = await client.post("/v1/messages/count_tokens", json={"model": MODELS["openai"], "messages": HELLO})
    assert answer.json()["routing_metadata"]["cost"] == 0
    facts = running.runtime.router.decisions[-1]
    assert (facts.operation, facts.outcome, facts.attempts) == ("count_tokens", "ok", [])
    told: list[str] = []

    async def logged() -> bool:
        lines = [json.loads(line) for line in running.log.read_text().splitlines()]
        told[:] = [line["outcome"] for line in lines if line["request_id"] == answer.headers["x-request-id"]]
        return bool(told)

    await wait_until(logged)
    assert told == ["ok"]


async def test_what_nobody_has_is_still_told_as_such(running: Running) -> None:
    async with running.openai() as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.embeddings.create(model=MODELS["anthropic"], input="hi")
    assert refused.value.code == "unsupported_endpoint"
