"""What an error answer means, as data: one row per signature of `providers.md` §1.3, first match wins.

A status alone never decides where a provider gives it two meanings (§0.1). `classify` is total: any status, headers and
bytes give a Failure. Rows say what they match (all given conditions must hold) and one of six meanings.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from apikeyrouter.domain.models.failure import Failure, FailureAction, FailureScope
from apikeyrouter.domain.models.system_error import ErrorCategory
from apikeyrouter.infrastructure.adapters.error_text import ErrorFacts, read_error
from apikeyrouter.infrastructure.adapters.retry_hints import next_month_us, regain_us, retry_after_us
from apikeyrouter.infrastructure.security.redaction import redact


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """Category, scope, action; whether another candidate may serve; whether the provider may have billed."""

    category: ErrorCategory
    scope: FailureScope
    action: FailureAction
    elsewhere: bool
    billed: bool | None = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One signature. `words`: any code, type, reason or status name of the body; `text`: searched in the message
    and in those words. `until`: where the date of the end comes from."""

    name: str
    meaning: Meaning
    statuses: frozenset[int] = frozenset()
    words: frozenset[str] = frozenset()
    text: re.Pattern[str] | None = None
    header: tuple[str, str] | None = None
    providers: frozenset[str] = frozenset()
    until: str = ""

    def _says(self, facts: ErrorFacts) -> bool:
        assert self.text is not None
        search = self.text.search
        return search(facts.message) is not None or any(search(word) is not None for word in facts.words)

    def matches(self, status: int, facts: ErrorFacts, headers: Mapping[str, str], provider: str) -> bool:
        """Whether every given condition holds."""
        return (
            (not self.statuses or status in self.statuses)
            and (not self.providers or provider in self.providers)
            and (not self.words or not self.words.isdisjoint(facts.words))
            and (self.text is None or self._says(facts))
            and (self.header is None or self.header[1] in headers.get(self.header[0], "").lower())
        )


_C, _S, _A = ErrorCategory, FailureScope, FailureAction


def _meaning(
    category: ErrorCategory, scope: FailureScope, action: FailureAction, elsewhere: bool, billed: bool | None = False
) -> Meaning:
    return Meaning(category=category, scope=scope, action=action, elsewhere=elsewhere, billed=billed)


COOL = _meaning(_C.RateLimitError, _S.QUOTA_GROUP, _A.COOL, True)
COOL_KEY = _meaning(_C.RateLimitError, _S.KEY, _A.COOL, True)
TOO_LARGE_HERE = _meaning(_C.ValidationError, _S.QUOTA_GROUP, _A.REJECT, True)
EXHAUSTED = _meaning(_C.QuotaExceededError, _S.QUOTA_GROUP, _A.EXHAUST, True)
EXHAUSTED_KEY = _meaning(_C.QuotaExceededError, _S.KEY, _A.EXHAUST, True)
DEAD = _meaning(_C.AuthenticationError, _S.KEY, _A.INVALIDATE, True)
DEAD_GROUP = _meaning(_C.AuthenticationError, _S.QUOTA_GROUP, _A.INVALIDATE, True)
DEAD_EGRESS = _meaning(_C.AuthenticationError, _S.PROVIDER, _A.BACK_OFF, True)
DOWN = _meaning(_C.ProviderError, _S.PROVIDER, _A.BACK_OFF, True)
DOWN_LATE = _meaning(_C.TimeoutError, _S.PROVIDER, _A.BACK_OFF, True, None)
REJECT = _meaning(_C.ValidationError, _S.REQUEST, _A.REJECT, False)
SKIP = _meaning(_C.ValidationError, _S.KEY_MODEL, _A.SKIP_MODEL, True)
SKIP_AUTH = _meaning(_C.AuthenticationError, _S.KEY_MODEL, _A.SKIP_MODEL, True)


def _row(
    name: str,
    meaning: Meaning,
    *statuses: int,
    words: str = "",
    text: str = "",
    header: tuple[str, str] | None = None,
    providers: str = "",
    until: str = "",
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
    _row("openai.flex_busy", DOWN, 429, text=r"\bresource unavailable\b"),
    _row("openai.too_large", TOO_LARGE_HERE, 429, text=r"\brequest too large\b"),
    _row("openai.slow_down", COOL, 429, 503, words="slow_down"),
    _row("openai.rate_limit", COOL, 429, words="rate_limit_exceeded requests tokens rate_limit_error"),
    _row("openai.key", DEAD, 401, words="invalid_api_key account_deactivated"),
    _row(
        "openai.ip",
        DEAD_EGRESS,
        401,
        403,
        words="ip_not_authorized",
    ),
    _row("openai.ip_text", DEAD_EGRESS, 401, 403, text=r"\bip (?:address )?(?:is )?not (?:authori[sz]ed|allowed)"),
    _row("openai.member", DEAD, 401, text=r"member of an? organization"),
    _row("openai.country", DEAD_EGRESS, 403, words="unsupported_country_region_territory"),
    _row("openai.model", SKIP, 400, 403, 404, words="model_not_found deploymentnotfound"),
    _row("openai.model_text", SKIP, 404, text=r"\bmodel\b.{0,200}\b(?:does not exist|not found|no access)"),
    _row(
        "openai.caller",
        REJECT,
        400,
        403,
        422,
        words=(
            "context_length_exceeded content_filter content_policy_violation invalid_prompt bio_policy "
            "misalignment_policy_violation string_above_max_length exceed_context_size_error tool_use_failed "
            "responsibleaipolicyviolation cyber_policy"
        ),
    ),
    _row(
        "openai.overloaded",
        DOWN,
        500,
        502,
        503,
        words="server_is_overloaded service_unavailable_error server_error engine_overloaded",
    ),
)
"""OpenAI, chat and responses."""

COMPATIBLE_ROWS: tuple[Row, ...] = (
    _row("groq.restricted", DEAD_GROUP, 400, 403, words="organization_restricted"),
    _row("groq.too_large", TOO_LARGE_HERE, 413, providers="groq"),
    _row("groq.flex", DOWN, 498),
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
    _row(
        "anthropic.linked",
        EXHAUSTED,
        402,
        words=("linked_organization_suspended linked_organization_unpaid linked_organization_not_found"),
    ),
    _row("anthropic.hold", DEAD_GROUP, 400, 403, words="organization_on_hold"),
    _row("anthropic.disabled", DEAD_GROUP, 400, 403, text=r"organization has been disabled"),
    _row("anthropic.creator", DEAD, 400, words="claude_code_key_creator_not_member"),
    _row("anthropic.cmek", DEAD_GROUP, 400, text=r"\bcmek_|customer.managed encryption"),
    _row("anthropic.long_prompt", REJECT, 400, 413, text=r"prompt is too long"),
    _row("anthropic.rate_limit", COOL, 429, words="rate_limit_error"),
    _row("anthropic.billing", EXHAUSTED, 402, words="billing_error"),
    _row("anthropic.key", DEAD, 401, words="authentication_error"),
    _row("anthropic.permission", SKIP_AUTH, 403, words="permission_error"),
    _row("anthropic.model", SKIP, 404, words="not_found_error", text=r"\bmodel\b"),
    _row("anthropic.size", REJECT, 413),
    _row("anthropic.overloaded", DOWN, words="overloaded_error"),
    _row("anthropic.timeout", DOWN_LATE, words="timeout_error"),
    _row("anthropic.api", DOWN, 500, words="api_error"),
)
"""Anthropic; its 400 has six meanings."""

GEMINI_ROWS: tuple[Row, ...] = (
    _row("gemini.key", DEAD, 400, 401, 403, words="api_key_invalid api_key_expired api_key_service_blocked"),
    _row("gemini.leaked", DEAD, 403, words="permission_denied", text=r"reported as leaked|referer|referrer|ip address"),
    _row("gemini.disabled", DEAD_GROUP, 403, words="service_disabled"),
    _row("gemini.region", DEAD_GROUP, 400, words="failed_precondition"),
    _row("gemini.prepaid", EXHAUSTED, 402, 429, text=r"prepayment credits? (?:are|is) depleted"),
    _row("gemini.quota", COOL, 429, words="resource_exhausted"),
    _row("gemini.permission", DEAD, 403, words="permission_denied"),
    _row("gemini.model", SKIP, 404, words="not_found"),
    _row("gemini.late", DOWN_LATE, words="deadline_exceeded"),
    _row("gemini.down", DOWN, words="unavailable internal"),
    _row("gemini.interactions", COOL, words="too_many_requests quota_exceeded"),
    _row("gemini.payment", EXHAUSTED, words="payment_required"),
)
"""Gemini. A violated `…PerDay…` quota is handled in `classify`: it exhausts until midnight at the Pacific."""

BEDROCK_ROWS: tuple[Row, ...] = (
    _row("bedrock.throttled", COOL, header=("x-amzn-errortype", "throttling")),
    _row("bedrock.quota", COOL, header=("x-amzn-errortype", "servicequotaexceeded")),
    _row("bedrock.loading", DOWN, header=("x-amzn-errortype", "modelnotready")),
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
    _row("any.late", DOWN_LATE, 408, 504, 524),
    _row("any.conflict", DOWN, 409, 425),
    _row("any.size", REJECT, 413),
    _row("any.limited", COOL, 429),
)
"""What a status means when nothing better is known. Other 4xx: the caller's fault; all else: the provider's."""

OPENAI_TABLE = OPENAI_ROWS + COMPATIBLE_ROWS + BEDROCK_ROWS + COMMON_ROWS
ANTHROPIC_TABLE = ANTHROPIC_ROWS + COMMON_ROWS
GEMINI_TABLE = GEMINI_ROWS + COMMON_ROWS
BEDROCK_TABLE = BEDROCK_ROWS + COMMON_ROWS

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
    meaning = row.meaning
    until_us = _until(row, facts, now_us)
    if row.name == "gemini.quota" and any("perday" in quota.lower() for quota in facts.quota_ids):
        meaning = EXHAUSTED
    return Failure(
        category=meaning.category,
        scope=meaning.scope,
        action=meaning.action,
        retry_elsewhere=meaning.elsewhere,
        message=redact(facts.message, known=known_secrets) or f"the provider answered with status {status}",
        status=status,
        code=redact(facts.code),
        type=redact(facts.type),
        retry_after_us=retry_after_us(headers, facts.message, facts.retry_delay, now_us=now_us),
        until_us=until_us,
        billed=meaning.billed,
    )


def _until(row: Row, facts: ErrorFacts, now_us: int) -> int:
    if row.until == "month":
        return next_month_us(now_us)
    return regain_us(facts.message, now_us=now_us)
