"""Reading a client's body and making the provider's: bounds that hold, edits that touch nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.domain.components.token_estimator import bound_input
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter.infrastructure.adapters import anthropic_content, openai_content
from apikeyrouter.infrastructure.adapters.anthropic_wire import VERSION, AnthropicWire
from apikeyrouter.infrastructure.adapters.gemini_wire import GeminiWire
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire

OPENAI = OpenAIWire("http://127.0.0.1/v1", "openai")
ANTHROPIC = AnthropicWire("http://127.0.0.1")
GEMINI = GeminiWire("http://127.0.0.1")
USER = [{"role": "user", "content": "hello"}]


def body(**members: Any) -> bytes:
    return json.dumps({"model": "m", "messages": USER, **members}, separators=(",", ":")).encode()


def test_the_fields_that_routing_needs_are_read() -> None:
    parsed = OPENAI.parse(
        body(stream=True, n=3, max_tokens=20, stream_options={"include_usage": True}), operation="chat"
    )
    assert (parsed.model, parsed.stream, parsed.choices, parsed.max_output_tokens) == ("m", True, 3, 20)
    assert parsed.include_usage
    assert (parsed.messages, parsed.text_bytes) == (1, 5)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'"x"', "body"),
        (b"{", "body"),
        (b'{"model":"m",}', "body"),
        (b'{"model":"\xff","messages":[]}', "body"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":1,"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"","messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":null,"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":"x"}', "messages"),
        (b'{"model":"m","messages":[{"content":"x"}]}', "messages[0]"),
        (b'{"model":"m","messages":[{"role":"user","content":5}]}', "messages[0].content"),
        (b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":1}]}]}', "messages[0].content"),
        (b'{"model":"m","messages":[7]}', "messages[0]"),
        (body(stream="yes"), "stream"),
        (body(stream=1), "stream"),
        (body(max_tokens="9"), "max_tokens"),
        (body(max_tokens=-1), "max_tokens"),
        (body(max_tokens=1.5), "max_tokens"),
        (body(max_completion_tokens=2**60), "max_completion_tokens"),
        (body(n=0), "n"),
        (body(n=10**6), "n"),
        (body(n="2"), "n"),
        (body(stream_options=[]), "stream_options"),
        (body(tools={}), "tools"),
        (b'{"model":"m","messages":' + b"[" * 200_000, "body"),
    ],
)
def test_a_wrong_body_is_refused_and_the_field_named(raw: bytes, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        OPENAI.parse(raw, operation="chat")
    assert caught.value.field.startswith(field), caught.value


@pytest.mark.parametrize(
    ("operation", "members", "field"),
    [
        ("embedding", {"model": "m"}, "input"),
        ("embedding", {"model": "m", "input": {"a": 1}}, "input"),
        ("embedding", {"model": "m", "input": [1, "x"]}, "input"),
        ("completion", {"model": "m", "prompt": 5}, "prompt"),
        ("responses", {"model": "m", "input": 5}, "input"),
        ("responses", {"model": "m", "input": "x", "max_output_tokens": "1"}, "max_output_tokens"),
        ("elsewhere", {"model": "m"}, "operation"),
    ],
)
def test_other_operations_name_the_field_too(operation: str, members: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        OPENAI.parse(json.dumps(members).encode(), operation=operation)
    assert caught.value.field == field


def test_anthropic_needs_max_tokens_except_to_count() -> None:
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        ANTHROPIC.parse(body(), operation="messages")
    assert ANTHROPIC.parse(body(), operation="count_tokens").max_output_tokens == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=200)), min_size=1, max_size=6
    ),
    st.booleans(),
    st.dictionaries(st.text(max_size=10), st.text(max_size=50), max_size=3),
)
def test_the_bound_is_never_below_the_bytes_of_all_text(
    messages: list[tuple[str, str]], ascii_only: bool, schema: dict[str, str]
) -> None:
    said = [{"role": role, "content": text} for role, text in messages]
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    document = {"model": "m", "messages": said, "tools": tools, "response_format": wanted}
    raw = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    parsed = OPENAI.parse(raw, operation="chat")
    texts = [text for _, text in messages] + [part for pair in schema.items() for part in pair] * 2
    assert parsed.input_bytes >= sum(len(text.encode()) for text in texts)
    assert parsed.text_bytes >= sum(len(text.encode()) for _, text in messages)
    bound = bound_input(parsed)
    assert bound is not None
    assert bound > parsed.input_bytes


def test_images_count_by_size_and_not_by_their_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    parsed = OPENAI.parse(
        body(messages=[{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]), operation="chat"
    )
    assert parsed.input_bytes < 200
    assert (parsed.extra_tokens, parsed.media, parsed.unbounded) == (openai_content.IMAGE_TOKENS_MAX, 1, False)


def test_anthropic_images_inside_tool_results_count_by_size() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 50_000}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image, {"type": "text", "text": "seen"}]}
    parsed = ANTHROPIC.parse(body(max_tokens=5, messages=[{"role": "user", "content": [result]}]), operation="messages")
    assert parsed.input_bytes < 300
    assert (parsed.extra_tokens, parsed.unbounded) == (anthropic_content.IMAGE_TOKENS_MAX, False)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}},
        {"type": "something_new", "x": 1},
    ],
)
def test_what_has_no_bound_says_so(part: dict[str, Any]) -> None:
    assert OPENAI.parse(body(messages=[{"role": "user", "content": [part]}]), operation="chat").unbounded


@pytest.mark.parametrize(
    ("members", "within_context"),
    [
        ({"previous_response_id": "resp_1"}, True),
        ({"conversation": "conv_1"}, True),
        ({"tools": [{"type": "web_search"}]}, False),
        ({"previous_response_id": "resp_1", "tools": [{"type": "web_search"}]}, False),
        ({"prompt": {"id": "p"}}, False),
        ({"input": [{"type": "item_reference", "id": "x"}]}, True),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, True),
    ],
)
def test_stored_state_is_bounded_by_the_context_and_server_tools_by_nothing(
    members: dict[str, Any], within_context: bool
) -> None:
    parsed = OPENAI.parse(json.dumps({"model": "m", "input": "x", **members}).encode(), operation="responses")
    assert (parsed.unbounded, parsed.within_context) == (True, within_context)


@pytest.mark.parametrize(
    "members",
    [
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"mcp_servers": []},
        {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
    ],
)
def test_files_and_server_tools_have_no_bound_at_anthropic(members: dict[str, Any]) -> None:
    parsed = ANTHROPIC.parse(body(max_tokens=1, **members), operation="messages")
    assert (parsed.unbounded, parsed.within_context) == (True, False), "a header makes the context longer"


def test_prompts_times_choices_are_the_answers_of_a_completion() -> None:
    raw = json.dumps({"model": "m", "prompt": ["a", "b"], "n": 2, "best_of": 3}).encode()
    assert OPENAI.parse(raw, operation="completion").choices == 6


def test_a_predicted_output_may_be_billed_beyond_the_cap() -> None:
    parsed = OPENAI.parse(body(prediction={"type": "content", "content": "x" * 100}), operation="chat")
    assert parsed.extra_output_tokens >= 100


def build(raw: bytes, *, operation: str = "chat", model: str = "m", cap: int | None = None, **more: Any) -> Any:
    wire: Any = ANTHROPIC if operation == "messages" else OPENAI
    parsed = wire.parse(raw, operation=operation)
    return wire.build(parsed, operation=operation, model=model, token_cap=cap, key="sk-key", **more)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_body_that_needs_no_edit_is_the_same_object(separators: tuple[str, str]) -> None:
    raw = json.dumps({"model": "m", "messages": USER, "ключ": [1, {"a": "b"}]}, separators=separators,
                     ensure_ascii=False).encode()  # fmt: skip
    assert build(raw).body is raw


def test_repeated_names_reach_the_provider_once_as_they_were_read() -> None:
    raw = b'{"model":"cheap","messages":[{"role":"user","content":"x"}],"model":"m"}'
    assert json.loads(build(raw).body)["model"] == "m"
    assert build(raw).body.count(b'"model"') == 1
    hidden = b'{"mod\\u0065l":"dear","messages":[{"role":"user","content":"x"}],"model":"m"}'
    assert b"dear" not in build(hidden).body


@pytest.mark.parametrize("first", [b'"maxOutputTokens"', b'"\\u006daxOutputTokens"'])
def test_a_cap_of_gemini_is_said_once_wherever_it_stands(first: bytes) -> None:
    contents = b'"contents":[{"parts":[{"text":"x"}]}]'
    raw = b'{"generationConfig":{%b:9000,"topK":1,"maxOutputTokens":5},%b}' % (first, contents)
    parsed = GEMINI.parse(raw, model="m")
    sent = GEMINI.build(parsed, operation="generate", model="m", token_cap=None, key="k").body
    assert parsed.max_output_tokens == 5
    assert b"9000" not in sent
    assert json.loads(sent)["generationConfig"] == {"topK": 1, "maxOutputTokens": 5}


@pytest.mark.parametrize(
    "told",
    [
        b'"generationConfig":{"maxOutputTokens":5,"max_output_tokens":9000}',
        b'"generationConfig":{"maxOutputTokens":5},"generation_config":{"maxOutputTokens":9000}',
        b'"generationConfig":{"candidateCount":1,"candidate_count":8}',
    ],
)
def test_what_gemini_may_read_by_either_of_two_names_is_said_by_one(told: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="spellings"):
        GEMINI.parse(b'{"contents":[{"parts":[{"text":"x"}]}],%b}' % told, model="m")


def test_edits_change_their_members_and_nothing_else() -> None:
    raw = b'{ "model": "m", "messages":[{"role":"user","content":"h\\u00e9 \\/"}],"x" : 1.50, "stream":true}'
    request = build(raw, model="other", cap=7)
    assert json.loads(request.body) == {
        **json.loads(raw),
        "model": "other",
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 7,
    }
    assert b'"h\\u00e9 \\/"' in request.body
    assert b"1.50" in request.body


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, {"max_completion_tokens": 50}),
        ({"max_tokens": 100}, {"max_tokens": 50}),
        ({"max_tokens": None}, {"max_completion_tokens": 50, "max_tokens": None}),
        ({"max_completion_tokens": 100}, {"max_completion_tokens": 50}),
        ({"max_completion_tokens": 10}, {"max_completion_tokens": 10}),
    ],
)
def test_a_token_cap_only_lowers_and_keeps_the_clients_member(
    members: dict[str, Any], expected: dict[str, Any]
) -> None:
    sent = json.loads(build(body(**members), cap=50).body)
    assert {name: sent[name] for name in sent if name.startswith("max")} == expected


def test_stream_options_of_the_client_are_kept_when_usage_is_asked_for() -> None:
    raw = body(stream=True, stream_options={"include_obfuscation": False})
    assert json.loads(build(raw).body)["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert OpenAIWire("http://x/v1", inject_usage=False).build(
        OPENAI.parse(raw, operation="chat"), operation="chat", model="m", token_cap=None, key="k"
    ).body is raw  # fmt: skip


def test_anthropic_caps_are_lowered_only() -> None:
    assert json.loads(build(body(max_tokens=100), operation="messages", cap=10).body)["max_tokens"] == 10
    assert json.loads(build(body(max_tokens=100), operation="messages", cap=1000).body)["max_tokens"] == 100


LEAKS = (
    ("authorization", "Bearer sk-theirs"),
    ("x-api-key", "sk-theirs"),
    ("x-goog-api-key", "sk-theirs"),
    ("cookie", "a=b"),
    ("host", "gateway"),
    ("accept-encoding", "gzip, br"),
    ("content-length", "5"),
    ("x-stainless-lang", "python"),
    ("x-forwarded-for", "10.0.0.1"),
    ("x-akr-team", "t"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("anthropic-beta", "a,b"),
    ("openai-beta", "assistants=v2"),
    ("x-client-request-id", "r1"),
)


@pytest.mark.parametrize("operation", ["chat", "messages"])
def test_only_allowed_headers_go_on(operation: str) -> None:
    sent = build(body(max_tokens=5), operation=operation, headers=LEAKS).headers
    told = dict(sent)
    assert len(told) == len(sent)
    assert "sk-theirs" not in str(sent)
    assert told["accept-encoding"] == "identity"
    assert not {"cookie", "host", "content-length", "x-stainless-lang", "x-forwarded-for", "x-akr-team"} & told.keys()
    assert {"traceparent", "anthropic-beta", "x-client-request-id"} <= told.keys()
    secret = ("authorization", "Bearer sk-key") if operation == "chat" else ("x-api-key", "sk-key")
    assert secret in sent


def test_the_version_of_an_anthropic_client_is_kept_and_missing_ones_are_supplied() -> None:
    raw = body(max_tokens=5)
    assert dict(build(raw, operation="messages").headers)["anthropic-version"] == VERSION
    sent = build(raw, operation="messages", headers=(("anthropic-version", "2026-10-21"),)).headers
    assert [value for name, value in sent if name == "anthropic-version"] == ["2026-10-21"]


def test_a_header_with_a_line_break_goes_nowhere() -> None:
    sent = build(body(), headers=(("x-client-request-id", "a\r\nx-evil: 1"),)).headers
    assert "evil" not in str(sent)


def test_the_query_goes_on_without_credentials() -> None:
    request = build(body(max_tokens=5), operation="messages", path_query="/v1/messages?beta=true&key=sk-client")
    assert request.url == "http://127.0.0.1/v1/messages?beta=true"


def test_base_urls_come_from_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://env/v1/")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://env")
    assert (OpenAIWire().base_url, AnthropicWire().base_url) == ("http://env/v1", "http://env")
    assert OpenAIWire("http://arg/v1").base_url == "http://arg/v1"
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("ANTHROPIC_BASE_URL")
    assert OpenAIWire().base_url == "https://api.openai.com/v1"
    assert AnthropicWire().base_url == "https://api.anthropic.com"


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_an_invalid_request(raw: bytes) -> None:
    for wire, operation in ((OPENAI, "chat"), (OPENAI, "responses"), (ANTHROPIC, "messages")):
        try:
            wire.parse(raw, operation=operation)
        except InvalidRequestError:
            continue


def test_our_errors_have_the_shape_of_the_dialect() -> None:
    told: dict[str, Any] = {"type": "rate_limit_error", "code": "all_cooling", "message": "wait", "request_id": "r1"}
    assert json.loads(OPENAI.error_body(status=429, **told)) == {
        "error": {"message": "wait", "type": "rate_limit_error", "param": None, "code": "all_cooling"}
    }
    assert json.loads(ANTHROPIC.error_body(status=503, **{**told, "type": "service_unavailable_error"})) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "wait", "details": {"error_code": "all_cooling"}},
        "request_id": "r1",
    }
    assert ANTHROPIC.error_event(**told).startswith(b'event: error\ndata: {"type":"error"')
    assert OPENAI.error_event(**told).startswith(b'data: {"error"')
    assert OPENAI.error_event(**told, operation="responses").startswith(b'event: error\ndata: {"type":"error"')
