"""What a client is told when a request fails: one table from conditions to answers (`providers.md` §5.1).

Statuses, types and codes are chosen so that the official SDKs raise the right exception and retry only where that helps
(§5.2). An upstream's 401, 402 or 403 speaks of *our* key, never of the client's, and is never passed on.
"""

import random
from dataclasses import dataclass
from typing import Any

from apikeyrouter.domain.components.failure_taxonomy import DEADLINE_PASSED, TOO_LONG
from apikeyrouter.domain.interfaces.wire import Wire
from apikeyrouter.domain.models.accounting import Reason
from apikeyrouter.domain.models.failure import Failure, FailureScope
from apikeyrouter.domain.models.system_error import (
    ApiKeyRouterError,
    BudgetExceededError,
    ClockSuspectError,
    ErrorCategory,
    InvalidRequestError,
    LedgerUnavailableError,
    ModelNotFoundError,
    NoEligibleKeysError,
    PolicyDeniedError,
    StaleConfigError,
    StateStoreError,
    SystemError,
    UnsupportedEndpointError,
)

__all__ = ["Problem", "RequestRefused", "problem_headers", "problem_of", "refuse"]

SOON_SECONDS = 60
"""A wait up to this is a rate limit, worth a retry by the SDK; a longer one is exhaustion."""
SPREAD_MS_MAX = 1000
"""Callers are spread over at most this long after the instant at which room comes back."""
STORE_RETRY_MS = 1000
OVERLOAD_RETRY_MS = 1000
UNBOUNDED_MESSAGE = (
    "what this request costs cannot be bounded, and a budget that applies to it refuses that: send its input itself,"
    " without tools that the provider runs; or have the operator give the budget another `unpriced` rule, or the model"
    " its `context_tokens`"
)
BUDGET_MESSAGE = "a budget that applies to this request has no room for it"
UNPRICED_MESSAGE = "a budget that applies to this request refuses what has none"
NAMED_MAX = 8
_TYPED_BY_STATUS = frozenset({404, 413})
"""Where Anthropic has a type of its own and OpenAI says `invalid_request_error`."""
_OWN_FAULT = (401, 402, 403)
_OUT = (Reason.BREAKER_OPEN, Reason.PROBE_IN_FLIGHT)
"""Nobody is over a limit: providers fail, and are left alone for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One error answer. `reason` is what it is counted under ("": its code); `retry` is what `x-should-retry` says."""

    status: int
    type: str
    code: str
    message: str
    retry: bool = False
    retry_after_ms: int | None = None
    reason: str = ""

    @property
    def counted_as(self) -> str:
        """One of a fixed set, unlike the code, which may be the provider's."""
        return self.reason or self.code


class RequestRefused(ApiKeyRouterError):
    """A request was refused before it reached the router; `problem` is the answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def refuse(status: int, type: str, code: str, message: str, *, retry: bool = False) -> RequestRefused:
    """An error to raise: not worth a retry unless it says so."""
    return RequestRefused(Problem(status=status, type=type, code=code, message=message, retry=retry))


def problem_of(error: BaseException, dialect: str) -> Problem:
    """What to answer. Total: an exception that is none of ours is our own fault and says nothing about itself."""
    if isinstance(error, RequestRefused):
        return error.problem
    if isinstance(error, InvalidRequestError):
        return _invalid(error)
    if isinstance(error, BudgetExceededError):
        if error.details["needed"] is None and "unpriced" not in error.details:
            return Problem(status=400, type="invalid_request_error", code="cost_unbounded", message=UNBOUNDED_MESSAGE)
        return _exhausted("budget_exceeded", _budget_message(error), _ms(error.retry_after))
    if isinstance(error, PolicyDeniedError):
        return _denied(error)
    if isinstance(error, NoEligibleKeysError):
        return _no_key(error, dialect)
    if isinstance(error, SystemError):
        return _failed(error, dialect)
    if isinstance(error, ClockSuspectError):
        message = "the accounting store's clock is in doubt, so hard budgets refuse; try again"
        return _unavailable("clock_suspect", message, dialect, after_ms=_ms(error.retry_after))
    if isinstance(error, (LedgerUnavailableError, StaleConfigError, StateStoreError)):
        return _unavailable("store_unavailable", "the accounting store cannot be reached; try again", dialect)
    return Problem(status=500, type="api_error", code="internal_error", message="an error in the router; see its log")


def problem_headers(problem: Problem) -> list[tuple[bytes, bytes]]:
    """`x-should-retry`, and when to come back: `retry-after` in whole seconds, `retry-after-ms` spread a little."""
    headers = [(b"x-should-retry", b"true" if problem.retry else b"false")]
    if problem.retry_after_ms is not None:
        after_ms = problem.retry_after_ms
        if problem.retry:
            after_ms += random.randrange(1 + min(SPREAD_MS_MAX, after_ms // 10))  # noqa: S311 (spreads callers)
        headers.append((b"retry-after", b"%d" % -(-after_ms // 1000)))
        headers.append((b"retry-after-ms", b"%d" % after_ms))
    return headers


def problem_body(problem: Problem, wire: Wire, request_id: str) -> bytes:
    """The answer's body in the route's dialect."""
    by_status = wire.dialect == "anthropic" and problem.status in _TYPED_BY_STATUS
    return wire.error_body(
        status=problem.status,
        type="" if by_status else problem.type,
        code=problem.code,
        message=problem.message,
        request_id=request_id,
    )


def _invalid(error: InvalidRequestError) -> Problem:
    if isinstance(error, ModelNotFoundError):
        return Problem(status=404, type="invalid_request_error", code="model_not_found", message=str(error))
    code = "unsupported_endpoint" if isinstance(error, UnsupportedEndpointError) else "invalid_request"
    return Problem(status=400, type="invalid_request_error", code=code, message=str(error))


def _budget_message(error: BudgetExceededError) -> str:
    """A model without a price may be one that is misspelt: its name came from the client, and is told."""
    unpriced = ", ".join(error.details.get("unpriced", ())[:NAMED_MAX])
    return f"no price is known for {unpriced}; {UNPRICED_MESSAGE}" if unpriced else BUDGET_MESSAGE


def _denied(error: PolicyDeniedError) -> Problem:
    """Policies are the operator's word to the client, and are named; which keys they keep from it is not."""
    names = ", ".join(error.policies)
    message = f"no key may serve this request: policy {names}"
    return Problem(status=403, type="permission_error", code="policy_denied", message=message)


def _no_key(error: NoEligibleKeysError, dialect: str) -> Problem:
    """Which keys and limits stand in the way is the operator's business, and in the log; the wait is the client's."""
    if error.never_fits:
        message = "the request is larger than any limit could ever admit"
        return Problem(status=400, type="invalid_request_error", code="request_too_large", message=message)
    own_limit = error.binding is not None and error.binding.where.startswith("c:")
    message = "this client's limit is reached" if own_limit else "no key can serve this request now"
    after_ms = None if error.retry_after_us is None else -(-error.retry_after_us // 1000)
    if error.binding is not None and error.binding.reason in _OUT:
        message = "the providers that serve this do not answer now; try again later"
        return _unavailable("server_is_overloaded", message, dialect, after_ms=after_ms)
    if after_ms is None or (after_ms > SOON_SECONDS * 1000 and not own_limit):
        return _exhausted("all_keys_exhausted", message, after_ms)
    return Problem(
        status=429,
        type="rate_limit_error",
        code="tenant_rate_limited" if own_limit else "rate_limit_exceeded",
        message=f"{message}; try again in {after_ms / 1000:g} s",
        retry=True,
        retry_after_ms=after_ms,
    )


def _exhausted(code: str, message: str, after_ms: int | None) -> Problem:
    """Not worth an SDK's retry, whatever the wait: it would sleep through it."""
    return Problem(
        status=429,
        type="insufficient_quota",
        code=code,
        message=message,
        retry_after_ms=after_ms,
    )


def _unavailable(code: str, message: str, dialect: str, *, retry: bool = True, after_ms: int | None = None) -> Problem:
    anthropic = dialect == "anthropic"
    return Problem(
        status=529 if anthropic else 503,
        type="overloaded_error" if anthropic else "service_unavailable_error",
        code=code,
        message=message,
        retry=retry,
        retry_after_ms=(after_ms or STORE_RETRY_MS) if retry else after_ms,
    )


def _failed(error: SystemError, dialect: str) -> Problem:
    """An upstream's last word, by its cause."""
    failure = error.details.get("failure")
    if not isinstance(failure, Failure):
        failure = None
    category = error.category
    after_ms = _after_ms(error, failure)
    if category is ErrorCategory.ValidationError:
        return _callers_fault(error, failure)
    if category is ErrorCategory.RateLimitError and (after_ms or 0) <= SOON_SECONDS * 1000:
        return Problem(
            status=429,
            type="rate_limit_error",
            code="rate_limit_exceeded",
            message="every key that was tried is at its provider's rate limit",
            retry=True,
            retry_after_ms=after_ms or OVERLOAD_RETRY_MS,
        )
    if category in (ErrorCategory.RateLimitError, ErrorCategory.QuotaExceededError):
        return _exhausted("all_keys_exhausted", "every key that was tried is exhausted", after_ms)
    if category is ErrorCategory.AuthenticationError:
        return _unavailable("upstream_credentials", "no working provider credentials for this request", dialect)
    if category in (ErrorCategory.TimeoutError, ErrorCategory.NetworkError):
        return _unanswered(error, failure)
    return _unavailable("server_is_overloaded", error.message, dialect, after_ms=after_ms or OVERLOAD_RETRY_MS)


def _after_ms(error: SystemError, failure: Failure | None) -> int | None:
    if failure is not None and failure.retry_after_us > 0:
        return -(-failure.retry_after_us // 1000)
    return _ms(error.retry_after)


def _ms(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * 1000


def _callers_fault(error: SystemError, failure: Failure | None) -> Problem:
    """The upstream's own status and words, scrubbed. A 429 that says "too large" is no rate limit."""
    if failure is None:
        return Problem(status=400, type="invalid_request_error", code="invalid_request", message=error.message)
    if failure.scope is FailureScope.KEY_MODEL:
        return Problem(status=404, type="invalid_request_error", code="model_not_found", message=failure.message)
    if failure.scope is FailureScope.QUOTA_GROUP:
        return Problem(status=400, type="invalid_request_error", code="request_too_large", message=failure.message)
    status = failure.status if 400 <= failure.status < 500 and failure.status not in _OWN_FAULT else 400
    return Problem(
        status=status,
        type=failure.type if _is_word(failure.type) else "invalid_request_error",
        code=_code_of(failure),
        message=failure.message,
        reason="refused_by_provider",
    )


def _code_of(failure: Failure) -> str:
    """The provider's code where it is a word that clients of any dialect may look for; a status is none."""
    if failure.meaning == TOO_LONG.name:
        return "context_length_exceeded"
    return failure.code if _is_word(failure.code) else "invalid_request"


def _is_word(code: str) -> bool:
    """Neither a status (Gemini's and vLLM's codes are) nor the name of one (`INVALID_ARGUMENT`)."""
    return bool(code) and not code.isdigit() and not code.isupper()


def _unanswered(error: SystemError, failure: Failure | None) -> Problem:
    """A retry may be billed twice unless the provider certainly did not get the request. Who ran out of its own time
    has none for another."""
    late = error.category is ErrorCategory.TimeoutError
    again = failure is not None and failure.billed is False and failure.meaning != DEADLINE_PASSED.name
    return Problem(
        status=504 if late else 502,
        type="timeout_error" if late else "api_error",
        code="upstream_timeout" if late else "upstream_unreachable",
        message=error.message,
        retry=again,
        retry_after_ms=OVERLOAD_RETRY_MS if again else None,
    )


def event_arguments(problem: Problem) -> dict[str, Any]:
    """What `Wire.error_event` takes of a problem."""
    return {"type": problem.type, "code": problem.code, "message": problem.message, "status": problem.status}
