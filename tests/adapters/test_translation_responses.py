"""Requests of the Responses API and for text completions as chat, and what answers look like in their words."""

import json
from typing import Any

import pytest

from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.domain.models.wire import Answer, StreamDelta
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire
from apikeyrouter.infrastructure.adapters.translation.answers import write_completion
from apikeyrouter.infrastructure.adapters.translation.completion_to_chat import completion_to_chat
from apikeyrouter.infrastructure.adapters.translation.response_writer import (
    ResponseWriter,
    response_echo,
    write_response,
)
from apikeyrouter.infrastructure.adapters.translation.responses_to_chat import responses_to_chat
from apikeyrouter.infrastructure.adapters.translation.streams import CompletionWriter

Body = dict[str, Any]
OPENAI = OpenAIWire("http://openai/v1")
USAGE = Usage(input_tokens=20, output_tokens=9, cache_read_tokens=4, reasoning_tokens=2)
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
CALLS = (
    {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
    {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
)


CONVERSATION: Body = {
    "model": "m",
    "instructions": "be brief",
    "max_output_tokens": 7,
    "temperature": 0.5,
    "store": False,
    "metadata": {"a": "b"},
    "include": ["reasoning.encrypted_content"],
    "input": [
        {"role": "developer", "content": [{"type": "input_text", "text": "in verse"}]},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "what is this?"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "xyz"},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "let me see", "annotations": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c0", "name": "f", "arguments": '{"x":1}'},
        {"type": "function_call", "call_id": "c1", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "c0", "output": "one"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "two"}]},
    ],
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True}],
    "tool_choice": {"type": "function", "name": "f"},
    "parallel_tool_calls": False,
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
}
AS_CHAT: Body = {
    "model": "m",
    "temperature": 0.5,
    "max_tokens": 7,
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "verbosity": "low",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "in verse"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
            ],
        },
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [
                {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
                {"id": "c1", "type": "function", "function": {"name": "g", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "c0", "content": "one"},
        {"role": "tool", "tool_call_id": "c1", "content": "two"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
}


def test_a_whole_conversation_of_items_becomes_chat() -> None:
    assert responses_to_chat(CONVERSATION) == AS_CHAT


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"text": {"a_new_member": 1}}, "text.a_new_member"),
        ({"a_new_member": 1}, "a_new_member"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": "" }, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"role": "robot", "content": "hi"}]}, "input.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]}]}, "input.content"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": [
                {"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}]},
            "input.output",
        ),
        ({"instructions": [{"role": "user", "content": "hi"}]}, "instructions"),
    ],
)  # fmt: skip
def test_what_chat_cannot_say_of_a_response_is_refused_by_name(more: Body, field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        responses_to_chat({"model": "m", "input": "hi", **more})
    assert refused.value.field == field


def test_a_completion_asks_the_user_and_keeps_its_small_default() -> None:
    assert completion_to_chat({"model": "m", "prompt": ["Once"], "stop": "\n", "logprobs": None}) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Once"}],
        "stop": "\n",
        "max_tokens": 16,
    }


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 0}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"a_new_member": 1}, "a_new_member"),
    ],
)
def test_what_chat_cannot_say_of_a_completion_is_refused_by_name(more: Body, field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        completion_to_chat({"model": "m", "prompt": "hi", **more})
    assert refused.value.field == field


@pytest.mark.parametrize(
    "answer",
    [
        Answer(text="Grüße", finish_reason="stop", usage=USAGE, model="m", id="chatcmpl-1"),
        Answer(text="cut", finish_reason="length", usage=USAGE, model="m", id="msg_1"),
        Answer(text="a", reasoning="hm", tool_calls=CALLS, finish_reason="tool_calls", usage=USAGE, model="m", id="1"),
        Answer(refusal="no", finish_reason="stop", usage=USAGE, model="m", id="1"),
        Answer(finish_reason="content_filter", usage=USAGE, model="m", id="1"),
    ],
)
def test_an_answer_written_as_a_response_reads_the_same(answer: Answer) -> None:
    body = write_response(answer, "m", response_echo({}))
    read = OPENAI.read_answer(body)
    assert (read.text, read.reasoning, read.refusal) == (answer.text, answer.reasoning, answer.refusal)
    assert (read.tool_calls, read.finish_reason) == (answer.tool_calls, answer.finish_reason)
    assert (read.usage, read.model, read.id) == (USAGE, "m", "resp_1")
    assert json.loads(body)["store"] is False


def test_an_answer_written_as_a_completion_reads_the_same() -> None:
    answer = Answer(text="Grüße", finish_reason="length", usage=USAGE, model="m", id="msg_1")
    read = OPENAI.read_answer(write_completion(answer, "m"))
    assert (read.text, read.finish_reason, read.usage, read.id) == ("Grüße", "length", USAGE, "cmpl-1")


DELTAS = [
    StreamDelta(reasoning="h"),
    StreamDelta(reasoning="m"),
    StreamDelta(text="Grüße, "),
    StreamDelta(text="世界"),
    StreamDelta(tool_calls=({"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}},)),
    StreamDelta(
        tool_calls=({"index": 1, "id": "c1", "type": "function", "function": {"name": "g", "arguments": "{"}},)
    ),
    StreamDelta(tool_calls=({"index": 0, "function": {"arguments": '{"x":1}'}},)),
    StreamDelta(tool_calls=({"index": 1, "function": {"arguments": "}"}},)),
]


def test_a_stream_written_as_a_response_reads_the_same_wherever_it_is_cut() -> None:
    writer = ResponseWriter("1", "m", response_echo({"temperature": b"0.5"}))
    stream = b"".join(writer.delta(delta) for delta in DELTAS) + writer.end("tool_calls", USAGE)
    for cut in range(len(stream)):
        reader, deltas = OPENAI.stream(hide_usage=False, operation="responses"), OPENAI.deltas(operation="responses")
        steps = [reader.feed(stream[:cut]), reader.feed(stream[cut:]), reader.end()]
        assert [step.failure for step in steps] == [None] * 3
        found = [delta for step in steps for delta in deltas.read(step.out)]
        assert "".join(delta.text for delta in found) == "Grüße, 世界"
        assert "".join(delta.reasoning for delta in found) == "hm"
        assert (reader.finish_reason, reader.usage) == ("stop", USAGE)


def test_the_events_of_a_response_are_numbered_paired_and_end_in_the_whole() -> None:
    writer = ResponseWriter("1", "m", response_echo({"temperature": b"0.5"}))
    stream = b"".join(writer.delta(delta) for delta in DELTAS) + writer.end("length", USAGE)
    events = [json.loads(line[6:]) for line in stream.split(b"\n") if line.startswith(b"data: ")]
    kinds = [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    for kind in ("output_item", "content_part", "reasoning_summary_part"):
        assert kinds.count(f"response.{kind}.added") == kinds.count(f"response.{kind}.done") > 0
    last = events[-1]["response"]
    assert last["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["type"] for item in last["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["arguments"] for item in last["output"][2:]] == ['{"x":1}', "{}"]
    assert len({item["id"] for item in last["output"]}) == 4
    assert last["temperature"] == 0.5


def test_a_stream_written_as_a_completion_reads_the_same() -> None:
    writer = CompletionWriter("1", "m", include_usage=True)
    stream = writer.delta(StreamDelta(text="a")) + writer.delta(StreamDelta(refusal="b")) + writer.end("stop", USAGE)
    reader = OPENAI.stream(hide_usage=False, operation="completion")
    assert reader.feed(stream).failure is None
    assert (reader.end().failure, reader.finish_reason, reader.usage) == (None, "stop", USAGE)
    assert stream.count(b'"text":"a"') == stream.count(b'"text":"b"') == 1
