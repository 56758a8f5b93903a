"""What a failed attempt means: its cause, the scope it speaks for, and what to do (`providers.md` §1.3)."""

from dataclasses import dataclass
from enum import StrEnum

from apikeyrouter.domain.models.system_error import ErrorCategory


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
    `until_us`: an absolute date the provider named (Unix µs), 0 if none. `billed`: None when unknown.
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
    billed: bool | None = False
