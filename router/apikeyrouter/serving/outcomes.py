"""What came of an attempt, read: failures below HTTP and of adapters, and usage that nobody told. Pure."""

import msgspec

from apikeyrouter.domain.interfaces.provider_adapter import ProviderAdapter
from apikeyrouter.domain.models.failure import Failure, FailureAction, FailureScope
from apikeyrouter.domain.models.system_error import ErrorCategory, SystemError
from apikeyrouter.domain.models.usage import Usage
from apikeyrouter.infrastructure.adapters.transport import TransportError, UpstreamTimeout
from apikeyrouter.infrastructure.security.redaction import redact
from apikeyrouter.serving.admission import Admitted

BYTES_PER_TOKEN = 4


def estimated_usage(admitted: Admitted, produced: int) -> Usage:
    """What was probably used when the provider did not say: the input as expected, the output by what was received."""
    expected = admitted.charge.output_tokens
    output = -(-produced // BYTES_PER_TOKEN) if produced and expected else expected
    return Usage(input_tokens=admitted.charge.input_tokens, output_tokens=output, estimated=True)


def partial_usage(told: Usage, produced: int) -> Usage:
    """Usage of a stream that broke: the input the provider told, and at least the output that was received."""
    output = max(told.output_tokens, -(-produced // BYTES_PER_TOKEN))
    return Usage(
        input_tokens=told.input_tokens, output_tokens=output, cache_read_tokens=told.cache_read_tokens,
        cache_write_tokens=told.cache_write_tokens, cache_write_long_tokens=told.cache_write_long_tokens,
        reasoning_tokens=min(told.reasoning_tokens, output), service_tier=told.service_tier, estimated=True,
        media=told.media,
    )  # fmt: skip


def is_error_body(body: bytes) -> bool | None:
    """Whether a 200's body is an error after all (`providers.md` §0.6). None: it is not JSON."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return isinstance(decoded, dict) and bool(decoded.get("error"))


def transport_failure(error: TransportError) -> Failure:
    """A failure below HTTP. What was sent may have been billed."""
    timed_out = isinstance(error, UpstreamTimeout)
    return Failure(
        category=ErrorCategory.TimeoutError if timed_out else ErrorCategory.NetworkError,
        scope=FailureScope.PROVIDER, action=FailureAction.BACK_OFF, retry_elsewhere=True, message=str(error),
        billed=None if error.sent else False,
    )  # fmt: skip


def deadline_passed(*, sent: bool) -> Failure:
    """The caller's own deadline ended the call: no evidence against anybody, and nothing to try elsewhere."""
    return Failure(
        category=ErrorCategory.TimeoutError, scope=FailureScope.REQUEST, action=FailureAction.REJECT,
        retry_elsewhere=False, message="the call's deadline passed", billed=None if sent else False,
    )  # fmt: skip


def given_up(why: str) -> Failure:
    """We ended the call ourselves; what the provider billed is unknown."""
    return Failure(
        category=ErrorCategory.UnknownError, scope=FailureScope.REQUEST, action=FailureAction.REJECT,
        retry_elsewhere=False, message=why, billed=None,
    )  # fmt: skip


_ADAPTER_MEANINGS = {
    ErrorCategory.RateLimitError: (FailureScope.KEY, FailureAction.COOL, True),
    ErrorCategory.QuotaExceededError: (FailureScope.KEY, FailureAction.EXHAUST, True),
    ErrorCategory.AuthenticationError: (FailureScope.KEY, FailureAction.INVALIDATE, True),
    ErrorCategory.ValidationError: (FailureScope.REQUEST, FailureAction.REJECT, False),
    ErrorCategory.BudgetExceededError: (FailureScope.REQUEST, FailureAction.REJECT, False),
}
_UNCLEAR = frozenset({ErrorCategory.TimeoutError, ErrorCategory.NetworkError, ErrorCategory.UnknownError})


def adapter_failure(adapter: ProviderAdapter, error: Exception, *, secret: str) -> Failure:
    """What an adapter's exception means: by category where that is clear, else the key is in trouble.

    Total, whatever the adapter's `map_error` does; `secret` is taken out of the message.
    """
    mapped = _mapped(adapter, error)
    scope, action, elsewhere = _ADAPTER_MEANINGS.get(mapped.category, (FailureScope.KEY, FailureAction.BACK_OFF, True))
    told = mapped.details.get("status")
    return Failure(
        category=mapped.category, scope=scope, action=action, retry_elsewhere=elsewhere,
        message=redact(mapped.message, known=(secret,)) or type(error).__name__,
        status=told if isinstance(told, int) else 0, retry_after_us=int((mapped.retry_after or 0) * 1_000_000),
        billed=None if mapped.category in _UNCLEAR else False,
    )  # fmt: skip


def _mapped(adapter: ProviderAdapter, error: Exception) -> SystemError:
    try:
        mapped: object = adapter.map_error(error)
    except Exception:
        mapped = None
    return mapped if isinstance(mapped, SystemError) else SystemError(type(error).__name__)


def failed_lanes(admitted: Admitted, failure: Failure) -> int:
    """Which of the option's lanes the failure is evidence against, as bits: own lane first, provider's last."""
    if failure.action is not FailureAction.BACK_OFF:
        return 0
    if failure.scope is FailureScope.PROVIDER:
        return 1 << (len(admitted.option.lanes) - 1)
    return 1 if failure.scope in (FailureScope.KEY, FailureScope.KEY_MODEL) else 0
