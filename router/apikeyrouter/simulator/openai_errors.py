"""The OpenAI dialect's errors, word for word where providers.md has the words (docs and traffic, 2026-11)."""

from __future__ import annotations

from typing import NamedTuple

from apikeyrouter.simulator.calls import JSON_HEADER, Context, Reply, encode
from apikeyrouter.simulator.formats import ceil_ms, ceil_seconds, go_duration
from apikeyrouter.simulator.limits import NEVER
from apikeyrouter.simulator.meters import ConcurrencyMeter, Meter
from apikeyrouter.simulator.organisations import Denial

__all__ = ["OPENAI_FAILURES", "denial_reply", "error_reply", "failure_reply"]

_SEE_LIMITS = "Visit https://platform.openai.com/account/rate-limits to learn more."
_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this "
    "error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)
_DEFAULT_WAIT_SECONDS = 20.0
_NS_PER_SECOND = 1_000_000_000


class _Error(NamedTuple):
    """One row: status, type, code, message (with {model}, {org}, {project}, {wait}, {tail}), parameter, waits?"""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    waits: bool = False


OPENAI_FAILURES: dict[str, _Error] = {
    "rate_limit_requests": _Error(
        429,
        "requests",
        "rate_limit_exceeded",
        "Rate limit reached for {model} in organization {org} on requests per min (RPM): Limit 500, Used 500, "
        "Requested 1. Please try again in {wait}. " + _SEE_LIMITS,
        waits=True,
    ),
    "rate_limit_tokens": _Error(
        429,
        "tokens",
        "rate_limit_exceeded",
        "Rate limit reached for {model} in organization {org} on tokens per min (TPM): Limit 200000, Used 199500, "
        "Requested 1200. Please try again in {wait}. " + _SEE_LIMITS,
        waits=True,
    ),
    "request_too_large": _Error(
        429,
        "tokens",
        "rate_limit_exceeded",
        "Request too large for {model} in organization {org} on tokens per min (TPM): Limit 30000, Requested 64000. "
        "The input or output tokens must be reduced in order to run successfully. " + _SEE_LIMITS,
    ),
    "slow_down": _Error(
        429,
        "rate_limit_error",
        "slow_down",
        "Slow down: your traffic to {model} has grown too fast. Please reduce your request rate, keep it steady for "
        "at least 15 minutes, and then gradually increase it.",
        waits=True,
    ),
    "slow_down_503": _Error(
        503, "server_error", "slow_down", "Slow down: please reduce your request rate to {model}.", waits=True
    ),
    "flex_unavailable": _Error(429, "server_error", "resource_unavailable", "Resource Unavailable"),
    "insufficient_quota": _Error(429, "insufficient_quota", "insufficient_quota", _QUOTA),
    "credit_balance_exhausted": _Error(
        429, "insufficient_quota", "credit_balance_exhausted", "The credit balance of organization {org} is exhausted."
    ),
    "organization_spend_limit_exceeded": _Error(
        429,
        "insufficient_quota",
        "organization_spend_limit_exceeded",
        "Organization {org} has exceeded its monthly spend limit. It resets on the first of the month.",
    ),
    "project_spend_limit_exceeded": _Error(
        429,
        "insufficient_quota",
        "project_spend_limit_exceeded",
        "Project {project} has exceeded its monthly spend limit.",
    ),
    "organization_usage_limit_exceeded": _Error(
        429,
        "insufficient_quota",
        "organization_usage_limit_exceeded",
        "Organization {org} has exceeded its approved usage limit.",
    ),
    "billing_hard_limit_reached": _Error(
        400, "invalid_request_error", "billing_hard_limit_reached", "Billing hard limit has been reached"
    ),
    "invalid_api_key": _Error(
        401,
        "invalid_request_error",
        "invalid_api_key",
        "Incorrect API key provided: {tail}. You can find your API key at https://platform.openai.com/account/api-keys.",
    ),
    "not_a_member": _Error(
        401,
        "invalid_request_error",
        "invalid_organization",
        "You must be a member of an organization to use the API. Please contact us through our help center.",
    ),
    "ip_not_authorized": _Error(
        401, "invalid_request_error", "ip_not_authorized", "Your IP address is not authorized to access this project."
    ),
    "unsupported_country": _Error(
        403, "request_forbidden", "unsupported_country_region_territory", "Country, region, or territory not supported"
    ),
    "missing_scope": _Error(
        403,
        "invalid_request_error",
        "missing_scope",
        "You have insufficient permissions for this operation. Missing scopes: model.request.",
    ),
    "unverified_organization": _Error(
        403,
        "invalid_request_error",
        "unverified_organization",
        "Your organization must be verified to use the model `{model}`.",
    ),
    "model_not_found": _Error(
        404,
        "invalid_request_error",
        "model_not_found",
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    "model_not_found_400": _Error(
        400, "invalid_request_error", "model_not_found", "The requested model '{model}' does not exist.", "model"
    ),
    "context_length_exceeded": _Error(
        400,
        "invalid_request_error",
        "context_length_exceeded",
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 131072 tokens. "
        "Please reduce the length of the messages.",
        "messages",
    ),
    "content_filter": _Error(
        400, "invalid_request_error", "content_filter", "The response was filtered due to the prompt.", "prompt"
    ),
    "content_policy_violation": _Error(
        400,
        "invalid_request_error",
        "content_policy_violation",
        "Your request was rejected as a result of our safety system.",
    ),
    "invalid_prompt": _Error(
        400,
        "invalid_request_error",
        "invalid_prompt",
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
    ),
    "bio_policy": _Error(400, "invalid_request_error", "bio_policy", "This request was flagged by our biology policy."),
    "misalignment_policy_violation": _Error(
        400,
        "invalid_request_error",
        "misalignment_policy_violation",
        "This request was flagged by our misalignment policy.",
    ),
    "server_is_overloaded": _Error(
        503,
        "service_unavailable_error",
        "server_is_overloaded",
        "Our servers are currently overloaded. Please try again later.",
    ),
    "server_error": _Error(
        500,
        "server_error",
        None,
        "The server had an error while processing your request. Sorry about that!",
    ),
    "gateway_timeout": _Error(504, "server_error", None, "The request timed out."),
}
"""Every error of the OpenAI row of providers.md §1.3, by failure name."""

_DIMENSIONS = {
    "rpm": "requests per min (RPM)",
    "tpm": "tokens per min (TPM)",
    "input_tpm": "input tokens per min (ITPM)",
    "output_tpm": "output tokens per min (OTPM)",
    "rpd": "requests per day (RPD)",
    "tpd": "tokens per day (TPD)",
    "concurrency": "concurrent requests",
}


def error_reply(
    status: int, *, type_: str, message: str, code: str | None = None, param: str | None = None, headers: str = ""
) -> Reply:
    """An error in OpenAI's shape: all four fields are always there."""
    error = {"message": message, "type": type_, "param": param, "code": code}
    return Reply(status, encode({"error": error}), JSON_HEADER + headers)


def failure_reply(name: str, context: Context, *, seconds: float | None) -> Reply | None:
    """The reply of failure ``name``, or None; waits are ``seconds`` (default 20)."""
    error = OPENAI_FAILURES.get(name)
    if error is None:
        return None
    wait_ns = int((_DEFAULT_WAIT_SECONDS if seconds is None else seconds) * _NS_PER_SECOND)
    organisation = context.organisation
    message = error.message.format(
        model=context.model,
        org="org-unknown" if organisation is None else organisation.id,
        project=(organisation.config.project if organisation else None) or "proj_default",
        wait=go_duration(wait_ns),
        tail=mask_key(context.material),
    )
    headers = _wait_headers(wait_ns) if error.waits else ""
    return error_reply(
        error.status, type_=error.type, message=message, code=error.code, param=error.param, headers=headers
    )


def mask_key(material: str) -> str:
    """``sk-sim-a********ha-1``: what OpenAI shows of a wrong key."""
    return f"{material[:8]}{'*' * 8}{material[-4:]}" if len(material) > 12 else "*" * len(material)


def denial_reply(denial: Denial, context: Context) -> Reply:
    """The 429 of a limit that was really reached."""
    meter = denial.meter
    organisation = context.organisation
    org = "org-unknown" if organisation is None else organisation.id
    if isinstance(meter, Meter) and meter.metric == "spend":
        code = "organization_spend_limit_exceeded" if meter.owner.scope == "organisation" else "insufficient_quota"
        return error_reply(429, type_="insufficient_quota", code=code, message=f"Spend limit of {org} exceeded.")
    what = _DIMENSIONS.get(meter.name, meter.name)
    type_ = "requests" if isinstance(meter, ConcurrencyMeter) or meter.metric == "requests" else "tokens"
    place = f"for {context.model} in organization {org} on {what}: Limit {meter.amount}"
    if denial.wait_ns == NEVER:
        message = (
            f"Request too large {place}, Requested {denial.requested}. The input or output tokens must be reduced in "
            f"order to run successfully. {_SEE_LIMITS}"
        )
        return error_reply(429, type_=type_, code="rate_limit_exceeded", message=message)
    wait_ns = denial.wait_ns or _NS_PER_SECOND
    message = (
        f"Rate limit reached {place}, Used {meter.amount - denial.remaining}, Requested {denial.requested}. "
        f"Please try again in {go_duration(wait_ns)}. {_SEE_LIMITS}"
    )
    headers = _wait_headers(wait_ns)
    return error_reply(429, type_=type_, code="rate_limit_exceeded", message=message, headers=headers)


def _wait_headers(wait_ns: int) -> str:
    return f"retry-after: {ceil_seconds(wait_ns)}\r\nretry-after-ms: {ceil_ms(wait_ns)}\r\n"
