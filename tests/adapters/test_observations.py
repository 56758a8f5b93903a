"""Rate-limit headers as observations: units, nonsense, and who is behind a key."""

import pytest

from apikeyrouter.domain.models.accounting import LimitKind, Metric, Observation
from apikeyrouter.infrastructure.adapters.anthropic_wire import AnthropicWire
from apikeyrouter.infrastructure.adapters.openai_wire import OpenAIWire
from apikeyrouter.infrastructure.adapters.rate_headers import DAY_US, MINUTE_US
from apikeyrouter.infrastructure.adapters.retry_hints import duration_us

OPENAI = OpenAIWire("http://x/v1")
ANTHROPIC = AnthropicWire("http://x", now=lambda: 1_764_000_000.0)


def seen(name: str, metric: Metric, limit: int, remaining: int | None, reset_us: int) -> Observation:
    return Observation(
        name=name, metric=metric, kind=LimitKind.BUCKET, period_us=MINUTE_US, limit=limit, remaining=remaining,
        reset_us=reset_us,
    )  # fmt: skip


def test_openai_headers_are_read_with_go_durations() -> None:
    headers = {
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "29000",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert OPENAI.observe(headers) == [
        seen("rpm", Metric.REQUESTS, 500, 499, 120_000),
        seen("tpm", Metric.TOKENS, 30000, 29000, 360_000_000),
    ]


def test_negatives_of_azure_responses_are_no_observation() -> None:
    headers = {f"x-ratelimit-{what}-tokens": value for what, value in (("limit", "-1"), ("remaining", "-1"))}
    assert OPENAI.observe({**headers, "x-ratelimit-reset-tokens": "0"}) == []


@pytest.mark.parametrize("value", ["", "abc", "1e9", "0.5", "9" * 40, "٣"])
def test_nonsense_is_no_observation(value: str) -> None:
    assert OPENAI.observe({"x-ratelimit-limit-requests": value}) == []


def test_requests_at_groq_are_counted_per_day() -> None:
    (observation,) = OpenAIWire("http://x/v1", "groq").observe({"x-ratelimit-remaining-requests": "14370"})
    assert (observation.name, observation.period_us) == ("rpd", DAY_US)


def test_anthropic_headers_are_read_with_rfc_3339_resets() -> None:
    headers = {
        f"anthropic-ratelimit-{what}-{part}": value
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
        for part, value in (("limit", "50"), ("remaining", "49"), ("reset", "2025-11-24T16:00:12Z"))
    }
    assert ANTHROPIC.observe(headers) == [
        seen("rpm", Metric.REQUESTS, 50, 49, 12_000_000),
        seen("itpm", Metric.INPUT_TOKENS, 50, 49, 12_000_000),
        seen("otpm", Metric.OUTPUT_TOKENS, 50, 49, 12_000_000),
    ]


def test_a_retry_after_on_a_good_answer_is_no_observation() -> None:
    assert ANTHROPIC.observe({"retry-after": "30"}) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1s", 1_000_000), ("6m0s", 360_000_000), ("12ms", 12_000), ("8.64s", 8_640_000), ("2m59.56s", 179_560_000),
     ("1h0m0s", 3_600_000_000), ("7", 7_000_000), ("0", 0), ("-1", None), ("", None), ("1x", None), ("s", None)],
)  # fmt: skip
def test_durations_are_read_in_every_form(text: str, expected: int | None) -> None:
    assert duration_us(text) == expected


def test_the_organisation_is_the_quota_group() -> None:
    assert OPENAI.organization({"openai-organization": "org-a", "openai-project": "proj_b"}) == "org-a/proj_b"
    assert OPENAI.organization({"openai-organization": "org-a"}) == "org-a"
    assert OPENAI.organization({}) is None
    assert ANTHROPIC.organization({"anthropic-organization-id": "o"}) == "o"
