"""Errors of the servers that speak OpenAI's dialect and fail in their own way (providers.md §1.3, 2026-11)."""

from __future__ import annotations

from typing import Any

from apikeyrouter.simulator.error_rows import ErrorRow

__all__ = ["AZURE_FAILURES", "COMPATIBLE_FAILURES", "DEEPSEEK_FAILURES", "GROQ_FAILURES", "MISTRAL_FAILURES",
           "OPENROUTER_FAILURES"]  # fmt: skip


def _error(message: str, **members: Any) -> dict[str, Any]:
    return {"error": {"message": message, **members}}


def _azure(code: str, message: str, **members: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **members}}


_CALL_RATE = (
    "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-10-21 have exceeded {what} "
    "rate limit of your current OpenAI S0 pricing tier. Please retry after {seconds} seconds."
)
AZURE_FAILURES: dict[str, ErrorRow] = {
    "rate_limit_requests": ErrorRow(429, _azure("429", _CALL_RATE.replace("{what}", "call")), "ms"),
    "rate_limit_tokens": ErrorRow(429, _azure("429", _CALL_RATE.replace("{what}", "token")), "ms"),
    "invalid_api_key": ErrorRow(
        401,
        _azure(
            "401",
            "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for "
            "an active subscription and use a correct regional API endpoint for your resource.",
        ),
    ),
    "network_denied": ErrorRow(403, _azure("403", "Access denied due to Virtual Network/Firewall rules.")),
    "temporarily_blocked": ErrorRow(403, _azure("403", "Your resource has been temporarily blocked.")),
    "model_not_found": ErrorRow(
        404,
        _azure(
            "DeploymentNotFound",
            "The API deployment for this resource does not exist. If you created the deployment within the last 5 "
            "minutes, please wait a moment and try again.",
        ),
    ),
    "content_filter": ErrorRow(
        400,
        _azure(
            "content_filter",
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
            param="prompt",
            type=None,
            status=400,
            innererror={
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": {"hate": {"filtered": True, "severity": "high"}},
            },
        ),
    ),
}

GROQ_FAILURES: dict[str, ErrorRow] = {
    "rate_limit_requests": ErrorRow(
        429,
        _error(
            "Rate limit reached for model `{model}` in organization `{org}` service tier `on_demand` on requests per "
            "day (RPD): Limit 14400, Used 14400, Requested 1. Please try again in {wait}.",
            type="requests",
            code="rate_limit_exceeded",
        ),
        "seconds",
    ),
    "rate_limit_tokens": ErrorRow(
        429,
        _error(
            "Rate limit reached for model `{model}` in organization `{org}` service tier `on_demand` on tokens per "
            "minute (TPM): Limit 6000, Used 5900, Requested 400. Please try again in {wait}.",
            type="tokens",
            code="rate_limit_exceeded",
        ),
        "seconds",
    ),
    "request_too_large": ErrorRow(
        413,
        _error(
            "Request too large for model `{model}` in organization `{org}` service tier `on_demand` on tokens per "
            "minute (TPM): Limit 6000, Requested 9000, please reduce your message size and try again.",
            type="tokens",
            code="rate_limit_exceeded",
        ),
    ),
    "capacity_exceeded": ErrorRow(
        498, _error("Flex capacity exceeded for model `{model}`.", type="invalid_request_error",
                    code="capacity_exceeded")
    ),
    "organization_restricted": ErrorRow(
        400,
        _error(
            "Organization has been restricted. Please reach out to support if you believe this was in error.",
            type="invalid_request_error",
            code="organization_restricted",
        ),
    ),
    "tool_use_failed": ErrorRow(
        400,
        _error("Failed to call a function. Please adjust your prompt.", type="invalid_request_error",
               code="tool_use_failed", failed_generation="<tool-use>"),
    ),
    "invalid_api_key": ErrorRow(
        401, _error("Invalid API Key", type="invalid_request_error", code="invalid_api_key")
    ),
    "model_not_found": ErrorRow(
        404,
        _error("The model `{model}` does not exist or you do not have access to it.", type="invalid_request_error",
               code="model_not_found"),
    ),
    "overloaded": ErrorRow(503, _error("Service unavailable", type="internal_server_error")),
}  # fmt: skip


def _mistral(message: Any, type_: str, code: str | None) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": type_, "param": None, "code": code}


MISTRAL_FAILURES: dict[str, ErrorRow] = {
    "rate_limit_requests": ErrorRow(429, _mistral("Rate limit exceeded", "rate_limited", "1300")),
    "invalid_api_key": ErrorRow(401, {"detail": "Unauthorized"}),
    "payment_required": ErrorRow(402, _mistral("Payment required", "payment_required", "1200")),
    "model_not_found": ErrorRow(404, _mistral("Invalid model: {model}", "invalid_model", "1500")),
    "extra_forbidden": ErrorRow(
        422,
        _mistral(
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "something"],
                        "msg": "Extra inputs are not permitted",
                        "input": True,
                    }
                ]
            },
            "invalid_request_error",
            None,
        ),
    ),
    "context_length": ErrorRow(
        400, _mistral("Prompt contains too many tokens, too large for model", "invalid_request_error", "3051")
    ),
    "overloaded": ErrorRow(503, _mistral("Service unavailable.", "internal_server_error", "3505")),
}


def _deepseek(message: str, type_: str) -> dict[str, Any]:
    return _error(message, type=type_, param=None, code="invalid_request_error")


DEEPSEEK_FAILURES: dict[str, ErrorRow] = {
    "rate_limit_requests": ErrorRow(429, _deepseek("Too many concurrent requests", "rate_limit_error")),
    "insufficient_balance": ErrorRow(402, _deepseek("Insufficient Balance", "unknown_error")),
    "invalid_api_key": ErrorRow(
        401, _deepseek("Authentication Fails, Your api key: {tail} is invalid", "authentication_error")
    ),
    "invalid_parameters": ErrorRow(422, _deepseek("Invalid parameters", "invalid_request_error")),
    "model_not_found": ErrorRow(404, _deepseek("Model Not Exist", "invalid_request_error")),
    "overloaded": ErrorRow(503, _deepseek("Service is too busy", "service_unavailable_error")),
}


def _openrouter(code: int, message: str, **metadata: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **({"metadata": metadata} if metadata else {})}}


OPENROUTER_FAILURES: dict[str, ErrorRow] = {
    "rate_limit_requests": ErrorRow(429, _openrouter(429, "Rate limit exceeded: free-models-per-min."), "seconds"),
    "insufficient_credits": ErrorRow(
        402,
        _openrouter(402, "This request requires more credits, or fewer max_tokens.", limit_source="openrouter_credits"),
    ),
    "key_limit": ErrorRow(
        402, _openrouter(402, "Key limit exceeded (total limit).", limit_source="openrouter_key_limit")
    ),
    "in_flight_budget": ErrorRow(
        402,
        _openrouter(402, "Too much spend is in flight. Retry shortly.", limit_source="openrouter_in_flight_budget"),
        "seconds",
    ),
    "weight_exceeds_budget": ErrorRow(
        402,
        _openrouter(
            402,
            "This request alone exceeds the in-flight budget.",
            limit_source="openrouter_in_flight_budget",
            reason="weight_exceeds_budget",
        ),
    ),
    "invalid_api_key": ErrorRow(401, _openrouter(401, "No auth credentials found")),
    "moderation": ErrorRow(
        403,
        _openrouter(403, "Input was flagged by moderation", reasons=["harassment"], flagged_input="…"),
    ),
    "model_not_found": ErrorRow(404, _openrouter(404, "No endpoints found for {model}.")),
    "request_timeout": ErrorRow(408, _openrouter(408, "Your request timed out.")),
    "overloaded": ErrorRow(503, _openrouter(503, "No provider available that meets your routing requirements")),
    "upstream_down": ErrorRow(502, _openrouter(502, "Provider returned error", provider_name="Example")),
}

COMPATIBLE_FAILURES: dict[str, dict[str, ErrorRow]] = {
    "azure": AZURE_FAILURES,
    "groq": GROQ_FAILURES,
    "mistral": MISTRAL_FAILURES,
    "deepseek": DEEPSEEK_FAILURES,
    "openrouter": OPENROUTER_FAILURES,
}
"""By dialect; what is missing there is OpenAI's."""
