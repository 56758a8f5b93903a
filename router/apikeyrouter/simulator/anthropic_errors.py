"""The Anthropic dialect's errors, word for word where providers.md has the words (docs and SDK, 2026-11)."""

from __future__ import annotations

from typing import NamedTuple

from apikeyrouter.simulator.calls import JSON_HEADER, Context, Reply, encode
from apikeyrouter.simulator.formats import ceil_seconds, first_of_next_month, next_day
from apikeyrouter.simulator.limits import NEVER
from apikeyrouter.simulator.meters import ConcurrencyMeter
from apikeyrouter.simulator.organisations import Denial

__all__ = ["ANTHROPIC_FAILURES", "denial_reply", "error_reply", "failure_reply"]

_DEFAULT_WAIT_SECONDS = 20.0
_REGAIN = "You will regain access on {date} at 00:00 UTC."
_SEE_LIMITS = "For details, refer to: https://docs.claude.com/en/api/rate-limits."
_HTML_TOO_LARGE = (
    b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>\r\n"
    b"<center><h1>413 Request Entity Too Large</h1></center>\r\n"
    b"<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
)


class _Error(NamedTuple):
    """One row: status, type, message (with {model}, {org}, {date}), ``details.error_code``, has a retry-after?"""

    status: int
    type: str
    message: str
    error_code: str | None = None
    waits: bool = False


ANTHROPIC_FAILURES: dict[str, _Error] = {
    "rate_limit_requests": _Error(
        429,
        "rate_limit_error",
        "This request would exceed the rate limit for your organization ({org}) of 50 requests per minute. "
        + _SEE_LIMITS,
        waits=True,
    ),
    "rate_limit_tokens": _Error(
        429,
        "rate_limit_error",
        "This request would exceed the rate limit for your organization ({org}) of 40,000 input tokens per minute. "
        + _SEE_LIMITS,
        waits=True,
    ),
    "ramp_limit_exceeded": _Error(
        429,
        "rate_limit_error",
        "Your traffic to {model} has grown too fast. Please ramp up gradually.",
        "ramp_limit_exceeded",
        waits=True,
    ),
    "enforced_spend_limit_reached": _Error(
        429,
        "rate_limit_error",
        "Your organization has reached its enforced spend limit. " + _REGAIN,
        "enforced_spend_limit_reached",
    ),
    "contract_spend_limit_reached": _Error(
        429,
        "rate_limit_error",
        "Your organization has reached its contract spend limit. " + _REGAIN,
        "contract_spend_limit_reached",
    ),
    "usage_limit_reached": _Error(
        400, "invalid_request_error", "You have reached your specified API usage limits. " + _REGAIN
    ),
    "workspace_usage_limit_reached": _Error(
        400, "invalid_request_error", "You have reached your specified workspace API usage limits. " + _REGAIN
    ),
    "credit_balance_too_low": _Error(
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or "
        "purchase credits.",
    ),
    "billing_error": _Error(402, "billing_error", "There is an issue with your billing or payment information."),
    "organization_on_hold": _Error(
        400, "invalid_request_error", "This organization is on hold. Please contact support.", "organization_on_hold"
    ),
    "organization_disabled": _Error(400, "invalid_request_error", "This organization has been disabled."),
    "claude_code_key_creator_not_member": _Error(
        400,
        "invalid_request_error",
        "The creator of this key is no longer a member of the organization.",
        "claude_code_key_creator_not_member",
    ),
    "linked_organization_billing": _Error(
        402, "billing_error", "The linked organization cannot be billed.", "linked_organization_billing_inactive"
    ),
    "authentication_error": _Error(401, "authentication_error", "invalid x-api-key"),
    "permission_error": _Error(
        403, "permission_error", "Your API key does not have permission to use the specified resource."
    ),
    "cmek_key_unavailable": _Error(
        400, "invalid_request_error", "The customer managed encryption key is not usable.", "cmek_key_revoked"
    ),
    "cmek_transient": _Error(
        503, "api_error", "The customer managed encryption key is temporarily unavailable.", "cmek_key_unavailable"
    ),
    "not_found_error": _Error(404, "not_found_error", "model: {model}"),
    "request_too_large": _Error(413, "request_too_large", "Request exceeds the maximum size"),
    "prompt_too_long": _Error(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
    "content_policy": _Error(400, "invalid_request_error", "Output blocked by content filtering policy"),
    "overloaded_error": _Error(529, "overloaded_error", "Overloaded"),
    "api_error": _Error(500, "api_error", "Internal server error"),
    "timeout_error": _Error(504, "timeout_error", "The request timed out while processing."),
}
"""Every error of the Anthropic row of providers.md §1.3, by failure name (and ``request_too_large_html``)."""

_DIMENSIONS = {
    "rpm": "requests per minute",
    "tpm": "tokens per minute",
    "input_tpm": "input tokens per minute",
    "output_tpm": "output tokens per minute",
    "rpd": "requests per day",
    "tpd": "tokens per day",
}


def error_reply(
    status: int, *, type_: str, message: str, request_id: str, error_code: str | None = None, headers: str = ""
) -> Reply:
    """An error in Anthropic's shape; ``details`` only with an ``error_code``."""
    error: dict[str, object] = {"type": type_, "message": message}
    if error_code is not None:
        error["details"] = {"error_code": error_code}
    return Reply(status, encode({"type": "error", "error": error, "request_id": request_id}), JSON_HEADER + headers)


def failure_reply(name: str, context: Context, *, seconds: float | None, regain: str | None = None) -> Reply | None:
    """The reply of failure ``name``, or None; waits are ``seconds`` (default 20).

    ``regain`` is the day (``YYYY-MM-DD``) that spend limits name; by default the first of next month.
    """
    if name == "request_too_large_html":
        return Reply(413, _HTML_TOO_LARGE, "content-type: text/html\r\nserver: cloudflare\r\n")
    error = ANTHROPIC_FAILURES.get(name)
    if error is None:
        return None
    organisation = context.organisation
    message = error.message.format(
        model=context.model,
        org="unknown" if organisation is None else organisation.id,
        date=regain or first_of_next_month(context.now_ns),
    )
    wait = _DEFAULT_WAIT_SECONDS if seconds is None else seconds
    return error_reply(
        error.status,
        type_=error.type,
        message=message,
        request_id=context.request_id,
        error_code=error.error_code,
        headers=f"retry-after: {-int(-wait // 1)}\r\n" if error.waits else "",
    )


def denial_reply(denial: Denial, context: Context) -> Reply:
    """The 429 of a limit that was really reached."""
    meter = denial.meter
    org = "unknown" if context.organisation is None else context.organisation.id
    if meter.name == "spend_usd":
        regain = next_day(context.now_ns + denial.wait_ns)
        reply = failure_reply("enforced_spend_limit_reached", context, seconds=None, regain=regain)
        assert reply is not None
        return reply
    if isinstance(meter, ConcurrencyMeter):
        message = f"Number of concurrent connections has exceeded your rate limit ({meter.amount}). {_SEE_LIMITS}"
    else:
        message = (
            f"This request would exceed the rate limit for your organization ({org}) of {meter.amount:,} "
            f"{_DIMENSIONS.get(meter.name, meter.name)}. {_SEE_LIMITS}"
        )
    wait_seconds = 60 if denial.wait_ns == NEVER else max(1, ceil_seconds(denial.wait_ns))
    headers = f"retry-after: {wait_seconds}\r\n"
    return error_reply(429, type_="rate_limit_error", message=message, request_id=context.request_id, headers=headers)
