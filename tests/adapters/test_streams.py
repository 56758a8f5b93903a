"""Stream readers: what passes, what is hidden, when the answer begins, and how a stream can fail."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.interfaces.wire import StreamReader, Wire
from apikeyrouter.domain.models.failure import FailureAction, FailureScope
from apikeyrouter.domain.models.system_error import ErrorCategory
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.anthropic_wire import AnthropicWire
from apikeyrouter.infrastructure.adapters.gemini_wire import GeminiWire
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire
from tests.adapters.recorded import (
    CHAT_STREAM,
    CHAT_TEXT,
    CHAT_USAGE,
    GEMINI_ARRAY,
    GEMINI_STREAM,
    GEMINI_TEXT,
    MESSAGE_STREAM,
    RESPONSES_STREAM,
    chat_chunk,
    named,
)

OPENAI = OpenAIWire("http://127.0.0.1/v1")
ANTHROPIC = AnthropicWire("http://127.0.0.1")
GEMINI = GeminiWire("http://127.0.0.1")


def run(reader: StreamReader, pieces: list[bytes]) -> tuple[bytes, list[bool]]:
    """Everything passed on, and `substantive` after each piece. Fails on a Failure."""
    out, begun = b"", []
    for piece in pieces:
        step = reader.feed(piece)
        assert step.failure is None, step.failure
        out += step.out
        begun.append(step.substantive)
    step = reader.end()
    assert step.failure is None, step.failure
    return out + step.out, begun


def framed(stream: bytes) -> list[bytes]:
    """The stream, event by event."""
    if stream.startswith(b"["):
        return re.split(rb"(?<=\n})(?=\n)", stream)
    return re.findall(rb".*?(?:\r\n\r\n|\n\n)", stream, re.DOTALL)


CASES = [
    (OPENAI, "chat", False, CHAT_STREAM),
    (OPENAI, "chat", True, CHAT_STREAM),
    (OPENAI, "responses", False, RESPONSES_STREAM),
    (ANTHROPIC, "messages", False, MESSAGE_STREAM),
    (GEMINI, "stream_events", False, GEMINI_STREAM),
    (GEMINI, "stream_generate", False, GEMINI_ARRAY),
]


@pytest.mark.parametrize(("wire", "operation", "hide", "stream"), CASES)
def test_a_stream_cut_at_every_byte_gives_the_same_bytes_usage_and_counts(
    wire: Wire, operation: str, hide: bool, stream: bytes
) -> None:
    whole = wire.stream(hide_usage=hide, operation=operation)
    expected, _ = run(whole, [stream])
    for cut in range(len(stream)):
        reader = wire.stream(hide_usage=hide, operation=operation)
        out, _ = run(reader, [stream[:cut], stream[cut:]])
        assert out == expected, cut
        assert (reader.usage, reader.finish_reason, reader.output_bytes) == (
            whole.usage,
            whole.finish_reason,
            whole.output_bytes,
        )
    if not hide:
        assert expected == stream


@pytest.mark.parametrize(("wire", "operation", "hide", "stream"), CASES)
@pytest.mark.parametrize("together", [1, 2, 3, 5])
def test_events_that_come_together_count_as_each_for_itself(
    wire: Wire, operation: str, hide: bool, stream: bytes, together: int
) -> None:
    events = framed(stream)
    pieces = [b"".join(events[at : at + together]) for at in range(0, len(events), together)]
    whole = wire.stream(hide_usage=hide, operation=operation)
    expected, _ = run(whole, [stream])
    reader = wire.stream(hide_usage=hide, operation=operation)
    out, _ = run(reader, pieces)
    assert out == expected
    assert (reader.usage, reader.finish_reason, reader.output_bytes) == (
        whole.usage,
        whole.finish_reason,
        whole.output_bytes,
    )


@pytest.mark.parametrize(
    "event",
    [
        chat_chunk({"content": "", "reasoning_content": "four"}),
        chat_chunk({}, choices=[{"index": n, "delta": {"content": "ab"}, "finish_reason": None} for n in (0, 1)]),
        chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": "four"}}]}),
    ],
)
@pytest.mark.parametrize("together", [1, 3])
def test_text_that_is_not_one_plain_content_is_counted_too(event: bytes, together: int) -> None:
    reader = OPENAI.stream(hide_usage=True)
    reader.feed(chat_chunk({"content": "x"}))
    reader.feed(event * together)
    assert reader.output_bytes == 1 + 4 * together


def test_tool_calls_of_a_stream_are_numbered_from_zero() -> None:
    start = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    events = [
        named("content_block_start", {"index": 1, "content_block": start}),
        named("content_block_delta", {"index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"x"'}}),
        named("content_block_start", {"index": 2, "content_block": {**start, "id": "toolu_2"}}),
        named("content_block_delta", {"index": 1, "delta": {"type": "input_json_delta", "partial_json": ":1}"}}),
    ]
    deltas = ANTHROPIC.deltas()
    calls = [call for event in events for delta in deltas.read(event) for call in delta.tool_calls]
    assert [call["index"] for call in calls] == [0, 0, 1, 0]
    assert [call.get("id") for call in calls] == ["toolu_1", None, "toolu_2", None]
    assert "".join(call["function"]["arguments"] for call in calls if call["index"] == 0) == '{"x":1}'


def test_chat_usage_is_read_and_inclusive() -> None:
    reader = OPENAI.stream(hide_usage=False)
    run(reader, [CHAT_STREAM])
    assert reader.usage == Usage(input_tokens=12, output_tokens=7, cache_read_tokens=4, reasoning_tokens=2)
    assert reader.finish_reason == "stop"


def test_output_bytes_are_those_of_the_text() -> None:
    reader = OPENAI.stream(hide_usage=False)
    run(reader, [CHAT_STREAM])
    assert len(CHAT_TEXT.encode()) <= reader.output_bytes <= 2 * len(CHAT_TEXT.encode())


def test_a_client_that_did_not_ask_sees_no_trace_of_usage() -> None:
    out, _ = run(OPENAI.stream(hide_usage=True), [CHAT_STREAM])
    chunks = [json.loads(e[6:]) for e in out.split(b"\n\n") if e.startswith(b"data: {")]
    assert all("usage" not in chunk for chunk in chunks)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == CHAT_TEXT
    assert out.endswith(b"data: [DONE]\n\n")


def test_usage_on_a_chunk_with_choices_is_stripped_and_the_choices_stay() -> None:
    reader = OPENAI.stream(hide_usage=True)
    step = reader.feed(chat_chunk({"content": "x"}, "stop", usage=CHAT_USAGE))
    assert b'"usage"' not in step.out
    assert json.loads(step.out[6:])["choices"][0]["delta"] == {"content": "x"}
    assert reader.usage is not None


def test_usage_in_x_groq_counts() -> None:
    reader = OPENAI.stream(hide_usage=False)
    reader.feed(chat_chunk({}, "stop", x_groq={"id": "r", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}))
    assert reader.usage == Usage(input_tokens=3, output_tokens=4)


@pytest.mark.parametrize(
    ("delta", "finish", "begun"),
    [
        ({"role": "assistant", "content": ""}, None, False),
        ({"role": "assistant", "content": None}, None, False),
        ({"content": "x"}, None, True),
        ({"reasoning_content": "x"}, None, True),
        ({"refusal": "no"}, None, True),
        ({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}, None, True),
        ({}, "stop", True),
    ],
)
def test_a_chat_answer_begins_with_its_first_substantive_delta(
    delta: dict[str, object], finish: str | None, begun: bool
) -> None:
    assert OPENAI.stream(hide_usage=False).feed(chat_chunk(delta, finish)).substantive is begun


def test_an_empty_first_chunk_and_comments_are_not_substantive() -> None:
    reader = OPENAI.stream(hide_usage=False)
    assert not reader.feed(b": OPENROUTER PROCESSING\n\n").substantive
    assert not reader.feed(chat_chunk({}, choices=[], prompt_filter_results=[])).substantive


def test_an_anthropic_answer_begins_with_its_first_content_block() -> None:
    reader = ANTHROPIC.stream(hide_usage=False)
    events = [e + b"\n\n" for e in MESSAGE_STREAM.split(b"\n\n") if e]
    assert [reader.feed(event).substantive for event in events[:3]] == [False, False, True]


def test_anthropic_usage_is_cumulative_and_its_input_becomes_inclusive() -> None:
    reader = ANTHROPIC.stream(hide_usage=False)
    run(reader, [MESSAGE_STREAM])
    assert reader.usage == Usage(
        input_tokens=60, output_tokens=9, cache_read_tokens=5, cache_write_tokens=20, cache_write_long_tokens=10
    )
    assert reader.finish_reason == "stop"


@pytest.mark.parametrize(("operation", "stream"), [("stream_events", GEMINI_STREAM), ("stream_generate", GEMINI_ARRAY)])
def test_gemini_usage_is_that_of_the_last_chunk_and_counts_thoughts(operation: str, stream: bytes) -> None:
    reader = GEMINI.stream(hide_usage=False, operation=operation)
    run(reader, [stream])
    assert reader.usage == Usage(input_tokens=12, output_tokens=10, cache_read_tokens=4, reasoning_tokens=3)
    assert reader.finish_reason == "stop"
    assert next(d.reasoning for d in GEMINI.deltas().read(stream)) == "hm"


def test_a_gemini_array_that_was_not_closed_after_its_finish_reason_is_closed() -> None:
    reader = GEMINI.stream(hide_usage=False)
    out = reader.feed(GEMINI_ARRAY.rstrip()[:-1]).out
    step = reader.end()
    assert (step.failure, step.done) == (None, True)
    assert len(json.loads(out + step.out)) == 4


def test_a_prompt_that_gemini_blocks_is_an_answer_and_not_a_failure() -> None:
    reader = GEMINI.stream(hide_usage=False)
    event = b'data: {"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":9}}\r\n\r\n'
    step = reader.feed(event)
    assert (step.failure, step.substantive, reader.finish_reason) == (None, True, "content_filter")
    assert reader.end().done
    (delta,) = GEMINI.deltas().read(event)
    assert "SAFETY" in delta.refusal


def test_a_responses_answer_begins_with_output_and_ends_with_completed() -> None:
    reader = OPENAI.stream(hide_usage=False, operation="responses")
    events = [e + b"\n\n" for e in RESPONSES_STREAM.split(b"\n\n") if e]
    steps = [reader.feed(event) for event in events]
    assert [s.substantive for s in steps] == [False, False, True, True, True, True]
    assert [s.done for s in steps] == [False] * 5 + [True]
    assert reader.usage == Usage(input_tokens=11, output_tokens=6, cache_read_tokens=3, reasoning_tokens=1)


@pytest.mark.parametrize(("wire", "operation", "hide", "stream"), CASES)
def test_a_clean_end_without_terminator_is_a_truncation_unless_a_finish_reason_was_seen(
    wire: Wire, operation: str, hide: bool, stream: bytes
) -> None:
    events = framed(stream)
    reader = wire.stream(hide_usage=hide, operation=operation)
    reader.feed(b"".join(events[:3]))
    failure = reader.end().failure
    assert failure is not None
    assert (failure.code, failure.scope, failure.billed) == ("stream_truncated", FailureScope.PROVIDER, None)


@pytest.mark.parametrize(("wire", "operation", "hide", "stream"), CASES)
def test_half_an_event_at_the_end_is_a_truncation_and_is_not_passed_on(
    wire: Wire, operation: str, hide: bool, stream: bytes
) -> None:
    events = framed(stream)
    whole = b"".join(events[:3])
    for cut in range(len(whole), len(whole) + len(events[3]) - 4):
        reader = wire.stream(hide_usage=hide, operation=operation)
        given = wire.stream(hide_usage=hide, operation=operation).feed(whole).out
        out = reader.feed(stream[:cut]).out
        step = reader.end()
        assert out + step.out == given
        assert step.failure is not None
        assert step.failure.code == "stream_truncated"


def test_half_a_terminator_after_the_finish_reason_is_made_whole() -> None:
    for half in (b"data: [DO", b'data: {"choices":[],"usage":{"prompt_', b"data"):
        reader = OPENAI.stream(hide_usage=False)
        reader.feed(chat_chunk({"content": "x"}, "stop") + half)
        step = reader.end()
        assert (step.failure, step.done, step.out) == (None, True, b"data: [DONE]\n\n")


def test_a_missing_terminator_after_a_finish_reason_is_supplied() -> None:
    reader = OPENAI.stream(hide_usage=False)
    reader.feed(chat_chunk({"content": "x"}, "stop"))
    step = reader.end()
    assert (step.failure, step.done, step.out) == (None, True, b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("wire", "operation", "event", "action"),
    [
        (OPENAI, "chat", b'data: {"error":{"message":"m","type":"server_error","code":null}}\n\n', "back_off"),
        (OPENAI, "chat", b'event: error\ndata: {"error":"overloaded"}\n\n', "back_off"),
        (OPENAI, "chat", b'data: {"error":{"code":429,"message":"slow"},"choices":[]}\n\n', "cool"),
        (OPENAI, "chat", b'data: {"error":{"code":"insufficient_quota","message":"x"}}\n\n', "exhaust"),
        (OPENAI, "responses", named("error", {"code": "rate_limit_exceeded", "message": "m", "param": None}), "cool"),
        (OPENAI, "responses",
         named("response.failed", {"response": {"error": {"code": "server_error", "message": "m"}}}), "back_off"),
        (OPENAI, "responses",
         named("response.failed", {"response": {"error": {"code": "invalid_prompt", "message": "m"}}}), "reject"),
        (ANTHROPIC, "messages", named("error", {"error": {"type": "overloaded_error", "message": "m"}}), "back_off"),
        (ANTHROPIC, "messages", named("error", {"error": {"type": "rate_limit_error", "message": "m"}}), "cool"),
        (GEMINI, "stream_events", b'data: {"error":{"code":503,"status":"UNAVAILABLE"}}\r\n\r\n', "back_off"),
        (GEMINI, "stream_generate", b'[{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}]', "cool"),
    ],
)  # fmt: skip
def test_an_error_event_is_a_failure_and_is_not_passed_on(
    wire: Wire, operation: str, event: bytes, action: str
) -> None:
    reader = wire.stream(hide_usage=False, operation=operation)
    step = reader.feed(event)
    assert step.failure is not None
    assert step.failure.action is FailureAction(action)
    assert step.out == b""
    assert not step.substantive


def test_an_error_in_the_middle_leaves_what_came_before() -> None:
    reader = OPENAI.stream(hide_usage=False)
    first = chat_chunk({"content": "x"})
    step = reader.feed(first + b'data: {"error":{"message":"org-abcdefgh died","type":"server_error"}}\n\n')
    assert step.out == first
    assert step.substantive
    assert step.failure is not None
    assert step.failure.category is ErrorCategory.ProviderError
    assert "org-abcdefgh" not in step.failure.message


def test_an_event_that_is_not_json_is_a_failure() -> None:
    step = OPENAI.stream(hide_usage=False).feed(b"data: {nonsense\n\n")
    assert step.failure is not None
    assert step.failure.code == "stream_unreadable"


def test_after_the_terminator_nothing_is_passed_on() -> None:
    reader = OPENAI.stream(hide_usage=False)
    reader.feed(CHAT_STREAM)
    assert reader.feed(chat_chunk({"content": "late"})).out == b""


def test_deltas_give_back_the_text() -> None:
    assert "".join(d.text for d in OPENAI.deltas().read(CHAT_STREAM)) == CHAT_TEXT
    assert "".join(d.text for d in ANTHROPIC.deltas().read(MESSAGE_STREAM)) == "Grüße 世界"
    assert "".join(d.text for d in GEMINI.deltas().read(GEMINI_STREAM)) == GEMINI_TEXT
    assert "".join(d.text for d in GEMINI.deltas().read(GEMINI_ARRAY)) == GEMINI_TEXT
    assert "".join(d.text for d in OPENAI.deltas(operation="responses").read(RESPONSES_STREAM)) == 'Grüße "x"'


@given(st.sampled_from(CASES), st.data())
def test_no_bytes_whatever_make_a_reader_raise(case: tuple[Wire, str, bool, bytes], data: st.DataObject) -> None:
    wire, operation, hide, stream = case
    bent = bytearray(stream)
    for _ in range(data.draw(st.integers(0, 8))):
        position = data.draw(st.integers(0, len(bent) - 1))
        bent[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    reader = wire.stream(hide_usage=hide, operation=operation)
    cut = data.draw(st.integers(0, len(bent)))
    reader.feed(bytes(bent[:cut]))
    step = reader.feed(bytes(bent[cut:]))
    wire.deltas(operation=operation).read(step.out)
    reader.end()
    assert reader.output_bytes >= 0


def test_googles_sdk_gets_no_comments_not_even_within_an_event() -> None:
    reader = GEMINI.stream(hide_usage=True, operation="stream_events")
    said = [
        b": processing\n\n",
        b'data: {"candidates":[{"content":{"parts":[{"text":"a"}]}}]}\r\n\r\n',
        b': still\r\nevent: x\r\ndata: {"candidates":[{"finishReason":"STOP"}]}\r\n\r\n',
    ]
    got = b"".join([reader.feed(piece).out for piece in said])
    assert got == said[1] + b'data: {"candidates":[{"finishReason":"STOP"}]}\r\n\r\n'
