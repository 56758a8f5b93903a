"""What error answers mean: one case per row of the table, every retry hint, and nothing that raises."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apikeyrouter.domain.models.failure import Failure
from apikeyrouter.infrastructure.adapters import failure_table as table
from apikeyrouter.infrastructure.adapters.anthropic_wire import AnthropicWire
from apikeyrouter.infrastructure.adapters.error_text import read_error
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire
from apikeyrouter.infrastructure.adapters.retry_hints import RETRY_MAX_US, retry_after_us, unix_us

NOW = 1_764_000_000.0  # 2025-11-24T16:00:00Z
NOW_US = int(NOW * 1e6)
OPENAI = OpenAIWire("http://x/v1", now=lambda: NOW)
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
    ("openai.model", "", 400, {}, openai(code="model_not_found")),
    ("openai.model_text", "", 404, {}, openai("The model `x` does not exist or you do not have access to it.")),
    ("openai.caller", "", 400, {}, openai(code="context_length_exceeded")),
    ("openai.overloaded", "", 503, {}, openai(type="service_unavailable_error", code="server_is_overloaded")),
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
    ("gemini.quota", "g", 429, {}, openai(status="RESOURCE_EXHAUSTED")),
    ("gemini.permission", "g", 403, {}, openai(status="PERMISSION_DENIED")),
    ("gemini.model", "g", 404, {}, openai(status="NOT_FOUND")),
    ("gemini.late", "g", 504, {}, openai(status="DEADLINE_EXCEEDED")),
    ("gemini.down", "g", 503, {}, openai(status="UNAVAILABLE")),
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
    ("any.size", "", 413, {}, b""),
    ("any.limited", "", 429, {}, b""),
    ("any.caller", "", 422, {}, b'{"detail":[{"loc":["body"],"msg":"field required"}]}'),
    ("any.provider", "", 522, {}, b"<html>Cloudflare</html>"),
]  # fmt: skip

TABLES = {
    "a": table.ANTHROPIC_TABLE,
    "g": table.GEMINI_TABLE,
    "b": table.BEDROCK_TABLE,
}


@pytest.mark.parametrize(("name", "where", "status", "headers", "body"), CASES, ids=[case[0] for case in CASES])
def test_each_signature_finds_its_row(name: str, where: str, status: int, headers: dict[str, str], body: bytes) -> None:
    row = table.find_row(TABLES.get(where, table.OPENAI_TABLE), status, read_error(body), headers, where)
    assert row.name == name


def test_every_row_has_a_case() -> None:
    rows = {row.name for rows in (table.OPENAI_TABLE, *TABLES.values()) for row in rows}
    assert rows | {"any.caller", "any.provider"} == {case[0] for case in CASES}


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

    assert read(quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier")).action == "exhaust"
    cooled = read(quota("GenerateRequestsPerMinutePerProjectPerModel"))
    assert (cooled.action, cooled.retry_after_us) == ("cool", 34_000_000)


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
    for wire in (OPENAI, ANTHROPIC):
        failure = wire.classify(status, headers, body)
        assert failure.message
        assert 0 <= failure.retry_after_us <= RETRY_MAX_US
        assert failure.until_us >= 0
        for seen in wire.observe(headers):
            assert seen.limit >= 0
            assert seen.reset_us >= 0


def test_deep_json_does_not_raise() -> None:
    assert OPENAI.classify(500, {}, b'{"error":' * 100_000).message


def test_unix_microseconds_are_exact() -> None:
    from datetime import UTC, datetime

    assert unix_us(datetime(2025, 11, 24, 16, 0, 0, 1, UTC)) == NOW_US + 1
