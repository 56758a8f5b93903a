"""An adapter of one's own, that knows nothing but intents, serves every SDK: answers, streams, functions, failures."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic import AsyncAnthropic
from google import genai
from google.genai import types
from openai import AsyncOpenAI

from apikeyrouter import ApiKeyRouter, RequestIntent
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.models.system_error import ErrorCategory, ProviderError
from apikeyrouter.domain.models.system_response import ResponseMetadata, StreamChunk, SystemResponse, TokenUsage
from apikeyrouter.integrations.httpx2 import RouterTransport

HELLO: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
USED = TokenUsage(input_tokens=7, output_tokens=3)
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}


class Parrot(ProviderAdapter):
    """Says what it was told; calls the tool it was given; breaks when it is told to."""

    async def execute_request(self, intent: RequestIntent, key: str) -> SystemResponse:
        text = "|".join(f"{message.role}:{_text(message.content)}" for message in intent.messages)
        if "break" in text:
            raise ProviderError("no", category=ErrorCategory.ValidationError)
        calls = [CALL] if intent.parameters.get("tools") else None
        metadata = ResponseMetadata(
            model_used="parrot-1", tokens_used=USED, finish_reason="tool_calls" if calls else "stop"
        )
        return SystemResponse(content="" if calls else text, metadata=metadata, tool_calls=calls)

    async def execute_stream(self, intent: RequestIntent, key: str) -> AsyncIterator[StreamChunk]:
        answer = await self.execute_request(intent, key)
        for piece in answer.content:
            yield StreamChunk(text=piece)
        if answer.tool_calls:
            yield StreamChunk(tool_calls=[{**CALL, "index": 0}])
        yield StreamChunk(last=True, usage=USED, finish_reason=answer.metadata.finish_reason)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """A client over a router that has a parrot."""
    async with ApiKeyRouter() as router:
        await router.register_provider("own", Parrot())
        await router.register_key("material-of-the-parrot", "own", {"models": ["parrot"]})
        async with httpx2.AsyncClient(transport=RouterTransport(router)) as client:
            yield client


async def test_openai_over_an_adapter_of_ones_own(http: httpx2.AsyncClient) -> None:
    create: Any = AsyncOpenAI(api_key="any", http_client=http, max_retries=0).chat.completions.create
    tools = [{"type": "function", "function": {"name": "f"}}]
    answer = await create(model="parrot", messages=HELLO)
    chunks = [
        chunk
        async for chunk in await create(
            model="parrot", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    ]
    called = await create(model="parrot", messages=HELLO, tools=tools)
    pieces = [chunk async for chunk in await create(model="parrot", messages=HELLO, tools=tools, stream=True)]
    assert answer.choices[0].message.content == "system:be brief|user:hello"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    assert answer.model_extra["routing_metadata"]["provider_id"] == "own"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "system:be brief|user:hello"
    assert chunks[-1].usage.completion_tokens == 3
    assert json.loads(called.choices[0].message.tool_calls[0].function.arguments) == {"x": 1}
    assert [chunk.choices[0].finish_reason for chunk in pieces][-1] == "tool_calls"


async def test_anthropic_over_an_adapter_of_ones_own(http: httpx2.AsyncClient) -> None:
    messages: Any = AsyncAnthropic(api_key="any", http_client=http, max_retries=0).messages
    options = {"model": "parrot", "max_tokens": 9, "system": "be brief", "messages": HELLO[1:]}
    answer = await messages.create(**options)
    async with messages.stream(**options, tools=[{"name": "f", "input_schema": {"type": "object"}}]) as stream:
        called = await stream.get_final_message()
    assert answer.content[0].text == "system:be brief|user:hello"
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.stop_reason) == (7, 3, "end_turn")
    assert (called.content[0].name, called.content[0].input, called.stop_reason) == ("f", {"x": 1}, "tool_use")
    assert called.usage.output_tokens == 3


async def test_google_genai_over_an_adapter_of_ones_own(http: httpx2.AsyncClient) -> None:
    options = types.HttpOptions(base_url="http://router", httpx_async_client=http)
    models = genai.Client(api_key="any", http_options=options).aio.models
    answer = await models.generate_content(model="parrot", contents="hello", config={"system_instruction": "be brief"})
    chunks = [chunk async for chunk in await models.generate_content_stream(model="parrot", contents="hello")]
    assert answer.text == "system:be brief|user:hello"
    assert "".join(chunk.text or "" for chunk in chunks) == "user:hello"
    assert chunks[-1].usage_metadata is not None
    assert chunks[-1].usage_metadata.candidates_token_count == 3


async def test_its_failures_are_errors_of_each_dialect(http: httpx2.AsyncClient) -> None:
    bad: list[Any] = [{"role": "user", "content": "break"}]
    with pytest.raises(openai.BadRequestError):
        await AsyncOpenAI(api_key="any", http_client=http).chat.completions.create(model="parrot", messages=bad)
    with pytest.raises(anthropic.BadRequestError):
        await AsyncAnthropic(api_key="any", http_client=http).messages.create(
            model="parrot", max_tokens=9, messages=bad
        )


async def test_what_it_does_not_have_is_refused(http: httpx2.AsyncClient) -> None:
    client = AsyncOpenAI(api_key="any", http_client=http)
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model="parrot", input="hi")
    assert refused.value.code == "unsupported_endpoint"
