"""Translation between dialects: what both can say comes through there and back; what one cannot is refused by name."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.domain.models.wire import Answer, StreamDelta
from apikeyrouter.infrastructure.adapters.anthropic_wire import AnthropicWire
from apikeyrouter.infrastructure.adapters.gemini_wire import GeminiWire
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire
from apikeyrouter.infrastructure.adapters.translation.answers import write_chat, write_generate, write_message
from apikeyrouter.infrastructure.adapters.translation.chat_to_generate import chat_to_generate
from apikeyrouter.infrastructure.adapters.translation.chat_to_messages import chat_to_messages
from apikeyrouter.infrastructure.adapters.translation.generate_to_chat import generate_to_chat
from apikeyrouter.infrastructure.adapters.translation.messages_to_chat import messages_to_chat
from apikeyrouter.infrastructure.adapters.translation.streams import (
    ChatWriter,
    GenerateWriter,
    MessageWriter,
    StreamWriter,
)

Body = dict[str, Any]
CLAUDE, GEMINI_MODEL = "claude-sonnet-4-5", "gemini-2.5-flash"
OPENAI, ANTHROPIC, GEMINI = OpenAIWire("http://x/v1"), AnthropicWire("http://x"), GeminiWire("http://x")

# --- requests that both sides can say ---

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
NAME = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
SCHEMA = st.fixed_dictionaries(
    {"type": st.just("object"), "properties": st.dictionaries(NAME, st.just({"type": "string"}), max_size=2)}
)
IMAGE = st.sampled_from(["data:image/png;base64,QUJD", "data:image/webp;base64,"])
PART = st.one_of(
    TEXT.map(lambda text: {"type": "text", "text": text}),
    IMAGE.map(lambda url: {"type": "image_url", "image_url": {"url": url}}),
)
USER = st.one_of(TEXT, st.lists(PART, min_size=2, max_size=3)).map(lambda content: {"role": "user", "content": content})
ARGUMENTS = st.dictionaries(NAME, st.one_of(TEXT, st.integers(-5, 5), st.booleans(), st.none()), max_size=3)
RESULT = st.one_of(
    st.dictionaries(NAME.filter(lambda name: name != "output"), TEXT, min_size=1, max_size=2).map(
        lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    ),
    TEXT.filter(lambda text: not text.strip().startswith("{")),
)


@st.composite
def _tool_turn(draw: st.DrawFn) -> list[Body]:
    """A call or two, and what came of them."""
    calls, results = [], []
    for number in range(draw(st.integers(1, 2))):
        id_ = f"call_{draw(st.uuids())}_{number}"
        arguments = json.dumps(draw(ARGUMENTS), separators=(",", ":"), ensure_ascii=False)
        calls.append({"id": id_, "type": "function", "function": {"name": draw(NAME), "arguments": arguments}})
        results.append({"role": "tool", "tool_call_id": id_, "content": draw(RESULT)})
    said = draw(st.one_of(st.none(), TEXT))
    return [{"role": "assistant", "content": said, "tool_calls": calls}, *results]


SAID = TEXT.map(lambda text: [{"role": "assistant", "content": text}])
TURNS = st.lists(st.tuples(USER, st.one_of(SAID, _tool_turn())), max_size=3).map(
    lambda turns: [message for user, answer in turns for message in [user, *answer]]
)


@st.composite
def chats(draw: st.DrawFn, model: str) -> Body:
    """A chat request without anything that only OpenAI has."""
    system = [{"role": "system", "content": text} for text in draw(st.lists(TEXT, max_size=1))]
    body: Body = {
        "model": model,
        "messages": [*system, *draw(TURNS), draw(USER)],
        "max_tokens": draw(st.integers(1, 99)),
    }
    if draw(st.booleans()):
        body["temperature"] = draw(st.sampled_from([0, 0.5, 1]))
    if draw(st.booleans()):
        body["stop"] = draw(st.lists(TEXT, min_size=1, max_size=3))
    if draw(st.booleans()):
        names = draw(st.lists(NAME, min_size=1, max_size=2, unique=True))
        functions = [{"name": name, "description": draw(TEXT), "parameters": draw(SCHEMA)} for name in names]
        body["tools"] = [{"type": "function", "function": function} for function in functions]
        forced = {"type": "function", "function": {"name": names[0]}}
        body["tool_choice"] = draw(st.sampled_from(["auto", "required", "none", forced]))
    if draw(st.booleans()):
        schema = {"name": "answer", "schema": draw(SCHEMA), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


@given(chats(CLAUDE))
def test_chat_comes_back_from_messages_as_it_went(chat: Body) -> None:
    there = json.loads(json.dumps(chat_to_messages(chat)))
    assert messages_to_chat(there) == chat
    assert ANTHROPIC.parse(json.dumps(there).encode()).model == CLAUDE


@given(chats(GEMINI_MODEL))
def test_chat_comes_back_from_gemini_as_it_went(chat: Body) -> None:
    there = json.loads(json.dumps(chat_to_generate(chat)))
    assert generate_to_chat(there, model=GEMINI_MODEL, stream=False) == chat
    assert GEMINI.parse(json.dumps(there).encode(), model=GEMINI_MODEL).messages >= 1


@given(chats(CLAUDE))
def test_messages_come_back_from_chat_as_they_went(chat: Body) -> None:
    messages = chat_to_messages(chat)
    assert chat_to_messages(messages_to_chat(messages)) == messages


# --- single rules ---


def chat_of(messages: Any = None, *, model: str = CLAUDE, **more: Any) -> Body:
    return {"model": model, "messages": messages or [{"role": "user", "content": "hi"}], **more}


@pytest.mark.parametrize(
    ("model", "effort", "thinking", "config", "max_tokens"),
    [
        ("claude-sonnet-5", "high", {"type": "adaptive"}, {"effort": "high"}, 4096),
        ("claude-opus-4-6", "xhigh", {"type": "adaptive"}, {"effort": "max"}, 4096),
        ("claude-sonnet-4-5-20250929", "medium", {"type": "enabled", "budget_tokens": 4096}, None, 8192),
        ("claude-3-7-sonnet-latest", "low", {"type": "enabled", "budget_tokens": 1024}, None, 5120),
        ("claude-3-5-haiku-latest", "high", None, None, 4096),
        ("claude-sonnet-5", "none", None, None, 4096),
    ],
)
def test_an_effort_becomes_thinking_as_each_generation_has_it(
    model: str, effort: str, thinking: Any, config: Any, max_tokens: int
) -> None:
    body = chat_to_messages(chat_of(model=model, reasoning_effort=effort, temperature=0.5))
    assert (body.get("thinking"), body.get("output_config"), body["max_tokens"]) == (thinking, config, max_tokens)
    if thinking and thinking["type"] == "enabled":
        assert "temperature" not in body


@pytest.mark.parametrize(("cap", "budget"), [(20_000, 16_384), (4_000, 2_000), (1_200, 1_024), (1_024, None)])
def test_a_budget_of_thoughts_stays_below_the_cap(cap: int, budget: int | None) -> None:
    body = chat_to_messages(chat_of(reasoning_effort="high", max_tokens=cap))
    assert (body["max_tokens"], body.get("thinking", {}).get("budget_tokens")) == (cap, budget)


def test_the_old_way_to_call_functions_is_understood() -> None:
    body = chat_of(
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "done"},
        ],
        functions=[{"name": "f", "parameters": {"type": "object"}}],
        function_call={"name": "f"},
    )
    messages = chat_to_messages(body)
    assert messages["messages"][2]["content"][0]["tool_use_id"] == messages["messages"][1]["content"][0]["id"]
    assert messages["tool_choice"] == {"type": "tool", "name": "f"}
    contents = chat_to_generate({**body, "model": GEMINI_MODEL})
    assert contents["contents"][2]["parts"][0]["functionResponse"] == {"name": "f", "response": {"output": "done"}}
    assert contents["toolConfig"]["functionCallingConfig"] == {"mode": "ANY", "allowedFunctionNames": ["f"]}


def test_a_signature_of_geminis_thoughts_comes_back_to_it() -> None:
    calls = [
        {
            "id": "c",
            "type": "function",
            "function": {"name": "f", "arguments": "{}"},
            "extra_content": {"google": {"thought_signature": "c2ln"}},
        }
    ]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    body = chat_to_generate(chat_of(messages, model="gemini-3-pro", reasoning_effort="low"))
    assert body["contents"][1]["parts"][0]["thoughtSignature"] == "c2ln"
    assert body["generationConfig"]["thinkingConfig"] == {"thinkingLevel": "low"}
    assert generate_to_chat(body, model="g", stream=False)["messages"][1]["tool_calls"] == calls


def test_files_and_sounds_reach_who_takes_them() -> None:
    pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"}}
    wav = {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}}
    said = [{"role": "user", "content": [pdf]}]
    document = chat_to_messages(chat_of(said))["messages"][0]["content"][0]
    assert document["source"] == {"type": "base64", "media_type": "application/pdf", "data": "QUJD"}
    assert messages_to_chat(chat_to_messages(chat_of(said)))["messages"] == said
    both = chat_to_generate(chat_of([{"role": "user", "content": [pdf, wav]}]))["contents"][0]["parts"]
    assert [part["inlineData"]["mimeType"] for part in both] == ["application/pdf", "audio/wav"]


TOOLS = [{"type": "function", "function": {"name": "f"}}]


def user(*parts: Body) -> list[Body]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("translate", "more", "field"),
    [
        (chat_to_messages, {"n": 2}, "n"),
        (chat_to_messages, {"logprobs": True}, "logprobs"),
        (chat_to_messages, {"logit_bias": {"5": 1}}, "logit_bias"),
        (chat_to_messages, {"audio": {"voice": "x"}}, "audio"),
        (chat_to_messages, {"response_format": {"type": "json_object"}}, "response_format"),
        (chat_to_messages, {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        (chat_to_messages, {"tools": TOOLS, "tool_choice": "some"}, "tool_choice"),
        *((chat_to_messages, {"model": model, "tools": TOOLS, "tool_choice": choice}, "tool_choice")
          for model in ("claude-opus-5-5", "claude-fable-5-1-20261001", "claude-mythos-5.1")
          for choice in ("required", {"type": "function", "function": {"name": "f"}})),
        (chat_to_messages, {"messages": [{"role": "oracle", "content": "x"}]}, "messages"),
        (chat_to_messages, {"messages": "hi"}, "messages"),
        (chat_to_messages, {"messages": user({"type": "image_url", "image_url": {}})}, "messages"),
        (chat_to_messages, {"model": "claude-sonnet-5", "messages": [
            {"role": "user", "content": "x"}, {"role": "assistant", "content": "prefill"}]}, "messages"),
        (chat_to_messages, {"messages": [{"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "function": {"name": "f", "arguments": "[1]"}}]}]}, "messages.tool_calls"),
        (chat_to_generate, {"logprobs": True}, "logprobs"),
        (chat_to_generate, {"stop": list("abcdef")}, "stop"),
        (chat_to_generate, {"modalities": ["text", "audio"]}, "modalities"),
        (chat_to_generate, {"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
        (chat_to_generate, {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        (chat_to_generate, {"messages": [{"role": "tool", "tool_call_id": "c", "content": "x"}]}, "messages.tool_call"),
        (chat_to_generate, {"messages": user({"type": "image_url", "image_url": {"url": "https://x/y.png"}})},
         "messages.content.image_url"),
        (chat_to_generate, {"messages": [{"role": "system", "content": "only"}]}, "messages"),
        (messages_to_chat, {"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        (messages_to_chat, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        (messages_to_chat, {"stop_sequences": list("abcde")}, "stop_sequences"),
        (messages_to_chat, {"messages": user({"type": "container_upload"})}, "messages"),
        (messages_to_chat, {"messages": user({"type": "image", "source": {"type": "file"}})}, "messages"),
        (messages_to_chat, {"messages": user({"type": "tool_result", "tool_use_id": "c", "content": [
            {"type": "image", "source": {}}]})}, "messages"),
    ],
)  # fmt: skip
def test_what_the_other_side_cannot_say_is_refused_by_name(
    translate: Callable[[Body], Body], more: Body, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        translate({**chat_of(max_tokens=9), **more})
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"contents": [], "cachedContent": "x"}, "cachedContent"),
        ({"contents": [{"parts": [{"fileData": {}}]}]}, "contents.parts"),
        ({"contents": [{"role": "model", "parts": [{"executableCode": {}}]}]}, "contents.parts"),
        ({"contents": [{"parts": [{"functionResponse": {"name": "f"}}]}]}, "contents.parts.functionResponse"),
        ({"contents": [{"role": "oracle", "parts": []}]}, "contents.role"),
        ({"contents": [], "tools": [{"googleSearch": {}}]}, "tools"),
        ({"contents": [], "generationConfig": {"responseLogprobs": True}}, "generationConfig"),
    ],
)
def test_what_chat_cannot_say_of_a_gemini_request_is_refused_by_name(body: Body, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        generate_to_chat(body, model="m", stream=False)
    assert caught.value.field.startswith(field)


MEMBERS = [
    "messages", "tools", "tool_choice", "system", "contents", "stop", "n", "response_format", "systemInstruction",
    "generationConfig", "output_config", "metadata", "thinking", "functions", "toolConfig", "max_tokens",
    "stop_sequences", "reasoning_effort", "user", "service_tier", "temperature",
]  # fmt: skip
INSIDE = [
    "role", "content", "type", "text", "parts", "function", "tool_calls", "source", "name", "image_url", "url",
    "functionCall", "functionResponse", "response", "function_call", "arguments", "input_audio", "file", "id",
    "json_schema", "schema", "format", "thinkingConfig", "functionCallingConfig", "inlineData", "tool_call_id",
]  # fmt: skip
WORDS = [
    "user", "text", "tool", "assistant", "model", "system", "image_url", "input_audio", "file", "json_schema", "image",
    "document", "tool_use", "tool_result", "function", "base64", "auto",
]  # fmt: skip
ROLES = ["user", "assistant", "tool", "system", "model", "function"]


def odd(random: Random, depth: int = 3) -> Any:
    """Any JSON, with names and words that mean something somewhere."""
    kind = random.randrange(8 if depth else 5)
    if kind < 5:
        return random.choice([None, True, 0, -1, 1.5, "", "{}", "{", *WORDS])
    if kind < 6:
        return [odd(random, depth - 1) for _ in range(random.randrange(3))]
    return {name: odd(random, depth - 1) for name in random.sample(INSIDE, random.randrange(4))}


def odd_parts(random: Random) -> Any:
    if random.random() < 0.3:
        return odd(random)
    return [{**odd_object(random), "type": random.choice([*WORDS, None])} for _ in range(random.randrange(1, 3))]


def odd_object(random: Random) -> Body:
    return {name: odd(random) for name in random.sample(INSIDE, random.randrange(5))}


def odd_messages(random: Random) -> list[Body]:
    places = ("content", "parts", "tool_calls")
    return [
        {
            **odd_object(random),
            "role": random.choice(ROLES),
            **{place: odd_parts(random) for place in random.sample(places, random.randrange(4))},
        }
        for _ in range(random.randrange(1, 4))
    ]


def generate_to_stream(body: Body) -> Body:
    return generate_to_chat(body, model="m", stream=True)


@given(
    st.sampled_from([chat_to_messages, chat_to_generate, messages_to_chat, generate_to_stream]), st.integers(0, 2**32)
)
def test_no_request_whatever_makes_a_translation_crash(translate: Callable[[Body], Body], seed: int) -> None:
    random = Random(seed)
    body: Body = {"model": "m", **{name: odd(random) for name in random.sample(MEMBERS, random.randrange(5))}}
    for name in ("messages", "contents"):
        body[name] = odd_messages(random)
    if random.random() < 0.3:
        body["tools"] = odd_parts(random)
    told = ""
    try:
        assert translate(body)
    except InvalidRequestError as exc:
        told = exc.reason
        assert told


# --- answers and streams ---

CALLS = (
    {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
    {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
)
USAGE = Usage(input_tokens=20, output_tokens=9, cache_read_tokens=4)
WRITERS: list[tuple[Wire, Callable[[Answer, str], bytes]]] = [
    (OPENAI, write_chat),
    (ANTHROPIC, write_message),
    (GEMINI, write_generate),
]


@pytest.mark.parametrize(("wire", "write"), WRITERS)
@pytest.mark.parametrize(
    "answer",
    [
        Answer(text="Grüße", finish_reason="stop", usage=USAGE, model="m", id="1"),
        Answer(text="cut", finish_reason="length", usage=USAGE, model="m", id="1"),
        Answer(text="a", tool_calls=CALLS, finish_reason="tool_calls", usage=USAGE, model="m", id="1"),
        Answer(tool_calls=CALLS[:1], finish_reason="tool_calls", usage=USAGE, model="m", id="1"),
    ],
)
def test_an_answer_written_in_a_dialect_reads_the_same(
    wire: Wire, write: Callable[[Answer, str], bytes], answer: Answer
) -> None:
    read = wire.read_answer(write(answer, "m"))
    assert (read.text, read.tool_calls, read.finish_reason) == (answer.text, answer.tool_calls, answer.finish_reason)
    assert (read.usage, read.model) == (USAGE, "m")


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
    ],
)
def test_each_reason_to_stop_is_told_in_the_words_of_chat(stop_reason: str, finish_reason: str) -> None:
    whole = {"id": "m", "content": [{"type": "text", "text": "x"}], "stop_reason": stop_reason}
    event = {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": 1}}
    delta = ANTHROPIC.deltas().read(b"event: message_delta\ndata: " + json.dumps(event).encode() + b"\n\n")
    assert ANTHROPIC.read_answer(json.dumps(whole).encode()).finish_reason == finish_reason
    assert [one.finish_reason for one in delta] == [finish_reason]


def test_a_model_that_may_be_made_to_call_a_tool_is() -> None:
    body = chat_to_messages(
        {**chat_of(max_tokens=9), "model": "claude-opus-5", "tools": TOOLS, "tool_choice": "required"}
    )
    assert body["tool_choice"] == {"type": "any"}
    free = chat_to_messages(
        {**chat_of(max_tokens=9), "model": "claude-opus-5-5", "tools": TOOLS, "tool_choice": "auto"}
    )
    assert free["tool_choice"] == {"type": "auto"}


def test_arguments_that_are_no_json_are_wrapped_and_not_lost() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": tru'}}
    answer = Answer(tool_calls=(call,), finish_reason="length")
    block = json.loads(write_message(answer, "m"))["content"][0]
    assert block["input"] == {"INVALID_JSON": '{"x": tru'}


def stream_writers() -> list[tuple[Wire, str, StreamWriter]]:
    return [
        (OPENAI, "chat", ChatWriter("1", "m", include_usage=True)),
        (ANTHROPIC, "messages", MessageWriter("1", "m")),
        (GEMINI, "stream_events", GenerateWriter("1", "m")),
        (GEMINI, "stream_generate", GenerateWriter("1", "m", array=True)),
    ]


DELTAS = [
    StreamDelta(text="Grüße, "),
    StreamDelta(text="世界"),
    StreamDelta(tool_calls=({"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}},)),
    StreamDelta(tool_calls=({"index": 0, "function": {"arguments": '{"x"'}},)),
    StreamDelta(tool_calls=({"index": 0, "function": {"arguments": ":1}"}},)),
    StreamDelta(
        tool_calls=({"index": 1, "id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},)
    ),
]


def merged(calls: list[Body]) -> list[Body]:
    """Calls put together from their pieces."""
    found: dict[int, Body] = {}
    for piece in calls:
        known = found.setdefault(piece["index"], {"function": {"name": "", "arguments": ""}})
        known["id"] = piece.get("id") or known.get("id")
        known["function"]["name"] += piece["function"].get("name") or ""
        known["function"]["arguments"] += piece["function"].get("arguments") or ""
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("number", range(4))
def test_a_stream_written_in_a_dialect_reads_the_same_wherever_it_is_cut(number: int) -> None:
    wire, operation, writer = stream_writers()[number]
    stream = b"".join(writer.delta(delta) for delta in DELTAS) + writer.end("tool_calls", USAGE)
    for cut in range(0, len(stream), 7):
        reader, deltas = wire.stream(hide_usage=False, operation=operation), wire.deltas(operation=operation)
        steps = [reader.feed(stream[:cut]), reader.feed(stream[cut:]), reader.end()]
        assert [step.failure for step in steps] == [None] * 3
        found = [delta for step in steps for delta in deltas.read(step.out)]
        assert "".join(delta.text for delta in found) == "Grüße, 世界"
        calls = merged([call for delta in found for call in delta.tool_calls])
        assert [(call["id"], call["function"]) for call in calls] == [(call["id"], call["function"]) for call in CALLS]
        assert (reader.finish_reason, reader.usage) == ("tool_calls", USAGE)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"inference_geo": "us"}, "inference_geo"),
        ({"a_new_member": 1}, "a_new_member"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
    ],
)
def test_what_chat_cannot_say_of_messages_is_refused_by_name(more: Body, field: str) -> None:
    body = {"model": "gpt-4o", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **more}
    with pytest.raises(InvalidRequestError) as refused:
        messages_to_chat(body)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"generationConfig": {"responseModalities": ["IMAGE"]}}, "generationConfig.responseModalities"),
        ({"generationConfig": {"imageConfig": {}}}, "generationConfig.image_config"),
        ({"generation_config": {"a_new_member": 1}}, "generationConfig.a_new_member"),
        ({"aNewMember": 1}, "a_new_member"),
        ({"tools": [{"googleSearch": {}}]}, "tools"),
    ],
)
def test_what_chat_cannot_say_of_gemini_is_refused_by_name(more: Body, field: str) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}], **more}
    with pytest.raises(InvalidRequestError) as refused:
        generate_to_chat(body, model="gpt-4o", stream=False)
    assert refused.value.field == field


def test_knobs_and_hints_that_chat_lacks_are_left_out() -> None:
    body = {"model": "gpt-4o", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "top_k": 3}
    assert "top_k" not in messages_to_chat(body)
    contents = {"contents": [{"parts": [{"text": "hi"}]}], "safetySettings": [{}], "generationConfig": {"topK": 3}}
    assert generate_to_chat(contents, model="gpt-4o", stream=False)["messages"] == [{"role": "user", "content": "hi"}]
