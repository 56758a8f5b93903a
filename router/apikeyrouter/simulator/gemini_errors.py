"""The Gemini dialect's errors (providers.md §1.3; google.rpc's details as the API sends them, 2026-11)."""

from __future__ import annotations

from typing import Any

from apikeyrouter.simulator.calls import Context, Reply, encode
from apikeyrouter.simulator.error_rows import NS_PER_SECOND, ErrorRow, render
from apikeyrouter.simulator.formats import ceil_seconds
from apikeyrouter.simulator.limits import NEVER
from apikeyrouter.simulator.meters import ConcurrencyMeter
from apikeyrouter.simulator.organisations import Denial

__all__ = ["GEMINI_FAILURES", "denial_reply", "error_body", "failure_reply"]

_TYPE = "type.googleapis.com/google.rpc."
_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "head to: https://ai.google.dev/gemini-api/docs/rate-limits."
)
_QUOTA_IDS = {
    "rpm": "GenerateRequestsPerMinutePerProjectPerModel",
    "rpd": "GenerateRequestsPerDayPerProjectPerModel",
    "tpm": "GenerateContentInputTokensPerModelPerMinute",
    "input_tpm": "GenerateContentInputTokensPerModelPerMinute",
    "tpd": "GenerateContentInputTokensPerModelPerDay",
    "spend_usd": "GenerateSpendPerTenMinutesPerProject",
    "concurrency": "GenerateConcurrentRequestsPerProjectPerModel",
}


def error_body(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    """An error in Google's shape."""
    error: dict[str, Any] = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = list(details)
    return {"error": error}


def _quota(quota_id: str, limit: int | str) -> dict[str, Any]:
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_requests",
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": "{model}"},
        "quotaValue": str(limit),
    }
    return {"@type": _TYPE + "QuotaFailure", "violations": [violation]}


def _info(reason: str) -> dict[str, Any]:
    return {"@type": _TYPE + "ErrorInfo", "reason": reason, "domain": "googleapis.com"}


_RETRY = {"@type": _TYPE + "RetryInfo", "retryDelay": "{seconds}s"}
_EXHAUSTED = (429, "RESOURCE_EXHAUSTED")
_DENIED = (403, "PERMISSION_DENIED")

GEMINI_FAILURES: dict[str, ErrorRow] = {
    name: ErrorRow(body["error"]["code"], body)
    for name, body in {
        "rate_limit_requests": error_body(*_EXHAUSTED, _QUOTA, _quota(_QUOTA_IDS["rpm"], 15), _RETRY),
        "rate_limit_tokens": error_body(*_EXHAUSTED, _QUOTA, _quota(_QUOTA_IDS["tpm"], 250_000), _RETRY),
        "quota_per_day": error_body(*_EXHAUSTED, _QUOTA, _quota(_QUOTA_IDS["rpd"], 1_500), _RETRY),
        "quota_plain": error_body(*_EXHAUSTED, "Resource has been exhausted (e.g. check quota)."),
        "prepayment_depleted": error_body(402, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
        "api_key_invalid": error_body(
            400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", _info("API_KEY_INVALID")
        ),
        "permission_denied": error_body(*_DENIED, "The caller does not have permission"),
        "key_leaked": error_body(*_DENIED, "Your API key was reported as leaked. Please use another API key."),
        "referrer_blocked": error_body(*_DENIED, "Requests from referer <empty> are blocked."),
        "service_disabled": error_body(
            *_DENIED, "Generative Language API has not been used in project 1 before or it is disabled.",
            _info("SERVICE_DISABLED"),
        ),
        "failed_precondition": error_body(
            400, "FAILED_PRECONDITION", "User location is not supported for the API use without a billing account."
        ),
        "gemini_not_found": error_body(
            404, "NOT_FOUND", "models/{model} is not found for API version v1beta, or is not supported."
        ),
        "input_too_long": error_body(
            400, "INVALID_ARGUMENT",
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        ),
        "unavailable": error_body(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
        "internal": error_body(500, "INTERNAL", "An internal error has occurred."),
        "deadline_exceeded": error_body(504, "DEADLINE_EXCEEDED", "The request timed out. Please try again."),
    }.items()
}  # fmt: skip
"""Every error of the Gemini row of providers.md §1.3, by failure name (and ``prompt_blocked``, which is a 200)."""


def failure_reply(name: str, context: Context, *, seconds: float | None) -> Reply | None:
    """The reply of failure ``name``, or None; waits are ``seconds`` (default 20)."""
    if name == "prompt_blocked":
        return Reply(200, encode({"promptFeedback": {"blockReason": "SAFETY"}, "modelVersion": context.model}))
    row = GEMINI_FAILURES.get(name)
    if row is None:
        return None
    return render(row, context, wait_ns=None if seconds is None else int(seconds * NS_PER_SECOND))


def denial_reply(denial: Denial, context: Context) -> Reply:
    """The 429 of a limit that was really reached; a day's comes with a small retryDelay all the same."""
    meter = denial.meter
    quota = _quota(_QUOTA_IDS.get(meter.name, meter.name), meter.amount)
    wait_ns = NS_PER_SECOND if denial.wait_ns in (0, NEVER) else denial.wait_ns
    if not isinstance(meter, ConcurrencyMeter) and "PerDay" in quota["violations"][0]["quotaId"]:
        wait_ns = min(wait_ns, 60 * NS_PER_SECOND)
    message = f"{_QUOTA}\nPlease retry in {ceil_seconds(wait_ns)}s."
    return render(ErrorRow(429, error_body(*_EXHAUSTED, message, quota, _RETRY)), context, wait_ns=wait_ns)
