"""Errors the library raises. One root; each class says its condition."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from apikeyrouter.domain.models.case_folding import CaseFolding

if TYPE_CHECKING:
    from apikeyrouter.domain.models.accounting import Loss


class ApiKeyRouterError(Exception):
    """Root of everything this library raises on purpose."""


class InvalidRequestError(ApiKeyRouterError, ValueError):
    """The request itself is wrong; nothing was reserved. The message names the field.

    `field` is its path, e.g. `messages[0].role` ("" when the request as a whole is meant), `reason` the rest.
    """

    def __init__(self, reason: str = "", *, field: str = "") -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.reason = reason
        self.field = field


class ErrorCategory(CaseFolding):
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

    Raises:
        InvalidRequestError: `category` is none; its values and names count in any case.
    """

    def __init__(
        self,
        message: str = "",
        *,
        category: ErrorCategory | str = ErrorCategory.UnknownError,
        retryable: bool = False,
        retry_after: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.category = category if isinstance(category, ErrorCategory) else _category(category)
        self.retryable = retryable
        self.retry_after = retry_after
        self.details = details or {}


def _category(told: str) -> ErrorCategory:
    try:
        return ErrorCategory(told)
    except ValueError:
        raise InvalidRequestError(f"must be one of {', '.join(ErrorCategory)}", field="category") from None


class ProviderError(SystemError):
    """The provider failed, and no other candidate could serve the request."""


class BudgetExceededError(SystemError):
    """A hard budget has no room for the request. Nothing was reserved.

    `details` has `scope` (the budget's id), `limit`, `settled`, `held` and `needed` (Decimal dollars; `held` includes
    what is in suspense; what is settled and held is read after the denial, when others may have ended; `needed` None
    when the request cannot be priced), `resets_at` (aware UTC, None: never).
    Where models were refused because nobody has stated their price, `unpriced` names them as `provider/model`.
    """

    def __init__(
        self,
        *,
        scope: str,
        limit: Decimal,
        settled: Decimal,
        held: Decimal,
        needed: Decimal | None,
        resets_at: datetime | None = None,
        retry_after: int | None = None,
        unpriced: Sequence[str] = (),
        doubts: Sequence[str] = (),
    ) -> None:
        if needed is None:
            told = "; ".join((_without_a_price(scope, unpriced), *doubts))
        else:
            advice = "ask for fewer tokens" if needed > limit else "wait for its reset"
            books = f"{settled:f} settled + {held:f} held of {limit:f}"
            if settled + held + needed <= limit:
                told = f"budget {scope!r} had no room for {needed:f} more dollars; others have ended since: {books}"
            else:
                told = f"budget {scope!r} has no room for {needed:f} more dollars: {books}"
                told += f"; raise the budget, {advice}, or make it soft"
        super().__init__(
            told,
            category=ErrorCategory.BudgetExceededError,
            retryable=retry_after is not None,
            retry_after=retry_after,
            details={
                "scope": scope, "limit": limit, "settled": settled, "held": held,
                "needed": needed, "resets_at": resets_at, **({"unpriced": list(unpriced)} if unpriced else {}),
            },
        )  # fmt: skip


def _without_a_price(scope: str, unpriced: Sequence[str]) -> str:
    """Why a hard budget refuses what it cannot hold a bound of, and what to do about it."""
    rule = 'give the budget the `unpriced` rule "flat" or "meter", or make it soft'
    if not unpriced:
        return f"budget {scope!r} refuses a request whose cost cannot be bounded; bound its input and tools, or {rule}"
    models = ", ".join(unpriced[:MODELS_SHOWN_MAX])
    return (
        f"budget {scope!r} refuses what has no known price: {models}; state the price (`prices:` in the configuration"
        f" file, or `cost_per_1k` in the key's metadata), or {rule}"
    )


REGISTER_FIRST = (
    "register it first: under `providers:` in the configuration file, by POST /api/v1/providers or"
    " `apikeyrouter providers add`, or in code with register_provider"
)
MODELS_SHOWN_MAX = 8
"""How many known models an error message lists."""


class ModelNotFoundError(InvalidRequestError):
    """No registered key serves the model. Nothing was reserved. `hint`: what is stored, and cannot be routed with."""

    def __init__(self, model: str, provider_id: str | None, known: tuple[str, ...], *, hint: str = "") -> None:
        where = f" at provider {provider_id!r}" if provider_id else ""
        first = "none" if hint else "none: register a provider and a key first"
        shown = ", ".join(known[:MODELS_SHOWN_MAX]) or first
        told = f"no key serves model {model!r}{where}; known models: {shown}"
        super().__init__(f"{told}; {hint}" if hint else told, field="model")
        self.model = model


class UnsupportedEndpointError(InvalidRequestError):
    """Keys serve the model, but none at a provider that has what is asked for. Nothing was reserved."""

    def __init__(self, model: str, operation: str, dialect: str) -> None:
        super().__init__(
            f"no provider of model {model!r} has this endpoint ({operation!r} in the dialect of {dialect!r})",
            field="model",
        )


class NoEligibleKeysError(ApiKeyRouterError):
    """No key can serve the request now. `reasons` tells per key id why not; `first_back_at` when the first returns.

    `retry_after` in whole seconds, rounded up (None: no key returns by itself), `retry_after_us` in microseconds.
    `never_fits`: no limit could ever admit the request, so that trying again is of no use. `binding`: the loss that
    ends soonest. `details` has reasons and time, for logs.
    """

    def __init__(
        self,
        message: str = "no eligible key",
        *,
        reasons: Mapping[str, str] | None = None,
        first_back_at: datetime | None = None,
        retry_after: int | None = None,
        retry_after_us: int | None = None,
        never_fits: bool = False,
        binding: "Loss | None" = None,
    ) -> None:
        self.reasons = dict(reasons or {})
        self.first_back_at = first_back_at
        self.retry_after = retry_after
        self.retry_after_us = retry_after_us
        self.never_fits = never_fits
        self.binding = binding
        self.message = message
        super().__init__(message + _told(self.reasons, first_back_at))

    def later(self, us: int) -> "NoEligibleKeysError":
        """The same, so many microseconds after it was found."""
        left_us = None if self.retry_after_us is None else max(0, self.retry_after_us - us)
        return NoEligibleKeysError(
            self.message, reasons=self.reasons, first_back_at=self.first_back_at,
            retry_after=None if left_us is None else -(-left_us // 1_000_000), retry_after_us=left_us,
            never_fits=self.never_fits, binding=self.binding,
        )  # fmt: skip

    @property
    def details(self) -> dict[str, Any]:
        """What is known, as one mapping."""
        return {"reasons": self.reasons, "first_back_at": self.first_back_at}


class PolicyDeniedError(NoEligibleKeysError):
    """Policies leave no key that may serve the request. Nothing was reserved, and trying again is of no use.

    `policies`: the ids of those that refuse; `reasons` tells per key who refuses it, and why.
    """

    def __init__(self, policies: Iterable[str], *, reasons: Mapping[str, str]) -> None:
        self.policies = tuple(policies)
        names = ", ".join(repr(policy_id) for policy_id in self.policies)
        super().__init__(f"denied by policy {names}", reasons=reasons)

    @property
    def details(self) -> dict[str, Any]:
        """What is known, as one mapping."""
        return {"policies": list(self.policies), "reasons": self.reasons}


REASONS_SHOWN_MAX = 5
"""How many keys an error message lists; `NoEligibleKeysError.reasons` has all."""


def _told(reasons: Mapping[str, str], first_back_at: datetime | None) -> str:
    shown = [f"{key}: {why}" for key, why in list(reasons.items())[:REASONS_SHOWN_MAX]]
    if len(reasons) > REASONS_SHOWN_MAX:
        shown.append(f"and {len(reasons) - REASONS_SHOWN_MAX} more")
    back = f"; the first is back at {first_back_at.isoformat()}" if first_back_at else ""
    return (f" ({'; '.join(shown)})" if shown else "") + back


class KeyRegistrationError(ApiKeyRouterError):
    """A key was not registered. The message says why and what to do; never the material."""


class EncryptionError(ApiKeyRouterError):
    """Key material cannot be encrypted or decrypted with the master keys at hand."""


class StateStoreError(ApiKeyRouterError):
    """The entity store could not answer."""


class StateStoreUnavailableError(StateStoreError):
    """The entity store cannot be reached. Nothing is known about whether the last write arrived."""


ERRORS_SHOWN_MAX = 20
"""How many complaints a ConfigurationError's message lists; `errors` has all."""


class ConfigurationError(ApiKeyRouterError, ValueError):
    """Settings or the configuration file are wrong; nothing was applied.

    `errors` has one line per complaint, each starting with its path, e.g. `limits[2].rpm: must be a positive integer`.
    """

    def __init__(self, message: str = "", *, errors: Iterable[str] = ()) -> None:
        self.errors = tuple(errors) or ((message,) if message else ())
        shown = list(self.errors[:ERRORS_SHOWN_MAX])
        if len(self.errors) > ERRORS_SHOWN_MAX:
            shown.append(f"and {len(self.errors) - ERRORS_SHOWN_MAX} more")
        head = [message] if message and self.errors != (message,) else []
        super().__init__("\n  ".join([*head, *shown]))


class LedgerError(ApiKeyRouterError):
    """The accounting could not answer."""


class LedgerUnavailableError(LedgerError):
    """The store cannot be reached within the deadline. Nothing is held that will not end by itself."""


class LedgerAwayError(LedgerUnavailableError):
    """The store has not answered for a while, so that it was not asked."""


class LedgerRefusedError(LedgerUnavailableError):
    """The store answered that it takes no such call now (full, loading, a replica). It certainly did not run."""


class ClockSuspectError(LedgerUnavailableError):
    """The store's clock and this process's disagree, so that no period can be trusted: hard budgets refuse until they
    agree again. Nothing was held. `retry_after`: seconds, estimated.
    """

    def __init__(self, scope: str, *, retry_after: int) -> None:
        super().__init__(
            f"budget {scope!r} refuses while the store's clock is in doubt: it stepped by more than two seconds; "
            "it serves again once the clock runs evenly"
        )
        self.retry_after = retry_after


class StaleConfigError(LedgerError):
    """A reserve was made under another configuration than the active one; `version` is the active one."""

    def __init__(self, version: int) -> None:
        super().__init__(f"configuration version {version} is active; refresh and reserve again")
        self.version = version


class LedgerConfigError(LedgerError, ValueError):
    """Limits or budgets that contradict themselves or exceed what can be counted exactly."""


class LedgerProtocolError(LedgerError):
    """The cell was written by another version, or a value under our keys is not ours."""
