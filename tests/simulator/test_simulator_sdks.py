"""The official SDKs, unmodified, against the simulator: answers, streams, tools, parts, caches, model lists."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from anthropic import AuthenticationError as AnthropicAuthenticationError
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError

from apikeyrouter.simulator import SimulatorProcess

pytestmark = pytest.mark.asyncio(loop_scope="package")

HELLO: list[Any] = [{"role": "user", "content": "hello there"}]
LONG: list[Any] = [{"role": "user", "content": "a long document " * 300}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["c", "f"]}},
    "required": ["city", "days", "unit"],
}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


async def test_a_chat_is_answered_within_its_cap_and_its_usage_adds_up(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_tokens=10, n=2)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.choices[0].message.content == "You said: hello there You said: hello th"
    assert answer.usage is not None
    # 3 for the prompt, 4 for the message, 11 bytes of text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (10, 20, 30)


async def test_the_same_request_gets_the_same_text_under_another_id(openai: AsyncOpenAI) -> None:
    first = await openai.chat.completions.create(model="gpt-4o", messages=HELLO)
    again = await openai.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert first.choices[0].message.content == again.choices[0].message.content
    assert first.choices[0].finish_reason == "stop"
    assert first.id != again.id


async def test_openai_headers_have_their_true_form(simulator: SimulatorProcess, openai: AsyncOpenAI) -> None:
    await simulator.control(organisation="org-a", limits=[{"rpm": 100, "tpm": 60_000}])
    raw = await openai.chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO, max_tokens=90)
    headers = raw.headers
    assert headers["openai-organization"] == "org-a"
    assert headers["openai-version"] == "2020-10-01"
    assert re.fullmatch(r"req_[0-9a-f]{24}", headers["x-request-id"])
    assert headers["openai-processing-ms"].isdecimal()
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("100", "99")
    assert (headers["x-ratelimit-limit-tokens"], headers["x-ratelimit-remaining-tokens"]) in (
        ("60000", "59900"),
        ("60000", "59901"),
    )
    assert re.fullmatch(r"\d+ms", headers["x-ratelimit-reset-requests"])


async def test_a_streamed_chat_ends_with_usage_that_every_other_chunk_shows_as_null(openai: AsyncOpenAI) -> None:
    stream = await openai.chat.completions.create(
        model="gpt-4o", messages=HELLO, stream=True, stream_options={"include_usage": True}, max_tokens=8
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "You said: hello there You said: "
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "length"


async def test_without_include_usage_no_chunk_speaks_of_usage(openai: AsyncOpenAI) -> None:
    stream = await openai.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
    async for chunk in stream:
        assert "usage" not in chunk.model_fields_set
        assert chunk.choices


@pytest.mark.parametrize("n", [1, 3])
async def test_streamed_choices_are_all_complete(openai: AsyncOpenAI, n: int) -> None:
    stream = await openai.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True, n=n, max_tokens=5)
    texts = [""] * n
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["You said: hello ther"] * n


async def test_a_forced_tool_is_called_with_arguments_of_its_schema(openai: AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    answer = await openai.chat.completions.create(
        model="gpt-4o", messages=HELLO, tools=tools, tool_choice={"type": "function", "function": {"name": "weather"}}
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert json.loads(calls[0].function.arguments) == {"city": "sample", "days": 1, "unit": "c"}
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_a_tool_call_streams_its_arguments(openai: AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    stream = await openai.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "[[tool]] now"}], tools=tools, stream=True
    )
    arguments, names, reasons = "", set(), set()
    async for chunk in stream:
        reasons.add(chunk.choices[0].finish_reason)
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.function is not None
            names.add(call.function.name)
            arguments += call.function.arguments or ""
    assert json.loads(arguments) == {"city": "sample", "days": 1, "unit": "c"}
    assert names == {"weather", None}
    assert reasons == {None, "tool_calls"}


async def test_multimodal_parts_are_taken_and_counted(openai: AsyncOpenAI) -> None:
    parts: Any = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    answer = await openai.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": parts}])
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3 + 4 + 2 + 765


async def test_a_prompt_seen_before_is_cached(openai: AsyncOpenAI) -> None:
    first = await openai.chat.completions.create(model="gpt-4o", messages=LONG)
    again = await openai.chat.completions.create(model="gpt-4o", messages=LONG)
    details = [answer.usage.prompt_tokens_details for answer in (first, again) if answer.usage is not None]
    assert [detail.cached_tokens for detail in details if detail is not None] == [0, 1_152]


async def test_responses_completions_embeddings_and_models_answer(openai: AsyncOpenAI) -> None:
    response = await openai.responses.create(model="gpt-4o", input="hello there", max_output_tokens=3)
    assert (response.output_text, response.status) == ("You said: he", "incomplete")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (10, 3)
    completion = await openai.completions.create(model="gpt-3.5-turbo", prompt="hello", max_tokens=2)
    assert completion.choices[0].text == "You said"
    embeddings = await openai.embeddings.create(model="text-embedding-3-small", input=["one", "two words"])
    assert [item.index for item in embeddings.data] == [0, 1]
    assert "gpt-4o" in [model.id async for model in openai.models.list()]
    assert (await openai.models.retrieve("gpt-4")).id == "gpt-4"
    with pytest.raises(NotFoundError):
        await openai.models.retrieve("gpt-none")


async def test_a_streamed_response_assembles_to_the_whole_one(openai: AsyncOpenAI) -> None:
    whole = await openai.responses.create(model="gpt-4o", input="hello there")
    async with openai.responses.stream(model="gpt-4o", input="hello there") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == whole.output_text
    assert events[0].type == "response.created"
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")][:4] == [0, 1, 2, 3]


async def test_a_forced_tool_of_a_response_is_called(openai: AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}]
    async with openai.responses.stream(model="gpt-4o", input="go", tools=tools, tool_choice="required") as stream:
        final = await stream.get_final_response()
    assert final.output[0].type == "function_call"
    assert json.loads(final.output[0].arguments)["unit"] == "c"


async def test_a_wrong_key_is_refused_as_the_provider_does(simulator: SimulatorProcess) -> None:
    async with AsyncOpenAI(api_key="sk-wrong-key-of-somebody", base_url=simulator.openai_url) as wrong:
        with pytest.raises(AuthenticationError) as error:
            await wrong.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert error.value.code == "invalid_api_key"
    async with AsyncAnthropic(api_key="sk-sim-key-number-1", base_url=simulator.anthropic_url) as other:
        with pytest.raises(AnthropicAuthenticationError):  # a key of the other provider
            await other.messages.create(model="claude-haiku-5", max_tokens=5, messages=HELLO)
    assert (await simulator.report())["unauthenticated"] == 2


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"model": "gpt-4o"}',
        b'{"model": "gpt-4o", "messages": []}',
        b'{"model": "gpt-4o", "messages": [{"role": "user", "content": 7}]}',
        b'{"model": "gpt-4o", "messages": [{"role": "user"}], "max_tokens": 0}',
        b'{"model": "gpt-4o", "messages": [{"role": "user"}], "max_tokens": 1, "max_completion_tokens": 1}',
    ],
)
async def test_a_malformed_chat_is_a_400_in_openais_shape(openai: AsyncOpenAI, body: bytes) -> None:
    with pytest.raises(BadRequestError) as error:
        await openai.post("/chat/completions", cast_to=object, content=body)
    assert error.value.type == "invalid_request_error"
    assert isinstance(error.value.body, dict)
    assert set(error.value.body) == {"message", "type", "param", "code"}


# --- Anthropic
async def test_a_message_is_answered_with_true_usage_and_headers(
    simulator: SimulatorProcess, anthropic: AsyncAnthropic
) -> None:
    await simulator.control(organisation="org-b", limits=[{"rpm": 50, "input_tpm": 30_000, "output_tpm": 8_000}])
    raw = await anthropic.messages.with_raw_response.create(model="claude-haiku-5", max_tokens=9, messages=HELLO)
    message = await raw.parse()
    assert message.content[0].type == "text"
    assert message.content[0].text == "You said: hello there You said: hell"
    assert message.stop_reason == "max_tokens"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (10, 9)
    headers = raw.headers
    assert headers["anthropic-organization-id"] == "org-b"
    assert headers["anthropic-workspace-id"] == "wrkspc_1"
    assert headers["request-id"].startswith("req_")
    assert headers["anthropic-ratelimit-requests-remaining"] == "49"
    assert headers["anthropic-ratelimit-input-tokens-remaining"] == "30000"
    assert headers["anthropic-ratelimit-output-tokens-limit"] == "8000"
    assert headers["anthropic-ratelimit-tokens-limit"] == "8000"  # the most restrictive one
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", headers["anthropic-ratelimit-requests-reset"])


async def test_a_streamed_message_has_its_events_in_order(anthropic: AsyncAnthropic) -> None:
    stream = await anthropic.messages.create(model="claude-haiku-5", max_tokens=3, messages=HELLO, stream=True)
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) <= {"content_block_delta", "ping"}
    assert events[0].type == "message_start"
    assert events[0].message.usage.output_tokens == 1
    assert events[-2].type == "message_delta"
    assert (events[-2].usage.input_tokens, events[-2].usage.output_tokens) == (10, 3)


async def test_a_forced_tool_use_streams_its_input(anthropic: AsyncAnthropic) -> None:
    tools: Any = [{"name": "weather", "input_schema": WEATHER}]
    async with anthropic.messages.stream(
        model="claude-haiku-5", max_tokens=100, messages=HELLO, tools=tools, tool_choice={"type": "any"}
    ) as stream:
        final = await stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert final.content[0].type == "tool_use"
    assert final.content[0].input == {"city": "sample", "days": 1, "unit": "c"}


async def test_a_marked_prompt_is_written_to_the_cache_and_then_read(anthropic: AsyncAnthropic) -> None:
    blocks: Any = [{"type": "text", "text": "a long document " * 300, "cache_control": {"type": "ephemeral"}}]
    usages = [
        (await anthropic.messages.create(model="claude-haiku-5", max_tokens=5, system=blocks, messages=HELLO)).usage
        for _ in range(2)
    ]
    assert [usage.cache_creation_input_tokens for usage in usages] == [1_200, 0]
    assert [usage.cache_read_input_tokens for usage in usages] == [0, 1_200]
    assert [usage.input_tokens for usage in usages] == [10, 10]


async def test_tokens_are_counted_and_models_listed(anthropic: AsyncAnthropic) -> None:
    counted = await anthropic.messages.count_tokens(model="claude-haiku-5", messages=HELLO)
    assert counted.input_tokens == 10
    assert "claude-haiku-5" in [model.id async for model in anthropic.models.list()]
    assert (await anthropic.models.retrieve("claude-haiku-5")).type == "model"


async def test_sampling_parameters_are_refused_by_the_new_version(anthropic: AsyncAnthropic) -> None:
    from anthropic import BadRequestError as AnthropicBadRequestError

    version = {"anthropic-version": "2026-10-21"}
    body: Any = {"temperature": 1.0}
    with pytest.raises(AnthropicBadRequestError, match="Extra inputs are not permitted"):
        await anthropic.messages.create(
            model="claude-haiku-5", max_tokens=5, messages=HELLO, extra_headers=version, extra_body=body
        )
