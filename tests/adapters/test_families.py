"""What each provider's requests look like on the wire: address, credentials, edits, and what is read from headers."""

import json
from typing import Any

import pytest

from apikeyrouter.domain.interfaces.wire import ParsedRequest, UpstreamRequest, Wire
from apikeyrouter.domain.models.failure import FailureAction
from apikeyrouter.domain.models.request_intent import Message, Operation, RequestIntent
from apikeyrouter.domain.models.system_error import ConfigurationError, InvalidRequestError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.azure_adapter import AzureOpenAIAdapter, AzureWire
from apikeyrouter.infrastructure.adapters.gemini_adapter import GeminiAdapter
from apikeyrouter.infrastructure.adapters.gemini_wire import GeminiWire
from apikeyrouter.infrastructure.adapters.http_adapter import HTTPAdapter
from apikeyrouter.infrastructure.adapters.openai_adapter import OpenAIAdapter
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire
from apikeyrouter.infrastructure.adapters.profiles import PROFILES, find_profile
from apikeyrouter.infrastructure.adapters.registry import ADAPTERS, make_adapter
from apikeyrouter.infrastructure.config.compile import KNOWN_ADAPTERS
from apikeyrouter.infrastructure.config.compiled import ProviderRecord

GEMINI = GeminiWire("http://g")
CONTENTS = [{"role": "user", "parts": [{"text": "hello"}]}]


def chat(model: str = "m", **parameters: Any) -> RequestIntent:
    return RequestIntent(model=model, messages=[Message(role="user", content="hello")], parameters=parameters)


def sent(
    adapter: HTTPAdapter, intent: RequestIntent, *, stream: bool = False, cap: int | None = None
) -> UpstreamRequest:
    """What an adapter's wire makes of an intent."""
    operation, body = adapter.encode_intent(intent, stream=stream)
    parsed = adapter.wire.parse(body, operation=operation, model=intent.model)
    return adapter.wire.build(parsed, operation=operation, model=intent.model, token_cap=cap, key="KEY")


def members(request: UpstreamRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.body)
    return found


# --- profiles ---


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("openai", "https://api.openai.com/v1/chat/completions"),
        ("mistral", "https://api.mistral.ai/v1/chat/completions"),
        ("groq", "https://api.groq.com/openai/v1/chat/completions"),
        ("deepseek", "https://api.deepseek.com/chat/completions"),
        ("openrouter", "https://openrouter.ai/api/v1/chat/completions"),
        ("vllm", "http://127.0.0.1:8000/v1/chat/completions"),
        ("ollama", "http://127.0.0.1:11434/v1/chat/completions"),
        ("llamacpp", "http://127.0.0.1:8080/v1/chat/completions"),
    ],
)
def test_each_profile_knows_its_address(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    request = sent(OpenAIAdapter(profile=name), chat())
    assert request.url == url
    assert dict(request.headers)["authorization"] == "Bearer KEY"
    assert OpenAIAdapter(profile=name).get_provider_id() == name


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (None, "openai"),
        ("https://api.openai.com/v1", "openai"),
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://api.mistral.ai/v1/", "mistral"),
        ("http://10.0.0.1:8000/v1", "compatible"),
        ("not a url", "compatible"),
    ],
)
def test_a_profile_is_told_by_the_host(url: str | None, name: str) -> None:
    assert find_profile(None, url).name == name
    assert find_profile("vllm", url).name == "vllm"


def test_a_profile_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no profile 'nonsense'"):
        OpenAIAdapter(profile="nonsense")
    with pytest.raises(ConfigurationError, match="base_url"):
        OpenAIWire(None, "compatible")


def test_mistral_gets_the_names_that_it_knows_and_nothing_that_it_refuses() -> None:
    body = members(sent(OpenAIAdapter(profile="mistral"), chat(max_completion_tokens=9, seed=3, user="u"), stream=True))
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 9,
        "random_seed": 3,
        "stream": True,
    }
    assert members(sent(OpenAIAdapter(profile="mistral"), chat(), cap=5))["max_tokens"] == 5


@pytest.mark.parametrize(
    ("profile", "model", "member", "asks"),
    [
        ("openai", "gpt-4o", "max_completion_tokens", True),
        ("groq", "llama", "max_completion_tokens", True),
        ("compatible", "llama", "max_tokens", True),
        ("compatible", "gpt-5.6", "max_completion_tokens", True),
        ("vllm", "llama", "max_tokens", True),
        ("mistral", "m", "max_tokens", False),
        ("openrouter", "x/y", "max_tokens", False),
        ("deepseek", "d", "max_tokens", True),
    ],
)
def test_caps_and_usage_are_asked_for_as_each_server_takes_them(
    profile: str, model: str, member: str, asks: bool
) -> None:
    wire = OpenAIAdapter("http://x/v1", profile=profile)
    body = members(sent(wire, chat(model), stream=True, cap=7))
    assert body[member] == 7
    assert ("stream_options" in body) is asks


@pytest.mark.parametrize("profile", ["mistral", "groq", "deepseek"])
def test_an_operation_that_a_server_has_not_is_refused(profile: str) -> None:
    intent = RequestIntent(model="m", operation=Operation.Completion, payload={"prompt": "x"})
    adapter = OpenAIAdapter(profile=profile)
    if Operation.Completion in adapter.operations():
        assert sent(adapter, intent).url.endswith("/completions")
    else:
        with pytest.raises(InvalidRequestError, match="operation"):
            sent(adapter, intent)


@pytest.mark.parametrize(
    ("profile", "headers", "expected"),
    [
        (
            "openai",
            {"x-ratelimit-limit-tokens": "100", "x-ratelimit-remaining-tokens": "90",
             "x-ratelimit-limit-project-tokens": "50", "x-ratelimit-remaining-project-tokens": "20",
             "x-ratelimit-reset-project-tokens": "6m0s"},
            [("tpm", 60, 50, 20, 360)],
        ),
        (
            "groq",
            {"x-ratelimit-limit-requests": "14400", "x-ratelimit-remaining-requests": "14370",
             "x-ratelimit-reset-requests": "2m59.56s", "x-ratelimit-remaining-tokens": "17997"},
            [("rpd", 86_400, 14400, 14370, 179.56), ("tpm", 60, 0, 17997, 0)],
        ),
        (
            "mistral",
            {"x-ratelimit-limit-req-minute": "720", "x-ratelimit-remaining-req-minute": "717",
             "x-ratelimit-limit-tokens-minute": "5000000", "x-ratelimit-remaining-tokens-minute": "4999911",
             "x-ratelimit-tokens-query-cost": "52"},
            [("rpm", 60, 720, 717, 0), ("tpm", 60, 5000000, 4999911, 0)],
        ),
        (
            "mistral",
            {"ratelimitbysize-limit": "500000", "ratelimitbysize-remaining": "499993", "ratelimitbysize-reset": "52"},
            [("tpm", 60, 500000, 499993, 52)],
        ),
        (
            "azure",
            {"x-ratelimit-limit-requests": "-1", "x-ratelimit-remaining-requests": "-1",
             "x-ratelimit-remaining-tokens": "119", "x-ratelimit-reset-tokens": "44"},
            [("tpm", 60, 0, 119, 44)],
        ),
        (
            "compatible",
            {"x-ratelimit-limit-requests-day": "1000", "x-ratelimit-remaining-requests-day": "999",
             "x-ratelimit-remaining-tokens-minute": "60000"},
            [("rpd", 86_400, 1000, 999, 0), ("tpm", 60, 0, 60000, 0)],
        ),
        ("deepseek", {"x-ratelimit-remaining-requests": "5"}, []),
    ],
)  # fmt: skip
def test_limit_headers_are_read_as_each_provider_means_them(
    profile: str, headers: dict[str, str], expected: list[tuple[str, int, int, int, float]]
) -> None:
    seen = OpenAIWire("http://x/v1", profile).observe(headers)
    found = [(o.name, o.period_us / 1e6, o.limit, o.remaining, o.reset_us / 1e6) for o in seen]
    assert sorted(found) == sorted(expected)


def test_what_openrouter_charges_is_read_and_of_others_nothing_is_believed() -> None:
    body = b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"cost":0.00014}}'
    assert OpenAIWire("http://x/v1", "openrouter").read_usage(body) == Usage(
        input_tokens=3, output_tokens=4, cost_nanousd=140_000
    )
    plain = Usage(input_tokens=3, output_tokens=4)
    assert OpenAIWire("http://x/v1").read_usage(body) == plain
    odd = b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"cost":{"total":1}}}'
    assert OpenAIWire("http://x/v1", "openrouter").read_usage(odd) == plain


def test_names_of_a_configuration_file_make_adapters() -> None:
    assert ADAPTERS.keys() == KNOWN_ADAPTERS
    for name in ADAPTERS:
        record = ProviderRecord(id=f"my-{name}", adapter=name, base_url="http://x/v1", lane="p", options={})
        made = make_adapter(record)
        assert made.get_provider_id() == f"my-{name}"
        assert made.get_capabilities().operations


def test_rows_of_a_provider_apply_whatever_it_is_called() -> None:
    record = ProviderRecord(id="fast-one", adapter="groq", base_url=None, lane="p", options={})
    wire: Wire = make_adapter(record).wire  # type: ignore[attr-defined]
    assert wire.classify(413, {}, b"{}").retry_elsewhere


def test_every_profile_is_an_adapter_of_its_own_name() -> None:
    assert PROFILES.keys() <= ADAPTERS.keys()


# --- Azure ---


def test_azure_names_the_deployment_in_the_path_and_the_version_in_the_query() -> None:
    adapter = AzureOpenAIAdapter("https://res.openai.azure.com/", deployments={"gpt-4o": "my dep"})
    request = sent(adapter, chat("gpt-4o"), cap=5)
    assert request.url == (
        "https://res.openai.azure.com/openai/deployments/my%20dep/chat/completions?api-version=2024-10-21"
    )
    headers = dict(request.headers)
    assert headers["api-key"] == "KEY"
    assert "authorization" not in headers
    assert members(request)["max_completion_tokens"] == 5
    assert adapter.get_capabilities().serves("gpt-4o")
    assert not adapter.get_capabilities().serves("gpt-4")


def test_azures_newer_api_names_the_deployment_in_the_body() -> None:
    for adapter in (
        AzureOpenAIAdapter("https://res.openai.azure.com/openai/v1/", deployments={"gpt-4o": "dep"}),
        AzureOpenAIAdapter("https://res.openai.azure.com", api_version="v1", deployments={"gpt-4o": "dep"}),
    ):
        request = sent(adapter, chat("gpt-4o"))
        assert request.url == "https://res.openai.azure.com/openai/v1/chat/completions"
        assert members(request)["model"] == "dep"


def test_azure_takes_tokens_of_entra_too_and_keeps_a_clients_query() -> None:
    wire = AzureWire("https://res.openai.azure.com", auth="bearer", api_version="2025-01-01-preview")
    parsed = wire.parse(b'{"model":"d","messages":[{"role":"user","content":"x"}]}')
    request = wire.build(parsed, operation="chat", model="d", token_cap=None, key="K", path_query="/x?a=1&api-key=no")
    assert request.url.endswith("?api-version=2025-01-01-preview&a=1")
    assert dict(request.headers)["authorization"] == "Bearer K"
    assert wire.models_url() == "https://res.openai.azure.com/openai/models?api-version=2025-01-01-preview"


def test_azure_without_an_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    with pytest.raises(ConfigurationError, match="endpoint"):
        AzureOpenAIAdapter()
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://env.openai.azure.com")
    assert AzureOpenAIAdapter().wire.base_url == "https://env.openai.azure.com/openai"


@pytest.mark.parametrize(
    ("status", "body", "action"),
    [
        (400, {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}, "reject"),
        (404, {"code": "DeploymentNotFound", "message": "The API deployment does not exist"}, "skip_model"),
        (401, {"code": "401", "message": "Access denied due to invalid subscription key"}, "invalidate"),
        (403, {"message": "Access denied due to Virtual Network/Firewall rules."}, "invalidate"),
        (429, {"code": "429", "message": "Requests to the ... have exceeded call rate limit"}, "cool"),
    ],
)
def test_azures_errors_are_read_by_cause(status: int, body: dict[str, Any], action: str) -> None:
    wire = AzureWire("https://res.openai.azure.com")
    failure = wire.classify(status, {"retry-after-ms": "1500"}, json.dumps({"error": body}).encode())
    assert failure.action is FailureAction(action)
    assert failure.retry_after_us == 1_500_000


# --- Gemini ---


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        (None, "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro:generateContent"),
        ("http://g", "http://g/v1beta/models/gemini-2.5-pro:generateContent"),
        ("http://g/v1/", "http://g/v1/models/gemini-2.5-pro:generateContent"),
    ],
)
def test_gemini_has_model_and_method_in_its_path(
    base_url: str | None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL", raising=False)
    request = sent(GeminiAdapter(base_url), chat("gemini-2.5-pro"))
    assert request.url == url
    assert dict(request.headers)["x-goog-api-key"] == "KEY"
    assert members(request) == {"contents": CONTENTS}


def test_gemini_streams_come_as_events() -> None:
    request = sent(GeminiAdapter("http://g"), chat("gemini-2.5-pro"), stream=True)
    assert request.url == "http://g/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse"
    assert "stream" not in members(request)


def native(body: dict[str, Any], operation: str = "generate", model: str = "gemini-x") -> ParsedRequest:
    return GEMINI.parse(json.dumps(body, separators=(",", ":")).encode(), operation=operation, model=model)


def test_a_gemini_clients_body_passes_untouched() -> None:
    body = {"contents": CONTENTS, "generationConfig": {"temperature": 0.5}, "unknown": [1]}
    parsed = native(body, "stream_generate", "models/gemini-x")
    assert (parsed.model, parsed.stream, parsed.choices, parsed.max_output_tokens) == ("gemini-x", True, 1, None)
    request = GEMINI.build(
        parsed, operation="stream_generate", model="gemini-x", token_cap=None, key="K", path_query="?alt=sse&key=secret"
    )
    assert request.url == "http://g/v1beta/models/gemini-x:streamGenerateContent?alt=sse"
    assert request.body is parsed.body


@pytest.mark.parametrize("name", ["generationConfig", "generation_config"])
def test_a_token_cap_only_lowers_geminis_and_keeps_the_rest(name: str) -> None:
    given = {"maxOutputTokens" if name[10] == "C" else "max_output_tokens": 50, "temperature": 1}
    parsed = native({"contents": CONTENTS, name: given})
    assert parsed.max_output_tokens == 50
    for cap, expected in ((80, None), (20, {"maxOutputTokens": 20, "temperature": 1})):
        request = GEMINI.build(parsed, operation="generate", model="gemini-x", token_cap=cap, key="K")
        assert members(request)[name] == (expected or given)


def test_an_alias_renames_the_model_where_gemini_repeats_it() -> None:
    parsed = native({"requests": [{"model": "models/a", "content": CONTENTS[0]}]}, "embedding", "a")
    request = GEMINI.build(parsed, operation="embedding", model="b", token_cap=None, key="K")
    assert request.url == "http://g/v1beta/models/b:batchEmbedContents"
    assert members(request)["requests"][0]["model"] == "models/b"
    inner = {"model": "models/a", "contents": CONTENTS}
    counted = native({"generateContentRequest": inner}, "count_tokens", "a")
    request = GEMINI.build(counted, operation="count_tokens", model="b", token_cap=None, key="K")
    assert request.url == "http://g/v1beta/models/b:countTokens"
    assert members(request)["generateContentRequest"]["model"] == "models/b"


@pytest.mark.parametrize(
    ("body", "operation", "model", "field"),
    [
        ({}, "generate", "m", "contents"),
        ({"contents": []}, "generate", "m", "contents"),
        ({"contents": CONTENTS}, "generate", "", "model"),
        ({"contents": 7}, "generate", "m", "contents"),
        ({"contents": CONTENTS, "generationConfig": {"maxOutputTokens": "x"}}, "generate", "m", "generationConfig"),
        ({"contents": CONTENTS, "generationConfig": {"maxOutputTokens": -1}}, "generate", "m", "generationConfig"),
        ({}, "embedding", "m", "content"),
        ({"contents": CONTENTS}, "draw", "m", "operation"),
    ],
)
def test_what_is_wrong_in_a_gemini_body_is_named(body: dict[str, Any], operation: str, model: str, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        native(body, operation, model)
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize(
    ("parts", "unbounded", "extra"),
    [
        ([{"inlineData": {"mimeType": "image/png", "data": "QUJD"}}], False, True),
        ([{"inlineData": {"mimeType": "audio/mp3", "data": "QUJD"}}], False, True),
        ([{"inlineData": {"mimeType": "video/mp4", "data": "QUJD"}}], True, False),
        ([{"fileData": {"fileUri": "gs://x"}}], True, False),
        ([{"functionResponse": {"name": "f", "response": {"x": 1}}}], False, False),
    ],
)
def test_what_gemini_counts_is_bounded_where_it_can_be(parts: list[Any], unbounded: bool, extra: bool) -> None:
    parsed = native({"contents": [{"parts": parts}]})
    assert (parsed.unbounded, parsed.extra_tokens > 0) == (unbounded, extra)


def test_embeddings_go_to_gemini_one_or_many() -> None:
    adapter = GeminiAdapter("http://g")
    one = RequestIntent(model="text-embedding-004", operation=Operation.Embedding, payload={"input": "a"})
    many = RequestIntent(
        model="text-embedding-004", operation=Operation.Embedding, payload={"input": ["a", "b"], "dimensions": 8}
    )
    assert sent(adapter, one).url.endswith("/models/text-embedding-004:embedContent")
    request = sent(adapter, many)
    assert request.url.endswith(":batchEmbedContents")
    assert [entry["outputDimensionality"] for entry in members(request)["requests"]] == [8, 8]
    answer = adapter.decode_response(b'{"embeddings":[{"values":[1,2]},{"values":[3,4]}]}')
    assert answer.embeddings == [[1.0, 2.0], [3.0, 4.0]]


def test_vectors_of_openai_are_read_in_both_encodings() -> None:
    adapter = OpenAIAdapter("http://x/v1")
    assert adapter.decode_response(b'{"data":[{"embedding":[0.5,1]}]}').embeddings == [[0.5, 1.0]]
    assert adapter.decode_response(b'{"data":[{"embedding":"AAAAPwAAgD8="}]}').embeddings == [[0.5, 1.0]]
    assert adapter.decode_response(b'{"data":[{"embedding":"nonsense"}]}').embeddings == [[]]


def test_a_gemini_answer_is_decoded_in_the_words_of_chat() -> None:
    body = {
        "candidates": [
            {
                "content": {
                    "parts": [
                        {"text": "thinking", "thought": True},
                        {"text": "a"},
                        {"functionCall": {"name": "f", "args": {"x": 1}}, "thoughtSignature": "c2ln"},
                    ]
                },
                "finishReason": "STOP",
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 5,
            "toolUsePromptTokenCount": 2,
            "candidatesTokenCount": 3,
            "thoughtsTokenCount": 4,
            "promptTokensDetails": [{"modality": "IMAGE", "tokenCount": 3}, {"modality": "TEXT", "tokenCount": 4}],
        },
        "modelVersion": "gemini-2.5-flash-001",
        "responseId": "r1",
    }
    answer = GeminiAdapter("http://g").decode_response(json.dumps(body).encode())
    assert (answer.content, answer.reasoning, answer.metadata.finish_reason) == ("a", "thinking", "tool_calls")
    assert answer.tool_calls is not None
    (call,) = answer.tool_calls
    assert call["function"] == {"name": "f", "arguments": '{"x":1}'}
    assert call["extra_content"] == {"google": {"thought_signature": "c2ln"}}
    assert (answer.metadata.tokens_used.input_tokens, answer.metadata.tokens_used.output_tokens) == (7, 7)
    usage = GEMINI.read_usage(json.dumps(body).encode())
    assert usage is not None
    assert usage.media is not None
    assert usage.media.image_input == 3


def test_a_prompt_that_gemini_blocked_is_a_refusal() -> None:
    body = b'{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":4}}'
    answer = GeminiAdapter("http://g").decode_response(body)
    assert (answer.content, answer.metadata.finish_reason) == ("", "content_filter")
    assert "SAFETY" in (answer.refusal or "")


def test_geminis_own_errors_have_its_shape() -> None:
    body = json.loads(GEMINI.error_body(status=429, type="x", code="all_keys", message="m", request_id="r"))
    assert body["error"]["code"] == 429
    assert body["error"]["status"] == "RESOURCE_EXHAUSTED"
    event = GEMINI.error_event(type="x", code="", message="m", request_id="r", status=503)
    assert event.startswith(b'data: {"error":{"code":503')
    assert event.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("wire", "url"),
    [
        (OpenAIWire("http://x/v1"), "http://x/v1/responses/resp%2F1/cancel?include=a"),
        (AzureWire("http://x", api_version="2026-01-01"), "http://x/openai/responses/resp%2F1/cancel?api-version=2026-01-01&include=a"),
        (AzureWire("http://x", api_version="v1"), "http://x/openai/v1/responses/resp%2F1/cancel?include=a"),
    ],
)  # fmt: skip
def test_what_was_made_before_is_asked_about_where_each_family_has_it(wire: OpenAIWire, url: str) -> None:
    parsed = wire.parse(b"", operation="cancel_response", model="resp/1")
    for _ in range(2):
        request = wire.build(
            parsed, operation="cancel_response", model="m", token_cap=None, key="k", path_query="?include=a"
        )
        assert (request.method, request.url, request.body) == ("POST", url, b"")
    other = wire.parse(b"", operation="response", model="resp_2")
    request = wire.build(other, operation="response", model="m", token_cap=None, key="k")
    assert request.method == "GET"
    assert "resp_2" in request.url
