"""Which of a client's headers go on to a provider (`providers.md` §5.2): an allow list, so that nothing leaks."""

from urllib.parse import parse_qsl, urlencode

from apikeyrouter._version import __version__
from apikeyrouter.domain.interfaces.wire import Headers

FORWARDED = frozenset(
    {
        "anthropic-beta",
        "anthropic-version",
        "idempotency-key",
        "openai-beta",
        "traceparent",
        "tracestate",
        "x-client-request-id",
    }
)
"""Everything else stays here: credentials, cookies, host, x-stainless-*, x-forwarded-*, accept-encoding."""

SECRET_PARAMETERS = frozenset({"key", "api_key", "api-key", "access_token", "token"})
USER_AGENT = f"apikeyrouter/{__version__}"
VALUE_MAX = 4096
"""Longest header value forwarded, in characters."""

FIXED: tuple[tuple[str, str], ...] = (
    ("content-type", "application/json"),
    ("accept-encoding", "identity"),
    ("user-agent", USER_AGENT),
)


def forwarded(headers: Headers, allowed: frozenset[str] = FORWARDED) -> list[tuple[str, str]]:
    """The allowed headers, as they came. Values with control characters or beyond VALUE_MAX are dropped."""
    return [pair for pair in headers if pair[0] in allowed and _is_clean(pair[1])]


def _is_clean(value: str) -> bool:
    return len(value) <= VALUE_MAX and value.isascii() and value.isprintable()


def safe_query(path_query: str) -> str:
    """`?…` of a client's path and query, without credentials; empty when there is none."""
    _, mark, query = path_query.partition("?")
    if not mark or not query:
        return ""
    kept = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0].lower() not in SECRET_PARAMETERS]
    return f"?{urlencode(kept)}" if kept else ""
