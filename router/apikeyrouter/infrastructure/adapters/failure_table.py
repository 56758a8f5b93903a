"""What an error answer means, as data: one row per signature of `providers.md` §1.3, first match wins.

A status alone never decides where a provider gives it two meanings (§0.1). `classify` is total: any status, headers and
bytes give a Failure. Rows say what they match (all given conditions must hold) and one of six meanings.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from apikeyrouter.domain.components.failure_taxonomy import (
    COOL,
    DAY_OVER,
    DEAD,
    DEAD_EGRESS,
    DEAD_GROUP,
    DOWN,
    EXHAUSTED,
    EXHAUSTED_KEY,
    LATE,
    OVERLOADED,
    REJECT,
    SKIP,
    SKIP_AUTH,
    TOO_LARGE_HERE,
    TOO_LONG,
)
from apikeyrouter.domain.models.failure import Failure, Meaning
from apikeyrouter.infrastructure.adapters.error_text import ErrorFacts, read_error
from apikeyrouter.infrastructure.adapters.retry_hints import (
    next_month_us,
    next_pacific_day_us,
    regain_us,
    retry_after_us,
)
from apikeyrouter.infrastructure.security.redaction import redact


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One signature. `words`: any code, type, reason or status name of the body; `text`: searched in the message,
    in those words and in the names of violated quotas. `until`: where the date of the end comes from.
    `pause_seconds`: how long to leave its scope alone where the answer names no time, 0: the meaning's own default."""

    name: str
    meaning: Meaning
    statuses: frozenset[int] = frozenset()
    words: frozenset[str] = frozenset()
    text: re.Pattern[str] | None = None
    header: tuple[str, str] | None = None
    providers: frozenset[str] = frozenset()
    until: str = ""
    pause_seconds: float = 0.0

    def _says(self, facts: ErrorFacts) -> bool:
        assert self.text is not None
        search = self.text.search
        return any(search(said) is not None for said in (facts.message, *facts.words, *facts.quota_ids))

    def matches(self, status: int, facts: ErrorFacts, headers: Mapping[str, str], provider: str) -> bool:
        """Whether every given condition holds."""
        return (
            (not self.statuses or status in self.statuses)
            and (not self.providers or provider in self.providers)
            and (not self.words or not self.words.isdisjoint(facts.words))
            and (self.text is None or self._says(facts))
            and (self.header is None or self.header[1] in headers.get(self.header[0], "").lower())
        )


def _row(
    name: str,
    meaning: Meaning,
    *statuses: int,
    words: str = "",
    text: str = "",
    header: tuple[str, str] | None = None,
    providers: str = "",
    until: str = "",
    pause_seconds: float = 0.0,
) -> Row:
    return Row(
        name=name,
        meaning=meaning,
        statuses=frozenset(statuses),
        words=frozenset(words.split()),
        text=re.compile(text, re.IGNORECASE) if text else None,
        header=header,
        providers=frozenset(providers.split()),
        until=until,
        pause_seconds=pause_seconds,
    )


OPENAI_ROWS: tuple[Row, ...] = (
    _row("openai.month_limit", EXHAUSTED, 429, words="organization_spend_limit_exceeded", until="month"),
    _row("openai.project_limit", EXHAUSTED_KEY, 429, words="project_spend_limit_exceeded"),
    _row(
        "openai.credit",
        EXHAUSTED,
        429,
        402,
        words="credit_balance_exhausted organization_usage_limit_exceeded insufficient_quota",
    ),
    _row("openai.hard_limit", EXHAUSTED, 400, 402, 429, words="billing_hard_limit_reached billing_not_active"),
    _row("openai.flex_busy", OVERLOADED, 429, text=r"\bresource unavailable\b"),
    _row("openai.too_large", TOO_LARGE_HERE, 429, text=r"\brequest too large\b"),
    _row("openai.slow_down", COOL, 429, 503, words="slow_down"),
    _row("openai.rate_limit", COOL, 429, words="rate_limit_exceeded requests tokens rate_limit_error"),
    _row("openai.key", DEAD, 401, words="invalid_api_key account_deactivated"),
    _row("openai.ip", DEAD_EGRESS, 401, 403, words="ip_not_authorized"),
    _row("openai.ip_text", DEAD_EGRESS, 401, 403, text=r"\bip (?:address )?(?:is )?not (?:authori[sz]ed|allowed)"),
    _row("openai.member", DEAD, 401, text=r"member of an? organization"),
    _row("openai.country", DEAD_EGRESS, 403, words="unsupported_country_region_territory"),
    _row("openai.scope", SKIP_AUTH, 403, words="missing_scope unverified_organization"),
    _row("openai.model", SKIP, 400, 403, 404, words="model_not_found deploymentnotfound"),
    _row("openai.model_text", SKIP, 404, text=r"\bmodel\b.{0,200}\b(?:does not exist|not found|no access)"),
    _row("openai.too_long", TOO_LONG, 400, words="context_length_exceeded exceed_context_size_error"),
    _row("openai.too_long_text", TOO_LONG, 400, text=r"\bmaximum (?:context|model) length\b"),
    _row(
        "openai.caller",
        REJECT,
        400,
        403,
        422,
        words=(
            "content_filter content_policy_violation invalid_prompt bio_policy "
            "misalignment_policy_violation string_above_max_length tool_use_failed "
            "responsibleaipolicyviolation cyber_policy"
        ),
    ),
    _row("openai.overloaded", OVERLOADED, 500, 502, 503, words="server_is_overloaded engine_overloaded"),
    _row("openai.unavailable", OVERLOADED, 503, words="service_unavailable_error"),
    _row("openai.failed", DOWN, 500, 502, 503, words="server_error"),
)
"""OpenAI, chat and responses."""

COMPATIBLE_ROWS: tuple[Row, ...] = (
    _row("groq.restricted", DEAD_GROUP, 400, 403, words="organization_restricted"),
    _row("groq.too_large", TOO_LARGE_HERE, 413, providers="groq"),
    _row("groq.flex", OVERLOADED, 498),
    _row("openrouter.in_flight_never", REJECT, 402, words="weight_exceeds_budget"),
    _row("openrouter.in_flight", COOL, 402, words="openrouter_in_flight_budget"),
    _row("openrouter.key_limit", EXHAUSTED_KEY, 402, 403, words="openrouter_key_limit"),
    _row("openrouter.credits", EXHAUSTED, 402, words="openrouter_credits"),
    _row(
        "openrouter.moderation",
        REJECT,
        403,
        providers="openrouter",
        text=r"moderation|flagged|guardrail|requires? moderation",
    ),
    _row("azure.blocked", DEAD, 403, text=r"temporarily blocked|virtual network|firewall"),
    _row("azure.key", DEAD, 401, words="401"),
    _row("deepseek.balance", EXHAUSTED, 402, text=r"insufficient balance"),
    _row("deepseek.concurrency", COOL, 429, providers="deepseek", pause_seconds=2.0),
    _row("mistral.too_long", TOO_LONG, 400, text=r"prompt contains too many tokens"),
    _row("mistral.unauthorized", DEAD, 401, text=r"^unauthorized$"),
)
"""Servers that speak OpenAI's dialect and fail in their own way."""

ANTHROPIC_ROWS: tuple[Row, ...] = (
    _row("anthropic.ramp", COOL, 429, words="ramp_limit_exceeded"),
    _row(
        "anthropic.spend",
        EXHAUSTED,
        429,
        402,
        words="enforced_spend_limit_reached contract_spend_limit_reached",
        until="text",
    ),
    _row("anthropic.regain_429", EXHAUSTED, 429, text=r"regain access on \d{4}", until="text"),
    _row("anthropic.workspace_limit", EXHAUSTED_KEY, 400, text=r"specified workspace api usage limits", until="text"),
    _row("anthropic.usage_limit", EXHAUSTED, 400, text=r"specified api usage limits", until="text"),
    _row("anthropic.credit", EXHAUSTED, 400, text=r"credit balance is too low"),
    _row("anthropic.linked", EXHAUSTED, 402, text=r"\blinked_organization_"),
    _row("anthropic.hold", DEAD_GROUP, 400, 403, words="organization_on_hold"),
    _row("anthropic.disabled", DEAD_GROUP, 400, 403, text=r"organization has been disabled"),
    _row("anthropic.creator", DEAD, 400, words="claude_code_key_creator_not_member"),
    _row("anthropic.cmek", DEAD_GROUP, 400, text=r"\bcmek_|customer.managed encryption"),
    _row("anthropic.cmek_busy", DOWN, 503, text=r"\bcmek_"),
    _row("anthropic.long_prompt", TOO_LONG, 400, 413, text=r"prompt is too long"),
    _row("anthropic.rate_limit", COOL, 429, words="rate_limit_error"),
    _row("anthropic.billing", EXHAUSTED, 402, words="billing_error"),
    _row("anthropic.key", DEAD, 401, words="authentication_error"),
    _row("anthropic.permission", SKIP_AUTH, 403, words="permission_error"),
    _row("anthropic.model", SKIP, 404, words="not_found_error", text=r"\bmodel\b"),
    _row("anthropic.size", REJECT, 413),
    _row("anthropic.overloaded", OVERLOADED, words="overloaded_error"),
    _row("anthropic.timeout", LATE, words="timeout_error"),
    _row("anthropic.api", DOWN, 500, words="api_error"),
)
"""Anthropic; its 400 has six meanings."""

GEMINI_ROWS: tuple[Row, ...] = (
    _row("gemini.key", DEAD, 400, 401, 403, words="api_key_invalid api_key_expired api_key_service_blocked"),
    _row("gemini.leaked", DEAD, 403, words="permission_denied", text=r"reported as leaked|referer|referrer|ip address"),
    _row("gemini.disabled", DEAD_GROUP, 403, words="service_disabled"),
    _row("gemini.region", DEAD_GROUP, 400, words="failed_precondition"),
    _row("gemini.prepaid", EXHAUSTED, 402, 429, text=r"prepayment credits? (?:are|is) depleted"),
    _row("gemini.day", DAY_OVER, 429, text=r"PerDay\w*PerModel", until="pacific"),
    _row("gemini.day_all", EXHAUSTED, 429, text=r"PerDay", until="pacific"),
    _row("gemini.too_long", TOO_LONG, 400, text=r"token count .{0,40}exceeds the maximum"),
    _row("gemini.quota", COOL, 429, words="resource_exhausted", pause_seconds=30.0),
    _row("gemini.permission", DEAD, 403, words="permission_denied"),
    _row("gemini.model", SKIP, 404, words="not_found"),
    _row("gemini.late", LATE, words="deadline_exceeded"),
    _row("gemini.overloaded", OVERLOADED, words="unavailable"),
    _row("gemini.down", DOWN, words="internal"),
    _row(
        "gemini.interactions",
        COOL,
        words="too_many_requests rate_limit_exceeded quota_exceeded",
        pause_seconds=30.0,
    ),
    _row("gemini.payment", EXHAUSTED, words="payment_required"),
)
"""Gemini. Its days end at midnight on the Pacific; the short delay it names beside a daily quota is of no use."""

BEDROCK_ROWS: tuple[Row, ...] = (
    _row("bedrock.throttled", COOL, header=("x-amzn-errortype", "throttling")),
    _row("bedrock.quota", COOL, header=("x-amzn-errortype", "servicequotaexceeded")),
    _row("bedrock.loading", OVERLOADED, header=("x-amzn-errortype", "modelnotready")),
    _row("bedrock.model", SKIP, 400, text=r"model identifier is invalid"),
    _row("bedrock.access", SKIP_AUTH, 403, header=("x-amzn-errortype", "accessdenied")),
    _row("bedrock.model_failed", DOWN, 424),
)
"""Bedrock names its errors in `x-amzn-errortype`."""

COMMON_ROWS: tuple[Row, ...] = (
    _row("any.credit", EXHAUSTED, 402),
    _row("any.key", DEAD, 401),
    _row("any.forbidden", SKIP_AUTH, 403),
    _row("any.model", SKIP, 404),
    _row("any.late", LATE, 408, 504, 524),
    _row("any.conflict", DOWN, 409, 425),
    _row("any.overloaded", OVERLOADED, 503, 529),
    _row("any.size", REJECT, 413),
    _row("any.limited", COOL, 429),
)
"""What a status means when nothing better is known. Other 4xx: the caller's fault; all else: the provider's."""

OPENAI_TABLE = OPENAI_ROWS + COMPATIBLE_ROWS + BEDROCK_ROWS + COMMON_ROWS
ANTHROPIC_TABLE = ANTHROPIC_ROWS + COMMON_ROWS
GEMINI_TABLE = GEMINI_ROWS + COMMON_ROWS
BEDROCK_TABLE = BEDROCK_ROWS + COMMON_ROWS

TABLES = MappingProxyType(
    {"openai": OPENAI_TABLE, "anthropic": ANTHROPIC_TABLE, "gemini": GEMINI_TABLE, "bedrock": BEDROCK_TABLE}
)
"""The rows that each family of dialects is read by, in order."""
SOURCES = MappingProxyType(
    {
        "openai": "D R 3", "groq": "D 3", "openrouter": "D", "azure": "D", "deepseek": "D", "mistral": "D K",
        "anthropic": "D S R", "gemini": "D 3", "bedrock": "D R", "any": "–",
    }
)  # fmt: skip
"""How each family's signatures are known: D official docs, S SDK source, R recorded traffic, 3 third party, K general
knowledge, not verified (`providers.md`, 2026-11-21)."""

_REQUESTED = re.compile(r"\bRequested (\d{1,15})\b", re.IGNORECASE)
_OTHER_CLIENT = _row("any.caller", REJECT)
_OTHER = _row("any.provider", DOWN)
_STREAM_WORDS_FIRST = frozenset({0, 200})
"""Statuses under which the body alone speaks: an error event in a stream (§0.6)."""


def find_row(
    table: tuple[Row, ...], status: int, facts: ErrorFacts, headers: Mapping[str, str], provider: str = ""
) -> Row:
    """The first row that matches; under status 200 (an error inside a stream) statuses are not compared."""
    if status in _STREAM_WORDS_FIRST:
        return _find_by_words(table, facts, headers, provider)
    for row in table:
        if row.matches(status, facts, headers, provider):
            return row
    return _OTHER_CLIENT if 400 <= status < 500 else _OTHER


def _find_by_words(table: tuple[Row, ...], facts: ErrorFacts, headers: Mapping[str, str], provider: str) -> Row:
    for row in table:
        if (row.words or row.text) and row.matches(next(iter(row.statuses), 0), facts, headers, provider):
            return row
    if "invalid_request_error" in facts.words:
        return _OTHER_CLIENT
    status = next((int(word) for word in facts.words if word.isascii() and word.isdigit() and len(word) == 3), 0)
    return find_row(table, status, facts, headers, provider) if status >= 400 else _OTHER


def classify(
    table: tuple[Row, ...],
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now_us: int,
    provider: str = "",
    known_secrets: tuple[str, ...] = (),
) -> Failure:
    """Interpret an error answer. `now_us`: Unix µs, for dates in headers and texts. Total: never raises."""
    facts = read_error(body)
    row = find_row(table, status, facts, headers, provider)
    until_us = _until(row, facts, now_us)
    requested = _REQUESTED.search(facts.message) if row.meaning is TOO_LARGE_HERE else None
    return row.meaning.failure(
        redact(facts.message, known=known_secrets) or f"the provider answered with status {status}",
        status=status,
        code=redact(facts.code),
        type=redact(facts.type),
        retry_after_us=retry_after_us(headers, facts.message, facts.retry_delay, now_us=now_us),
        until_us=until_us,
        pause_seconds=row.pause_seconds,
        signature=row.name,
        requested=int(requested.group(1)) if requested else 0,
    )


def _until(row: Row, facts: ErrorFacts, now_us: int) -> int:
    if row.until == "month":
        return next_month_us(now_us)
    if row.until == "pacific":
        return next_pacific_day_us(now_us)
    return regain_us(facts.message, now_us=now_us)
