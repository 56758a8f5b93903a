"""Errors the library raises. One root; each class says its condition."""

from enum import StrEnum
from typing import Any


class ApiKeyRouterError(Exception):
    """Root of everything this library raises on purpose."""


class InvalidRequestError(ApiKeyRouterError, ValueError):
    """The request itself is wrong; nothing was reserved. The message names the field."""


class _CaseFolding(StrEnum):
    @classmethod
    def _missing_(cls, value: object) -> "_CaseFolding | None":
        folded = value.casefold() if isinstance(value, str) else None
        return next((m for m in cls if m.value == folded or m.name.casefold() == folded), None)


class ErrorCategory(_CaseFolding):
    """The nine categories of the documents."""

    AuthenticationError = "authentication_error"
    RateLimitError = "rate_limit_error"
    QuotaExceededError = "quota_exceeded_error"
    ProviderError = "provider_error"
    TimeoutError = "timeout_error"
    NetworkError = "network_error"
    ValidationError = "validation_error"
    BudgetExceededError = "budget_exceeded_error"
    UnknownError = "unknown_error"


class SystemError(ApiKeyRouterError):
    """A request failed after everything was tried.

    `retry_after` in seconds (None: unknown); `details` never contains key material. When a stream broke, `details`
    has `partial` (the text so far) and `usage`.
    """

    def __init__(
        self,
        message: str = "",
        *,
        category: ErrorCategory = ErrorCategory.UnknownError,
        retryable: bool = False,
        retry_after: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.category = category
        self.retryable = retryable
        self.retry_after = retry_after
        self.details = details or {}


class ProviderError(SystemError):
    """The provider failed, and no other candidate could serve the request."""


class LedgerError(ApiKeyRouterError):
    """The accounting could not answer."""


class LedgerUnavailableError(LedgerError):
    """The store cannot be reached within the deadline. Nothing is held that will not end by itself."""


class StaleConfigError(LedgerError):
    """A reserve was made under another configuration than the active one; `version` is the active one."""

    def __init__(self, version: int) -> None:
        super().__init__(f"configuration version {version} is active; refresh and reserve again")
        self.version = version


class LedgerConfigError(LedgerError, ValueError):
    """Limits or budgets that contradict themselves or exceed what can be counted exactly."""


class LedgerProtocolError(LedgerError):
    """The cell was written by another version, or a value under our keys is not ours."""
