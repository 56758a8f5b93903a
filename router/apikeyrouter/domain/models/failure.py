"""What a failed attempt means: its cause, the scope it speaks for, and what to do (`providers.md` §1.3)."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from apikeyrouter.domain.models.system_error import ErrorCategory

__all__ = [
    "CircuitPhase",
    "CircuitState",
    "Failure",
    "FailureAction",
    "FailureInterpretation",
    "FailureScope",
    "Meaning",
]


class FailureScope(StrEnum):
    """Who the failure speaks for. Nothing wider may be penalised."""

    REQUEST = "request"
    KEY = "key"
    KEY_MODEL = "key_model"
    QUOTA_GROUP = "quota_group"
    PROVIDER = "provider"


class FailureAction(StrEnum):
    """What to do. The letters of `providers.md` §1.3: W Q D P N M."""

    COOL = "cool"
    EXHAUST = "exhaust"
    INVALIDATE = "invalidate"
    BACK_OFF = "back_off"
    REJECT = "reject"
    SKIP_MODEL = "skip_model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One interpreted failure.

    `retry_elsewhere`: another candidate may serve the request. `retry_after_us`: the provider's own hint, 0 if none.
    `until_us`: an absolute date the provider named (Unix µs), 0 if none. `pause_us`: how long to leave its scope alone
    where the provider named no time, 0: the action's own default. `billed`: None when unknown. `meaning` is its row of
    the taxonomy, `signature` what it was recognised by. `requested`: the tokens that the provider counted, where it
    found them too many, 0 if it did not say.
    `message` is scrubbed of key fragments and organisation ids; `status` 0 means no answer came.
    """

    category: ErrorCategory
    scope: FailureScope
    action: FailureAction
    retry_elsewhere: bool
    message: str
    status: int = 0
    code: str = ""
    type: str = ""
    retry_after_us: int = 0
    until_us: int = 0
    pause_us: int = 0
    billed: bool | None = False
    meaning: str = ""
    signature: str = ""
    requested: int = 0

    @property
    def retryable(self) -> bool:
        """Whether the same request may be served when it is sent again."""
        return self.retry_elsewhere and self.action is not FailureAction.REJECT

    @property
    def retry_after(self) -> int | None:
        """The provider's hint in whole seconds, rounded up; None if it gave none."""
        return -(-self.retry_after_us // 1_000_000) or None

    @property
    def until(self) -> datetime | None:
        """The date the provider named (aware UTC); None if it named none."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.until_us) if self.until_us else None

    @property
    def evidence(self) -> FailureScope | None:
        """Whose circuit breaker counts it; None: it says nothing about anybody's health."""
        return self.scope if self.action is FailureAction.BACK_OFF else None


FailureInterpretation = Failure
"""The documents' name for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """One row of the taxonomy: what kind of failure, who it speaks for, what follows.

    `elsewhere`: whether another candidate may serve. `billed`: whether the provider charges for it, None when unknown.
    `pause_seconds`: how long its scope is left alone where the provider names no time, 0: the action's own default.
    """

    name: str
    category: ErrorCategory
    scope: FailureScope
    action: FailureAction
    elsewhere: bool
    says: str
    billed: bool | None = False
    pause_seconds: float = 0.0

    @property
    def evidence(self) -> FailureScope | None:
        """Whose circuit breaker counts it; None: it says nothing about anybody's health."""
        return self.scope if self.action is FailureAction.BACK_OFF else None

    def failure(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        type: str = "",
        retry_after_us: int = 0,
        until_us: int = 0,
        pause_seconds: float = 0.0,
        signature: str = "",
        requested: int = 0,
    ) -> Failure:
        """A failure that means this."""
        return Failure(
            category=self.category, scope=self.scope, action=self.action, retry_elsewhere=self.elsewhere,
            message=message, status=status, code=code, type=type, retry_after_us=retry_after_us, until_us=until_us,
            pause_us=int((pause_seconds or self.pause_seconds) * 1e6), billed=self.billed, meaning=self.name,
            signature=signature, requested=requested,
        )  # fmt: skip


class CircuitPhase(StrEnum):
    """A circuit breaker's phases. Half-open: one probe is, or may be, under way in the whole fleet."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitState:
    """The circuit a key's requests pass: its own breaker and its provider's, whichever keeps it out longer.

    `lane` is the one that speaks (`k:<key>` or `p:<provider>`). `until`: when an open circuit lets a probe through, or
    a cooled lane requests (aware UTC, None: now). `cooling`: it is left alone until then whatever its breaker says.
    `successes` and `failures` are recent ones, halved every minute.
    """

    key_id: str
    state: CircuitPhase
    lane: str
    until: datetime | None = None
    cooling: bool = False
    successes: int = 0
    failures: int = 0

    @property
    def admits(self) -> bool:
        """Whether requests pass freely."""
        return self.state is CircuitPhase.CLOSED and not self.cooling
