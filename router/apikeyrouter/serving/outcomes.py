"""What came of an attempt, read: failures below HTTP and of adapters, and usage that nobody told. Pure."""

import time
from dataclasses import replace
from decimal import Decimal

import msgspec

from apikeyrouter.domain.components.failure_taxonomy import (
    COOL,
    CUT_OFF,
    DEAD,
    DEADLINE_PASSED,
    DOWN,
    EXHAUSTED_KEY,
    GIVEN_UP,
    LATE,
    LATE_CONNECT,
    NO_PLACE,
    REJECT,
    UNCLEAR,
    UNREACHABLE,
)
from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.models.accounting import AMOUNT_MAX
from apikeyrouter.domain.models.cost_estimate import CostEstimate, dollars, nanousd
from apikeyrouter.domain.models.failure import Failure, FailureScope
from apikeyrouter.domain.models.system_error import ErrorCategory, SystemError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.retry_hints import RETRY_MAX_US
from apikeyrouter.infrastructure.adapters.transport import NoPlace, TransportError, UpstreamTimeout
from apikeyrouter.infrastructure.security.redaction import redact
from apikeyrouter.serving.admission import Admitted
from apikeyrouter.serving.foreign_code import called

_DOLLARS_MAX = dollars(AMOUNT_MAX)


def estimated_usage(admitted: Admitted, output_tokens: int) -> Usage:
    """What was probably used when the provider did not say: the input as expected, the output by what was received."""
    expected = admitted.charge.output_tokens
    output = output_tokens if output_tokens and expected else expected
    return Usage(input_tokens=admitted.charge.input_tokens, output_tokens=output, estimated=True)


def partial_usage(told: Usage, output_tokens: int) -> Usage:
    """Usage of a stream that broke: the input the provider told, and at least the output that was received."""
    output = max(told.output_tokens, output_tokens)
    return Usage(
        input_tokens=told.input_tokens, output_tokens=output, cache_read_tokens=told.cache_read_tokens,
        cache_write_tokens=told.cache_write_tokens, cache_write_long_tokens=told.cache_write_long_tokens,
        reasoning_tokens=min(told.reasoning_tokens, output), service_tier=told.service_tier, estimated=True,
        media=told.media,
    )  # fmt: skip


def cost_nanousd(told: object) -> int | None:
    """An adapter's own cost in nano-dollars, rounded up; None where it tells none in dollars that can be booked."""
    if not isinstance(told, CostEstimate) or told.currency.upper() != "USD":
        return None
    return bookable_nanousd(told.amount)


def bookable_nanousd(amount: object) -> int | None:
    """Dollars in nano-dollars, rounded up; None for what cannot be booked."""
    if not isinstance(amount, Decimal) or not amount.is_finite() or not 0 <= amount <= _DOLLARS_MAX:
        return None
    return nanousd(amount)


def is_error_body(body: bytes) -> bool | None:
    """Whether a 200's body is an error after all (`providers.md` §0.6). None: it is not JSON."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return isinstance(decoded, dict) and bool(decoded.get("error"))


def transport_failure(error: TransportError, deadline: float | None = None) -> Failure:
    """A failure below HTTP. What was sent may have been billed. A call that ran out of its own time (`deadline`, by
    `time.perf_counter()`) is evidence against nobody."""
    if isinstance(error, UpstreamTimeout):
        if error.phase == "total" or _is_past(deadline):
            return deadline_passed(sent=error.sent)
        meaning = LATE if error.sent else LATE_CONNECT
    elif isinstance(error, NoPlace):
        meaning = NO_PLACE
    else:
        meaning = CUT_OFF if error.sent else UNREACHABLE
    return meaning.failure(str(error), signature=meaning.name)


def deadline_passed(*, sent: bool) -> Failure:
    """The caller's own deadline ended the call: no evidence against anybody, and nothing to try elsewhere."""
    failure = DEADLINE_PASSED.failure("the call's deadline passed", signature=DEADLINE_PASSED.name)
    return failure if sent else replace(failure, billed=False)


def given_up(why: str) -> Failure:
    """We ended the call ourselves; what the provider billed is unknown."""
    return GIVEN_UP.failure(why, signature=GIVEN_UP.name)


TIMEOUT_SECONDS_MIN = 0.05
"""A phase is given no less; what is left of a deadline below that is nothing."""
_ADAPTER_MEANINGS = {
    ErrorCategory.RateLimitError: COOL,
    ErrorCategory.QuotaExceededError: EXHAUSTED_KEY,
    ErrorCategory.AuthenticationError: DEAD,
    ErrorCategory.ValidationError: REJECT,
    ErrorCategory.BudgetExceededError: REJECT,
    ErrorCategory.ProviderError: DOWN,
    ErrorCategory.TimeoutError: LATE,
    ErrorCategory.NetworkError: CUT_OFF,
    ErrorCategory.UnknownError: UNCLEAR,
}
"""What an adapter's error means by its category. Its rate limits are the quota group's, as everybody's are."""


def unless_late(failure: Failure, deadline: float | None) -> Failure:
    """A failure, unless it was the call's own time that ran out: that speaks for nobody."""
    late = failure.category is ErrorCategory.TimeoutError and failure.status == 0
    return deadline_passed(sent=failure.billed is None) if late and _is_past(deadline) else failure


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.perf_counter() >= deadline - TIMEOUT_SECONDS_MIN


def interpret(error: Exception, adapter: ProviderAdapter | None, secret: str) -> Failure:
    """What an exception means, wherever it comes from: what it says itself, what its provider's dialect makes of the
    answer it carries, what its adapter says, else its kind.

    Total: whatever `error` and the adapter's `map_error` do. `secret` is taken out of the message.
    """
    if isinstance(error, TransportError):
        return transport_failure(error)
    told = _told(error) or _read(error, adapter)
    if told is not None:
        return replace(told, message=redact(told.message, known=(secret,)))
    return adapter_failure(adapter or _ANYBODY, error, secret=secret)


def _told(error: Exception) -> Failure | None:
    """The failure that an error of ours carries."""
    details = getattr(error, "details", None)
    for told in (getattr(error, "failure", None), details.get("failure") if isinstance(details, dict) else None):
        if isinstance(told, Failure):
            return told
    return None


def _read(error: Exception, adapter: ProviderAdapter | None) -> Failure | None:
    """An HTTP client's error that carries the whole answer, in the provider's dialect."""
    wire, response = getattr(adapter, "wire", None), getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if wire is None or response is None or not isinstance(status, int):
        return None
    try:
        headers = {str(name).lower(): str(value) for name, value in dict(response.headers).items()}
        classified: Failure = wire.classify(status, headers, bytes(response.content))
        return classified
    except Exception:  # a response that was not read, or is none
        return None


def adapter_failure(adapter: ProviderAdapter, error: Exception, *, secret: str) -> Failure:
    """What an adapter's exception means: by category where that is clear, else the key is in trouble.

    Total, whatever the adapter's `map_error` does; `secret` is taken out of the message.
    """
    mapped = _mapped(adapter, error)
    told = _told(mapped)
    if told is not None:
        return replace(told, message=redact(told.message, known=(secret,)))
    details: object = mapped.details
    status = details.get("status") if isinstance(details, dict) else None
    meaning = _ADAPTER_MEANINGS[mapped.category] if isinstance(mapped.category, ErrorCategory) else UNCLEAR
    return meaning.failure(
        redact(str(mapped.message), known=(secret,)) or type(error).__name__,
        status=status if isinstance(status, int) else 0,
        retry_after_us=_hint_us(mapped.retry_after),
        signature="adapter",
    )


def _hint_us(seconds: object) -> int:
    """An adapter's retry-after in microseconds; 0 for what is no time, at most RETRY_MAX_US."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        return 0
    return min(int(seconds * 1_000_000), RETRY_MAX_US)


class _Anybody(ProviderAdapter):
    """Reads errors as any provider's; sends nothing."""

    async def execute_request(self, intent: object, key: str) -> object:
        raise NotImplementedError


_ANYBODY = _Anybody()


def _mapped(adapter: ProviderAdapter, error: Exception) -> SystemError:
    try:
        mapped: object = called(adapter.map_error, error)
    except Exception:
        mapped = None
    return mapped if isinstance(mapped, SystemError) else SystemError(type(error).__name__)


def failed_lanes(admitted: Admitted, failure: Failure) -> int:
    """Which of the option's lanes the failure is evidence against, as bits: own lane first, provider's last."""
    against = failure.evidence
    if against is FailureScope.PROVIDER:
        return 1 << (len(admitted.option.lanes) - 1)
    return 1 if against in (FailureScope.KEY, FailureScope.KEY_MODEL) else 0
