"""What error answers mean: one case per row of the table, every retry hint, and nothing that raises."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apikeyrouter.domain.components.failure_taxonomy import MEANINGS
from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.infrastructure.adapters import failure_table as table
from apikeyrouter.infrastructure.adapters.anthropic_wire import AnthropicWire
from apikeyrouter.infrastructure.adapters.azure_adapter import AzureWire
from apikeyrouter.infrastructure.adapters.error_text import read_error
from apikeyrouter.infrastructure.adapters.gemini_wire import GeminiWire
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire
from apikeyrouter.infrastructure.adapters.profiles import PROFILES
from apikeyrouter.infrastructure.adapters.retry_hints import RETRY_MAX_US, next_pacific_day_us, retry_after_us, unix_us

NOW = 1_764_000_000.0  # 2025-11-24T16:00:00Z
NOW_US = int(NOW * 1e6)
OPENAI = OpenAIWire("http://x/v1", now=lambda: NOW)
WIRES: list[Wire] = [
    AnthropicWire("http://x"),
    GeminiWire("http://x"),
    AzureWire("http://x"),
    *[OpenAIWire("http://x/v1", profile) for profile in PROFILES],
]
"""Every dialect there is."""
ANTHROPIC = AnthropicWire("http://x", now=lambda: NOW)


def openai(message: str = "m", **error: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": None, "param": None, "code": None, **error}}).encode()


def anthropic(kind: str, message: str = "m", **details: Any) -> bytes:
    error = {"type": kind, "message": message, **({"details": details} if details else {})}
    return json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()


CASES: list[tuple[str, str, int, dict[str, str], bytes]] = [
    ("openai.month_limit", "", 429, {}, openai(type="insufficient_quota", code="organization_spend_limit_exceeded")),
    ("openai.project_limit", "", 429, {}, openai(type="insufficient_quota", code="project_spend_limit_exceeded")),
    ("openai.credit", "", 429, {}, openai("You exceeded your current quota", type="insufficient_quota",
                                          code="insufficient_quota")),
    ("openai.hard_limit", "", 400, {}, openai(code="billing_hard_limit_reached")),
    ("openai.flex_busy", "", 429, {}, openai("Resource Unavailable")),
    ("openai.too_large", "", 429, {}, openai("Request too large for gpt-4o: Limit 30000, Requested 40000.",
                                             type="tokens", code="rate_limit_exceeded")),
    ("openai.slow_down", "", 429, {}, openai(type="rate_limit_error", code="slow_down")),
    ("openai.rate_limit", "", 429, {}, openai(type="requests", code="rate_limit_exceeded")),
    ("openai.key", "", 401, {}, openai(code="invalid_api_key")),
    ("openai.ip", "", 401, {}, openai(code="ip_not_authorized")),
    ("openai.ip_text", "", 401, {}, openai("Your IP address is not authorized")),
    ("openai.member", "", 401, {}, openai("You must be a member of an organization to use the API")),
    ("openai.country", "", 403, {}, openai(code="unsupported_country_region_territory")),
    ("openai.scope", "", 403, {}, openai(code="missing_scope")),
    ("openai.model", "", 400, {}, openai(code="model_not_found")),
    ("openai.model_text", "", 404, {}, openai("The model `x` does not exist or you do not have access to it.")),
    ("openai.too_long", "", 400, {}, openai(code="context_length_exceeded")),
    ("openai.too_long_text", "vllm", 400, {}, openai(
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
        type="BadRequestError", code=400)),
    ("openai.caller", "", 400, {}, openai(code="content_filter")),
    ("openai.overloaded", "", 503, {}, openai(type="service_unavailable_error", code="server_is_overloaded")),
    ("openai.unavailable", "", 503, {}, openai(type="service_unavailable_error")),
    ("openai.failed", "", 500, {}, openai(type="server_error")),
    ("groq.restricted", "", 400, {}, openai(code="organization_restricted")),
    ("groq.too_large", "groq", 413, {}, openai("Request too large for model", code="rate_limit_exceeded")),
    ("groq.flex", "", 498, {}, openai(code="capacity_exceeded")),
    ("openrouter.in_flight_never", "", 402, {}, openai(code=402, metadata={
        "limit_source": "openrouter_in_flight_budget", "reason": "weight_exceeds_budget"})),
    ("openrouter.in_flight", "", 402, {"retry-after": "3"}, openai(code=402, metadata={
        "limit_source": "openrouter_in_flight_budget"})),
    ("openrouter.key_limit", "", 402, {}, openai(code=402, metadata={"limit_source": "openrouter_key_limit"})),
    ("openrouter.credits", "", 402, {}, openai(code=402, metadata={"limit_source": "openrouter_credits"})),
    ("openrouter.moderation", "openrouter", 403, {}, openai("Your input was flagged", code=403)),
    ("azure.blocked", "", 403, {}, openai("Access denied: temporarily blocked")),
    ("azure.key", "", 401, {}, openai(code="401")),
    ("deepseek.balance", "", 402, {}, openai("Insufficient Balance", type="unknown_error")),
    ("deepseek.concurrency", "deepseek", 429, {}, openai("Too many requests in flight")),
    ("mistral.too_long", "", 400, {}, b'{"message":"Prompt contains too many tokens, too large for model"}'),
    ("mistral.unauthorized", "", 401, {}, b'{"detail":"Unauthorized"}'),
    ("anthropic.ramp", "a", 429, {}, anthropic("rate_limit_error", error_code="ramp_limit_exceeded")),
    ("anthropic.spend", "a", 429, {}, anthropic("rate_limit_error", error_code="enforced_spend_limit_reached")),
    ("anthropic.regain_429", "a", 429, {}, anthropic(
        "rate_limit_error", "You will regain access on 2026-09-01 at 00:00 UTC.")),
    ("anthropic.workspace_limit", "a", 400, {}, anthropic("invalid_request_error", (
        "You have reached your specified workspace API usage limits. "
        "You will regain access on 2025-12-01 at 00:00 UTC."))),
    ("anthropic.usage_limit", "a", 400, {}, anthropic(
        "invalid_request_error", "You have reached your specified API usage limits.")),
    ("anthropic.credit", "a", 400, {}, anthropic(
        "invalid_request_error", "Your credit balance is too low to access the Anthropic API.")),
    ("anthropic.linked", "a", 402, {}, anthropic("billing_error", error_code="linked_organization_unpaid")),
    ("anthropic.hold", "a", 400, {}, anthropic("invalid_request_error", error_code="organization_on_hold")),
    ("anthropic.disabled", "a", 400, {}, anthropic("invalid_request_error", "This organization has been disabled.")),
    ("anthropic.creator", "a", 400, {}, anthropic(
        "invalid_request_error", error_code="claude_code_key_creator_not_member")),
    ("anthropic.cmek", "a", 400, {}, anthropic("invalid_request_error", error_code="cmek_key_disabled")),
    ("anthropic.cmek_busy", "a", 503, {}, anthropic("api_error", error_code="cmek_key_unavailable")),
    ("anthropic.long_prompt", "a", 400, {}, anthropic(
        "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")),
    ("anthropic.rate_limit", "a", 429, {"retry-after": "12"}, anthropic("rate_limit_error")),
    ("anthropic.billing", "a", 402, {}, anthropic("billing_error")),
    ("anthropic.key", "a", 401, {}, anthropic("authentication_error", "invalid x-api-key")),
    ("anthropic.permission", "a", 403, {}, anthropic("permission_error")),
    ("anthropic.model", "a", 404, {}, anthropic("not_found_error", "model: claude-9")),
    ("anthropic.size", "a", 413, {}, b"<html>413 Request Entity Too Large</html>"),
    ("anthropic.overloaded", "a", 529, {}, anthropic("overloaded_error", "Overloaded")),
    ("anthropic.timeout", "a", 504, {}, anthropic("timeout_error")),
    ("anthropic.api", "a", 500, {}, anthropic("api_error")),
    ("gemini.key", "g", 400, {}, openai(code=400, status="INVALID_ARGUMENT",
                                        details=[{"reason": "API_KEY_INVALID"}])),
    ("gemini.leaked", "g", 403, {}, openai("Your API key was reported as leaked", status="PERMISSION_DENIED")),
    ("gemini.disabled", "g", 403, {}, openai(status="PERMISSION_DENIED", details=[{"reason": "SERVICE_DISABLED"}])),
    ("gemini.region", "g", 400, {}, openai(status="FAILED_PRECONDITION")),
    ("gemini.prepaid", "g", 402, {}, openai("Your prepayment credits are depleted", status="RESOURCE_EXHAUSTED")),
    ("gemini.day", "g", 429, {}, openai(status="RESOURCE_EXHAUSTED", details=[
        {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}, {"retryDelay": "34s"}])),
    ("gemini.day_all", "g", 429, {}, openai(status="RESOURCE_EXHAUSTED", details=[
        {"violations": [{"quotaId": "RequestsPerDayPerProject"}]}])),
    ("gemini.too_long", "g", 400, {}, openai(
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        status="INVALID_ARGUMENT")),
    ("gemini.quota", "g", 429, {}, openai(status="RESOURCE_EXHAUSTED")),
    ("gemini.permission", "g", 403, {}, openai(status="PERMISSION_DENIED")),
    ("gemini.model", "g", 404, {}, openai(status="NOT_FOUND")),
    ("gemini.late", "g", 504, {}, openai(status="DEADLINE_EXCEEDED")),
    ("gemini.overloaded", "g", 503, {}, openai(status="UNAVAILABLE")),
    ("gemini.down", "g", 500, {}, openai(status="INTERNAL")),
    ("gemini.interactions", "g", 429, {}, openai(code="too_many_requests")),
    ("gemini.payment", "g", 402, {}, openai(code="payment_required")),
    ("bedrock.throttled", "b", 429, {"x-amzn-errortype": "ThrottlingException:http://x"}, b'{"message":"slow"}'),
    ("bedrock.quota", "b", 400, {"x-amzn-errortype": "ServiceQuotaExceededException"}, b'{"message":"q"}'),
    ("bedrock.loading", "b", 429, {"x-amzn-errortype": "ModelNotReadyException"}, b"{}"),
    ("bedrock.model", "b", 400, {"x-amzn-errortype": "ValidationException"},
     b'{"message":"The provided model identifier is invalid."}'),
    ("bedrock.access", "b", 403, {"x-amzn-errortype": "AccessDeniedException"}, b"{}"),
    ("bedrock.model_failed", "b", 424, {}, b'{"message":"m"}'),
    ("any.credit", "", 402, {}, b""),
    ("any.key", "", 401, {}, b""),
    ("any.forbidden", "", 403, {}, b""),
    ("any.model", "", 404, {}, b""),
    ("any.late", "", 408, {}, b""),
    ("any.conflict", "", 409, {}, b""),
    ("any.overloaded", "", 503, {}, b"upstream connect error"),
    ("any.size", "", 413, {}, b""),
    ("any.limited", "", 429, {}, b""),
    ("any.caller", "", 422, {}, b'{"detail":[{"loc":["body"],"msg":"field required"}]}'),
    ("any.provider", "", 522, {}, b"<html>Cloudflare</html>"),
]  # fmt: skip

LETTERS = {
    "W": "rate_limited key_rate_limited", "Q": "exhausted key_exhausted period_used_up",
    "D": "key_refused organisation_refused origin_refused", "M": "model_not_served model_not_permitted",
    "P": "provider_failed overloaded provider_late", "N": "callers_fault too_long", "N*": "too_large_here",
}  # fmt: skip
"""The letters of `providers.md` §1.3, and which kinds of failure each stands for."""
FOLLOWS = {
    "W": "openai.slow_down openai.rate_limit openrouter.in_flight deepseek.concurrency anthropic.ramp "
    "anthropic.rate_limit gemini.quota gemini.interactions bedrock.throttled bedrock.quota any.limited",
    "Q": "openai.month_limit openai.project_limit openai.credit openai.hard_limit openrouter.key_limit "
    "openrouter.credits deepseek.balance anthropic.spend anthropic.regain_429 anthropic.workspace_limit "
    "anthropic.usage_limit anthropic.credit anthropic.linked anthropic.billing gemini.prepaid gemini.day "
    "gemini.day_all gemini.payment any.credit",
    "D": "openai.key openai.ip openai.ip_text openai.member openai.country groq.restricted azure.blocked azure.key "
    "mistral.unauthorized anthropic.hold anthropic.disabled anthropic.creator anthropic.cmek anthropic.key gemini.key "
    "gemini.leaked gemini.disabled gemini.region gemini.permission any.key",
    "M": "openai.scope openai.model openai.model_text anthropic.permission anthropic.model gemini.model bedrock.model "
    "bedrock.access any.forbidden any.model",
    "P": "openai.flex_busy openai.overloaded openai.unavailable openai.failed groq.flex anthropic.cmek_busy "
    "anthropic.overloaded anthropic.timeout anthropic.api gemini.late gemini.overloaded gemini.down bedrock.loading "
    "bedrock.model_failed any.late any.conflict any.overloaded any.provider",
    "N": "openai.caller openai.too_long openai.too_long_text gemini.too_long mistral.too_long "
    "openrouter.in_flight_never openrouter.moderation anthropic.long_prompt anthropic.size "
    "any.size any.caller",
    "N*": "openai.too_large groq.too_large",
}
"""Which letter each signature has there."""
FAMILIES = {"a": "anthropic", "g": "gemini", "b": "bedrock"}


def row_of(case: tuple[str, str, int, dict[str, str], bytes]) -> table.Row:
    _, where, status, headers, body = case
    return table.find_row(table.TABLES[FAMILIES.get(where, "openai")], status, read_error(body), headers, where)


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_each_signature_finds_its_row_and_means_what_the_table_of_providers_says(
    case: tuple[str, str, int, dict[str, str], bytes],
) -> None:
    row = row_of(case)
    assert row.name == case[0]
    (letter,) = [letter for letter, names in FOLLOWS.items() if row.name in names.split()]
    assert row.meaning.name in LETTERS[letter].split()


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_each_signature_gives_a_failure_of_its_meaning(case: tuple[str, str, int, dict[str, str], bytes]) -> None:
    _, where, status, headers, body = case
    rows = table.TABLES[FAMILIES.get(where, "openai")]
    failure = table.classify(rows, status, headers, body, now_us=NOW_US, provider=where)
    meaning = row_of(case).meaning
    assert (failure.category, failure.scope, failure.action) == (meaning.category, meaning.scope, meaning.action)
    assert (failure.retry_elsewhere, failure.billed) == (meaning.elsewhere, meaning.billed)
    assert (failure.meaning, failure.signature, failure.status) == (meaning.name, case[0], status)


def test_every_row_has_a_case_and_a_source() -> None:
    rows = {row.name for rows in table.TABLES.values() for row in rows}
    assert rows | {"any.caller", "any.provider"} == {case[0] for case in CASES}
    assert {name.split(".")[0] for name in rows} == set(table.SOURCES)


def test_every_kind_of_failure_is_consistent_in_itself() -> None:
    for name, meaning in MEANINGS.items():
        assert name == meaning.name
        assert meaning.says
        assert (meaning.scope == "request") == (not meaning.elsewhere) or name in ("too_long", "no_connection_free")
        assert (meaning.action == "back_off") == (meaning.evidence is not None)
        assert meaning.action != "invalidate" or meaning.category == "authentication_error"
        assert meaning.scope != "provider" or meaning.action == "back_off"
    used = {row.meaning.name for rows in table.TABLES.values() for row in rows}
    assert used <= MEANINGS.keys()


def test_a_project_limit_speaks_for_the_key_alone_and_a_spend_limit_for_the_organisation() -> None:
    assert OPENAI.classify(429, {}, openai(code="project_spend_limit_exceeded")).scope == "key"
    limited = OPENAI.classify(429, {}, openai(code="organization_spend_limit_exceeded"))
    assert (limited.scope, limited.action) == ("quota_group", "exhaust")
    assert limited.until_us == 1_764_547_200_000_000  # 2025-12-01T00:00:00Z


def test_the_date_an_organisation_regains_access_is_read() -> None:
    failure = ANTHROPIC.classify(
        400,
        {},
        anthropic(
            "invalid_request_error",
            "You have reached your specified API usage limits. You will regain access on 2025-12-01 at 00:00 UTC.",
        ),
    )
    assert failure.until_us == 1_764_547_200_000_000


def test_a_daily_gemini_quota_is_exhausted_and_a_minutely_one_cools() -> None:
    def quota(name: str) -> bytes:
        details = [{"violations": [{"quotaId": name}]}, {"retryDelay": "34s"}]
        return openai(code=429, status="RESOURCE_EXHAUSTED", details=details)

    def read(body: bytes) -> Failure:
        return table.classify(table.GEMINI_TABLE, 429, {}, body, now_us=NOW_US)

    day = read(quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier"))
    assert (day.category, day.action) == ("quota_exceeded_error", "cool")  # of this model alone
    assert day.until_us == 1_764_057_600_000_000  # 2025-11-25T00:00:00-08:00
    assert read(quota("RequestsPerDayPerProject")).action == "exhaust"
    cooled = read(quota("GenerateRequestsPerMinutePerProjectPerModel"))
    assert (cooled.action, cooled.retry_after_us) == ("cool", 34_000_000)


@pytest.mark.parametrize(
    ("now", "midnight"),
    [
        ("2026-03-08T09:30:00+00:00", "2026-03-09T07:00:00+00:00"),  # the night of daylight saving: 23 hours
        ("2026-11-01T08:30:00+00:00", "2026-11-02T08:00:00+00:00"),  # and back: 25 hours
        ("2026-11-01T09:30:00+00:00", "2026-11-02T08:00:00+00:00"),  # in the hour that comes twice
        ("2026-06-15T06:59:59+00:00", "2026-06-15T07:00:00+00:00"),
        ("2026-06-15T07:00:00+00:00", "2026-06-16T07:00:00+00:00"),
    ],
)
def test_a_pacific_day_ends_at_its_own_midnight(now: str, midnight: str) -> None:
    moment = unix_us(datetime.fromisoformat(now))
    assert next_pacific_day_us(moment) == unix_us(datetime.fromisoformat(midnight))


def test_a_request_that_is_too_large_says_how_large_it_is() -> None:
    told = "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 64000. Please reduce."
    assert OPENAI.classify(429, {}, openai(told, code="rate_limit_exceeded")).requested == 64_000
    assert OPENAI.classify(429, {}, openai("Request too large for gpt-4o", code="x")).requested == 0


@pytest.mark.parametrize(
    ("headers", "message", "expected"),
    [
        ({"retry-after": "7"}, "", 7_000_000),
        ({"retry-after": "0.25"}, "", 250_000),
        ({"retry-after-ms": "1500", "retry-after": "9"}, "", 1_500_000),
        ({"x-ms-retry-after-ms": "20"}, "", 20_000),
        ({"retry-after": "Mon, 24 Nov 2025 16:00:30 GMT"}, "", 30_000_000),
        ({"retry-after": "Mon, 24 Nov 2025 16:00:30 GMT", "date": "Mon, 24 Nov 2025 16:00:20 GMT"}, "", 10_000_000),
        ({"retry-after": "Mon, 24 Nov 2025 15:00:00 GMT"}, "", 0),
        ({"retry-after": "0"}, "", 0),
        ({"retry-after": "-5"}, "", 0),
        ({"retry-after": "nan"}, "", 0),
        ({"retry-after": "inf"}, "", 0),
        ({"retry-after": "soon"}, "", 0),
        ({"retry-after": "9999999"}, "", RETRY_MAX_US),
        ({}, "Please try again in 47.152s.", 47_152_000),
        ({}, "Please try again in 6m0s. Visit", 360_000_000),
        ({}, "Please try again in 1m2.5s", 62_500_000),
        ({}, "Please try again in 20ms.", 20_000),
        ({}, "Please try again in 1h2m3s.", 3_723_000_000),
        ({}, "Please retry after 20 seconds.", 20_000_000),
        ({}, "try again in many moons", 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s",
          "x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "60s"}, "", 2_000_000),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2s",
          "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "60s"}, "", 60_000_000),
    ],
)  # fmt: skip
def test_every_form_of_retry_hint_is_read(headers: dict[str, str], message: str, expected: int) -> None:
    assert retry_after_us(headers, message, "", now_us=NOW_US) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"m","code":7}}', "m"),
        (b'{"error":"just text"}', "just text"),
        (b'{"detail":"d"}', "d"),
        (b'{"detail":[{"msg":"field required"}]}', "field required"),
        (b'{"message":"m"}', "m"),
        (b'[{"error":{"message":"first"}}]', "first"),
        (b"<!DOCTYPE html><html>", "the provider answered with an HTML page"),
        (b"", "the provider answered with status 400"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"plain words", "plain words"),
        (b"null", "the provider answered with status 400"),
    ],
)
def test_every_shape_of_error_body_gives_its_message(body: bytes, message: str) -> None:
    assert OPENAI.classify(400, {}, body).message == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "type", "details", "metadata", "detail", "status", "reason",
                             "violations", "quotaId", "retryDelay", "innererror", "error_code", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(
        ["retry-after", "retry-after-ms", "x-ms-retry-after-ms", "date", "x-amzn-errortype",
         "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "x-ratelimit-limit-tokens",
         "anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-reset",
         "x-ratelimit-limit-requests", "x-ratelimit-reset-requests"]
    ),
    st.text(max_size=30) | st.from_regex(r"-?[0-9]{1,20}(\.[0-9]+)?(ms|s|m|h)?", fullmatch=True),
    max_size=6,
)  # fmt: skip


@settings(max_examples=300)
@given(st.integers(-5, 700), HEADERS, st.binary(max_size=300) | JSON.map(lambda v: json.dumps(v).encode()))
def test_no_answer_whatever_makes_classify_or_observe_raise(status: int, headers: dict[str, str], body: bytes) -> None:
    for rows in table.TABLES.values():
        failure = table.classify(rows, status, headers, body, now_us=NOW_US)
        assert failure.message
        assert 0 <= failure.retry_after_us <= RETRY_MAX_US
        assert failure.until_us >= 0
        assert failure.meaning in MEANINGS
    for wire in WIRES:
        assert wire.classify(status, headers, body).signature
        for seen in wire.observe(headers):
            assert seen.limit >= 0
            assert seen.reset_us >= 0


def test_a_message_that_is_an_object_is_read() -> None:
    problem = {"type": "extra_forbidden", "loc": ["body", "x"], "msg": "Extra inputs are not permitted"}
    body = {"object": "error", "message": {"detail": [problem]}, "type": "invalid_request_error", "code": None}
    failure = OpenAIWire("http://x/v1", "mistral").classify(422, {}, json.dumps(body).encode())
    assert failure.message == "Extra inputs are not permitted"


def test_deep_json_does_not_raise() -> None:
    assert OPENAI.classify(500, {}, b'{"error":' * 100_000).message


def test_unix_microseconds_are_exact() -> None:
    assert unix_us(datetime(2025, 11, 24, 16, 0, 0, 1, UTC)) == NOW_US + 1
