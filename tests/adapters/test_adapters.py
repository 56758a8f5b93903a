"""The public adapters: intents into native bodies and back, and whole calls against simulated providers."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from apikeyrouter.domain.models.request_intent import Operation, RequestIntent
from apikeyrouter.domain.models.system_error import ErrorCategory, InvalidRequestError, ProviderError
from apikeyrouter.infrastructure.adapters.anthropic_adapter import AnthropicAdapter
from apikeyrouter.infrastructure.adapters.gemini_adapter import GeminiAdapter
from apikeyrouter.infrastructure.adapters.http_adapter import HTTPAdapter, UpstreamFailure
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.adapters.transport import ConnectFailed, UpstreamTimeout
from apikeyrouter.simulator.process import SimulatorProcess

OPENAI_KEY = "sk-sim-0123456789abcdefghij"
ANTHROPIC_KEY = "sk-ant-sim-0123456789abcdef"
ORGANISATIONS = {
    "organisations": [
        {"id": "org-a", "keys": [OPENAI_KEY]},
        {"id": "org-b", "dialect": "anthropic", "keys": [ANTHROPIC_KEY]},
    ]
}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def intent(model: str = "m", **more: Any) -> RequestIntent:
    said = more.pop("messages", [{"role": "user", "content": "hi"}])
    return RequestIntent(model=model, messages=said, **more)


def openai_body(wanted: RequestIntent, **more: Any) -> dict[str, Any]:
    operation, body = OpenAIAdapter("http://x/v1").encode_intent(wanted, **more)
    assert operation == wanted.operation.value
    decoded: dict[str, Any] = json.loads(body)
    return decoded


def anthropic_body(wanted: RequestIntent, **more: Any) -> dict[str, Any]:
    operation, body = AnthropicAdapter("http://x").encode_intent(wanted, **more)
    assert operation == "messages"
    decoded: dict[str, Any] = json.loads(body)
    return decoded


def test_openai_takes_parameters_as_they_are() -> None:
    assert openai_body(intent(parameters={"temperature": 0.5, "max_tokens": 9})) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "max_tokens": 9,
    }
    assert openai_body(intent(), stream=True)["stream"] is True
    assert openai_body(intent("gpt-5.6", parameters={"max_tokens": 9}))["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    ("operation", "payload"),
    [("embedding", {"input": "x"}), ("responses", {"input": "x"}), ("completion", {"prompt": "x"})],
)
def test_other_operations_take_their_payload(operation: str, payload: dict[str, Any]) -> None:
    wanted = RequestIntent(model="m", operation=Operation(operation), payload=payload)
    assert openai_body(wanted) == {"model": "m", **payload}
    anthropic = AnthropicAdapter("http://x")
    if operation == "embedding":
        with pytest.raises(InvalidRequestError, match="operation"):
            anthropic.encode_intent(wanted)
    else:
        asked, body = anthropic.encode_intent(wanted)
        assert (asked, json.loads(body)["messages"]) == ("messages", [{"role": "user", "content": "x"}])


def test_anthropic_images_reach_openai_in_its_form() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    body = openai_body(intent(messages=[{"role": "user", "content": [image]}]))
    assert body["messages"][0]["content"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]


def test_anthropic_gets_leading_system_messages_as_system() -> None:
    body = anthropic_body(
        intent(
            messages=[
                {"role": "system", "content": "a"},
                {"role": "developer", "content": "b"},
                {"role": "user", "content": "hi"},
                {"role": "system", "content": "late"},
            ]
        )
    )
    assert body["system"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert body["messages"][1] == {"role": "user", "content": "<system>late</system>"}
    assert body["max_tokens"] == 4096


def test_anthropic_gets_tool_results_of_one_turn_in_one_user_message() -> None:
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": a}} for n, a in
             enumerate(['{"x":1}', ""])]  # fmt: skip
    body = anthropic_body(
        intent(
            messages=[
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "tool_call_id": "c0", "content": "one"},
                {"role": "tool", "tool_call_id": "c1", "content": "two"},
            ],
            parameters={"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        )
    )
    assert body["messages"][1]["content"] == [
        {"type": "tool_use", "id": "c0", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
    ]
    assert [block["tool_use_id"] for block in body["messages"][2]["content"]] == ["c0", "c1"]
    assert body["tools"] == [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("data:image/png;base64,QUJD", {"type": "base64", "media_type": "image/png", "data": "QUJD"}),
        ("https://x/y.png", {"type": "url", "url": "https://x/y.png"}),
    ],
)
def test_openai_images_reach_anthropic_in_its_form(url: str, source: dict[str, str]) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": ""}]
    body = anthropic_body(intent(messages=[{"role": "user", "content": parts}]))
    assert body["messages"][0]["content"] == [{"type": "image", "source": source}]


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        ("claude-3-5-haiku", True),
        ("claude-sonnet-5", False),
        ("claude-opus-4-7", False),
        ("claude-opus-4-5-20251101", True),
    ],
)
def test_sampling_is_left_out_where_anthropic_refuses_it(model: str, kept: bool) -> None:
    body = anthropic_body(intent(model, parameters={"temperature": 1.5, "stop": "x", "seed": 1}))
    assert ("temperature" in body) is kept
    assert body.get("temperature", 1) == 1
    assert body["stop_sequences"] == ["x"]
    assert "seed" not in body


def test_a_schema_becomes_an_output_format() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    body = anthropic_body(intent(parameters={"response_format": wanted, "reasoning_effort": "low"}))
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"}


@pytest.mark.parametrize(
    ("parameters", "messages", "field"),
    [
        ({"n": 2}, None, "parameters.n"),
        ({"response_format": {"type": "json_object"}}, None, "parameters.response_format"),
        ({}, [{"role": "system", "content": "only"}], "messages"),
        ({}, [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages.content"),
    ],
)
def test_what_anthropic_cannot_do_is_refused_by_name(
    parameters: dict[str, Any], messages: list[dict[str, Any]] | None, field: str
) -> None:
    given: dict[str, Any] = {"messages": messages} if messages else {}
    wanted = intent(parameters=parameters, **given)
    with pytest.raises(InvalidRequestError) as caught:
        anthropic_body(wanted)
    assert caught.value.field.startswith(field)


def test_an_openai_answer_is_decoded() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    body = {
        "id": "chatcmpl-1",
        "model": "gpt-4o-mini-2024",
        "choices": [
            {"message": {"content": None, "tool_calls": calls, "refusal": "no"}, "finish_reason": "tool_calls"}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    answer = OpenAIAdapter("http://x/v1").decode_response(json.dumps(body).encode())
    assert (answer.content, answer.tool_calls, answer.refusal) == ("", calls, "no")
    assert (answer.metadata.finish_reason, answer.metadata.tokens_used.total) == ("tool_calls", 7)
    assert answer.raw == body


_OPENAI, _ANTHROPIC, _GEMINI = OpenAIAdapter("http://x/v1"), AnthropicAdapter("http://x"), GeminiAdapter("http://x")
_ARGUMENTS = {"city": "Köln", "days": 2**70, "share": 1.5e-7, "more": [None, True, {}]}


@pytest.mark.parametrize(
    ("adapter", "body"),
    [
        (_OPENAI, {"id": "c", "model": "m", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}),
        (_OPENAI, {"data": [{"embedding": [1, 0.5]}, {"embedding": "AAAAPw=="}], "usage": {"prompt_tokens": 3}}),
        (_OPENAI, {"output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}]}),
        (_OPENAI, {"choices": "nonsense", "usage": {"prompt_tokens": 3}}),
        (_OPENAI, {"usage": {"prompt_tokens": 3, "cost": {"not": "a number"}}, "service_tier": "flex"}),
        (OpenAIAdapter("http://x/v1", profile="openrouter"), {"usage": {"prompt_tokens": 3, "cost": 0.00014}}),
        (_OPENAI, {}),
        (_ANTHROPIC, {"content": [{"type": "tool_use", "id": "t", "name": "f", "input": _ARGUMENTS}]}),
        (_ANTHROPIC, {"content": [{"type": "tool_use", "id": "t", "name": "f"}], "usage": {"input_tokens": 2}}),
        (_ANTHROPIC, {"content": 5, "usage": {"input_tokens": 2, "output_tokens": 3}}),
        (_ANTHROPIC, {}),
        (_GEMINI, {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": _ARGUMENTS}}]}}]}),
        (_GEMINI, {"candidates": [{"content": {"parts": [{"text": "a"}]}}], "error": {"code": 3}}),
        (_GEMINI, {"candidates": [], "usageMetadata": {"promptTokenCount": 3}, "responseId": "r"}),
        (_GEMINI, {}),
    ],
)  # fmt: skip
def test_an_answer_that_was_decoded_already_says_the_same(adapter: HTTPAdapter, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    known = adapter.wire.read_answer(raw, body)
    assert known == adapter.wire.read_answer(raw)
    assert known.usage == adapter.wire.read_usage(raw)
    for call in known.tool_calls:
        assert json.loads(call["function"]["arguments"]) in (_ARGUMENTS, {})


def test_an_anthropic_answer_is_decoded_in_the_words_of_chat() -> None:
    body = {
        "id": "msg_1",
        "model": "claude-haiku-5",
        "content": [{"type": "text", "text": "a"}, {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 4},
    }
    answer = AnthropicAdapter("http://x").decode_response(json.dumps(body).encode())
    assert answer.content == "a"
    assert answer.tool_calls == [{"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}]
    assert (answer.metadata.finish_reason, answer.metadata.tokens_used.input_tokens) == ("tool_calls", 5)


@pytest.mark.parametrize("adapter", [OpenAIAdapter("http://x/v1"), AnthropicAdapter("http://x")])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"5"])
def test_an_answer_that_is_none_is_the_providers_error(adapter: Any, body: bytes) -> None:
    with pytest.raises(ProviderError):
        adapter.decode_response(body)


def test_catalogues_tell_families_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("ANTHROPIC_BASE_URL", raising=False)
    own, elsewhere, claude = OpenAIAdapter(), OpenAIAdapter("http://x/v1"), AnthropicAdapter()
    serves = [a.get_capabilities().serves for a in (own, elsewhere, claude)]
    assert [s("gpt-4o-mini") for s in serves] == [True, True, False]
    assert [s("claude-haiku-5") for s in serves] == [False, False, True]
    assert [s("llama-3") for s in serves] == [False, True, False]
    assert OpenAIAdapter(models=["x"]).get_capabilities().serves("x")


def test_transport_errors_become_system_errors() -> None:
    adapter = OpenAIAdapter("http://x/v1")
    assert adapter.map_error(UpstreamTimeout("idle", sent=True)).category is ErrorCategory.TimeoutError
    mapped = adapter.map_error(ConnectFailed("x"))
    assert (mapped.category, mapped.retryable, mapped.details["sent"]) == (ErrorCategory.NetworkError, True, False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def simulator() -> AsyncIterator[SimulatorProcess]:
    async with SimulatorProcess(ORGANISATIONS) as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
async def test_whole_calls_work_streamed_and_not(simulator: SimulatorProcess) -> None:
    for adapter, key, model in (
        (OpenAIAdapter(simulator.openai_url), OPENAI_KEY, "gpt-4o-mini"),
        (AnthropicAdapter(simulator.anthropic_url), ANTHROPIC_KEY, "claude-haiku-5"),
    ):
        wanted = intent(model, parameters={"max_tokens": 20})
        answer = await adapter.execute_request(wanted, key)
        chunks = [chunk async for chunk in adapter.execute_stream(wanted, key)]
        assert "".join(str(chunk) for chunk in chunks) == answer.content
        assert chunks[-1].last
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.output_tokens == answer.metadata.tokens_used.output_tokens == 20
        assert await adapter.check_health(key)
        assert not await adapter.check_health("sk-wrong")
        assert (await adapter.get_health()).healthy
        with pytest.raises(UpstreamFailure) as caught:
            await adapter.execute_request(wanted, "sk-wrong-0123456789abcdef")
        assert caught.value.category is ErrorCategory.AuthenticationError
        assert "0123456789" not in str(caught.value)
        await adapter.close()
