"""Redaction: no key fragment and no account id survives; ordinary words do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apikeyrouter.infrastructure.security.redaction import REDACTED, TEXT_MAX, redact

SECRETS = [
    "sk-abcdefghijklmnopqrstuvwx",
    "sk-proj-abc_DEF-1234567890abcdef",
    "sk-svcacct-abcdefghijklmnop1234",
    "sk-ant-api03-abcdefghijklmnop-AA",
    "sk-or-v1-0123456789abcdef0123456789abcdef",
    "sk-ab***************cdef",
    "AIzaSyA-1234567890abcdefghijklmnopqrstu",
    "AQ.Ab8RN6abcdefgh",
    "gsk_abcdefghijklmnop1234",
    "ABSKQmVkcm9ja0FQSUtleS1hYmM",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefgh",
    "org-AbCdEf123456",
    "proj_AbCdEf123456",
    "wrkspc_01AbCdEf",
    "5a6bd5c1-0d4e-4f7c-9d1b-1a2b3c4d5e6f",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("frame", ["{}", "Incorrect API key provided: {}. You can", '("{}")', "a={}&b=1", "in {}\n"])
def test_secrets_do_not_survive_in_any_frame(secret: str, frame: str) -> None:
    text = redact(frame.format(secret))
    assert secret not in text
    assert REDACTED in text


@pytest.mark.parametrize("text", ["authorization: Bearer abcdefgh12345", "https://x/y?key=topsecret&z=1"])
def test_bearers_and_query_keys_do_not_survive(text: str) -> None:
    assert "abcdefgh" not in redact(text)
    assert "topsecret" not in redact(text)


def test_the_key_in_use_does_not_survive_whatever_its_make() -> None:
    assert "unusual" not in redact("your key unusual was refused", known=("unusual",))


def test_ordinary_messages_stay_as_they_are() -> None:
    text = "Rate limit reached for gpt-4o-mini on tokens per min (TPM): Limit 30000, Used 29000. Try again in 47.1s."
    assert redact(text) == text


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (  # OpenAI, status 401
            "Incorrect API key provided: sk-proj-********************Ab1C. You can find your API key at "
            "https://platform.openai.com/account/api-keys.",
            "Incorrect API key provided: [redacted]. You can find your API key at "
            "https://platform.openai.com/account/api-keys.",
        ),
        ("Incorrect API key provided: zebra4711Qw. Ask.", "Incorrect API key provided: [redacted]. Ask."),
        ("Authentication Fails, Your api key: ****b5c1 is invalid", "Authentication Fails, Your api key: [redacted] "
         "is invalid"),
        ("Rate limit reached for gpt-4o in organization org-Ab12Cd34 on requests per min (RPM): Limit 3, Used 3.",
         "Rate limit reached for gpt-4o in organization [redacted] on requests per min (RPM): Limit 3, Used 3."),
        ("Permission denied: Consumer 'api_key:AIzaSyA-1234567890' has been suspended.",
         "Permission denied: Consumer 'api_key:[redacted]' has been suspended."),
        ("got header Authorization: Bearer abcdefgh12345.", "got header Authorization: Bearer [redacted]."),
        ("GET https://x/y?key=topsecret&z=1 failed", "GET https://x/y?key=[redacted]&z=1 failed"),
        ("API key not valid. Please pass a valid API key.", "API key not valid. Please pass a valid API key."),
        ("on projects/my-secret-7/locations/eu", "on projects/[redacted]/locations/eu"),
    ],
)  # fmt: skip
def test_only_the_secret_goes_and_the_message_stays_useful(said: str, told: str) -> None:
    assert redact(said) == told
    assert redact(told) == told


@given(st.text(max_size=6000))
def test_any_text_comes_out_printable_and_bounded(text: str) -> None:
    cleaned = redact(text)
    assert len(cleaned) <= TEXT_MAX
    assert cleaned == "" or cleaned.isprintable()
