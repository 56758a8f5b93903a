"""The taxonomy of failures as data: every kind there is, who it speaks for and what follows (`providers.md` §1.3).

How a provider says each of them is told by the rows of its signatures, which live with the adapters; nothing here
names a provider. The letters are those of the table: W cool, Q exhausted, D dead, P back off, N reject, M skip.
"""

from types import MappingProxyType

from apikeyrouter.domain.models.failure import FailureAction, FailureScope, Meaning
from apikeyrouter.domain.models.system_error import ErrorCategory

_C, _S, _A = ErrorCategory, FailureScope, FailureAction

COOL = Meaning(
    name="rate_limited", category=_C.RateLimitError, scope=_S.QUOTA_GROUP, action=_A.COOL, elsewhere=True,
    says="a rate limit of the organisation is reached for this model",
)  # fmt: skip
COOL_KEY = Meaning(
    name="key_rate_limited", category=_C.RateLimitError, scope=_S.KEY, action=_A.COOL, elsewhere=True,
    says="a rate limit of this key alone is reached",
)  # fmt: skip
DAY_OVER = Meaning(
    name="period_used_up", category=_C.QuotaExceededError, scope=_S.QUOTA_GROUP, action=_A.COOL, elsewhere=True,
    says="the organisation's quota of a day or longer is used up for this model",
)  # fmt: skip
EXHAUSTED = Meaning(
    name="exhausted", category=_C.QuotaExceededError, scope=_S.QUOTA_GROUP, action=_A.EXHAUST, elsewhere=True,
    says="the organisation cannot pay, or has spent what it may",
)  # fmt: skip
EXHAUSTED_KEY = Meaning(
    name="key_exhausted", category=_C.QuotaExceededError, scope=_S.KEY, action=_A.EXHAUST, elsewhere=True,
    says="this key, or the project it belongs to, has spent what it may",
)  # fmt: skip
DEAD = Meaning(
    name="key_refused", category=_C.AuthenticationError, scope=_S.KEY, action=_A.INVALIDATE, elsewhere=True,
    says="the provider does not accept this key",
)  # fmt: skip
DEAD_GROUP = Meaning(
    name="organisation_refused", category=_C.AuthenticationError, scope=_S.QUOTA_GROUP, action=_A.INVALIDATE,
    elsewhere=True, says="the provider has closed the organisation",
)  # fmt: skip
DEAD_EGRESS = Meaning(
    name="origin_refused", category=_C.AuthenticationError, scope=_S.PROVIDER, action=_A.BACK_OFF, elsewhere=True,
    says="the provider does not serve where we call from; the keys are not at fault",
)  # fmt: skip
ALIKE = Meaning(
    name="keys_refused_alike", category=_C.AuthenticationError, scope=_S.PROVIDER, action=_A.BACK_OFF, elsewhere=True,
    says="several keys in a row are refused alike: the provider is at fault, and the keys are spared",
)  # fmt: skip
DOWN = Meaning(
    name="provider_failed", category=_C.ProviderError, scope=_S.PROVIDER, action=_A.BACK_OFF, elsewhere=True,
    says="the provider had an error of its own",
)  # fmt: skip
OVERLOADED = Meaning(
    name="overloaded", category=_C.ProviderError, scope=_S.PROVIDER, action=_A.BACK_OFF, elsewhere=True,
    pause_seconds=1.0, says="the provider has no capacity",
)  # fmt: skip
LATE = Meaning(
    name="provider_late", category=_C.TimeoutError, scope=_S.PROVIDER, action=_A.BACK_OFF, elsewhere=True, billed=None,
    says="the provider did not answer in time",
)  # fmt: skip
LATE_CONNECT = Meaning(
    name="connect_timeout", category=_C.TimeoutError, scope=_S.PROVIDER, action=_A.BACK_OFF, elsewhere=True,
    says="no connection was made in time; nothing was sent",
)  # fmt: skip
UNREACHABLE = Meaning(
    name="unreachable", category=_C.NetworkError, scope=_S.PROVIDER, action=_A.BACK_OFF, elsewhere=True,
    says="no connection was made; nothing was sent",
)  # fmt: skip
NO_PLACE = Meaning(
    name="no_connection_free", category=_C.RateLimitError, scope=_S.REQUEST, action=_A.REJECT, elsewhere=True,
    says="all connections that we allow ourselves to the provider (`connections_max`) were in use; nothing was sent",
)  # fmt: skip
CUT_OFF = Meaning(
    name="cut_off", category=_C.NetworkError, scope=_S.PROVIDER, action=_A.BACK_OFF, elsewhere=True, billed=None,
    says="the connection broke after the request was sent",
)  # fmt: skip
GARBLED = Meaning(
    name="garbled", category=_C.ProviderError, scope=_S.PROVIDER, action=_A.BACK_OFF, elsewhere=True, billed=None,
    says="the answer is truncated, or is none of the provider's dialect",
)  # fmt: skip
UNCLEAR = Meaning(
    name="unclear", category=_C.UnknownError, scope=_S.KEY, action=_A.BACK_OFF, elsewhere=True, billed=None,
    says="an adapter failed in a way that nobody knows",
)  # fmt: skip
REJECT = Meaning(
    name="callers_fault", category=_C.ValidationError, scope=_S.REQUEST, action=_A.REJECT, elsewhere=False,
    says="the request itself is at fault: no key could serve it",
)  # fmt: skip
TOO_LONG = Meaning(
    name="too_long", category=_C.ValidationError, scope=_S.REQUEST, action=_A.REJECT, elsewhere=True,
    says="the request is longer than the model's context; an equivalent with a longer one may take it",
)  # fmt: skip
TOO_LARGE_HERE = Meaning(
    name="too_large_here", category=_C.ValidationError, scope=_S.QUOTA_GROUP, action=_A.REJECT, elsewhere=True,
    says="the request is larger than this organisation's limit ever admits; another's may be larger",
)  # fmt: skip
SKIP = Meaning(
    name="model_not_served", category=_C.ValidationError, scope=_S.KEY_MODEL, action=_A.SKIP_MODEL, elsewhere=True,
    says="this key does not have the model",
)  # fmt: skip
SKIP_AUTH = Meaning(
    name="model_not_permitted", category=_C.AuthenticationError, scope=_S.KEY_MODEL, action=_A.SKIP_MODEL,
    elsewhere=True, says="this key may not use the model",
)  # fmt: skip
DEADLINE_PASSED = Meaning(
    name="deadline_passed", category=_C.TimeoutError, scope=_S.REQUEST, action=_A.REJECT, elsewhere=False, billed=None,
    says="the caller's own deadline ended the call",
)  # fmt: skip
GIVEN_UP = Meaning(
    name="given_up", category=_C.UnknownError, scope=_S.REQUEST, action=_A.REJECT, elsewhere=False, billed=None,
    says="we ended the call ourselves: its lease was lost, or the router was closed",
)  # fmt: skip

MEANINGS = MappingProxyType(
    {
        meaning.name: meaning
        for meaning in (
            COOL, COOL_KEY, DAY_OVER, EXHAUSTED, EXHAUSTED_KEY, DEAD, DEAD_GROUP, DEAD_EGRESS, ALIKE, DOWN, OVERLOADED,
            LATE, LATE_CONNECT, UNREACHABLE, NO_PLACE, CUT_OFF, GARBLED, UNCLEAR, REJECT, TOO_LONG, TOO_LARGE_HERE,
            SKIP, SKIP_AUTH, DEADLINE_PASSED, GIVEN_UP,
        )
    }
)  # fmt: skip
"""Every kind of failure by name."""
