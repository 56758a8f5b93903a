"""What follows from a failure: lanes that cool, a key that changes its state, options not tried again. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.failure import Failure, FailureAction, FailureScope

if TYPE_CHECKING:
    from apikeyrouter.domain.components.catalogue import Key

COOL_SECONDS_MAX = 86_400.0
EXHAUSTED_SECONDS_DEFAULT = 3600.0
"""How long an exhausted key is left alone when the provider named no date: it is probed again after that."""
_COOLED_STATES = {
    FailureAction.EXHAUST: KeyState.Exhausted,
    FailureAction.INVALIDATE: KeyState.Invalid,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Consequences:
    """What to do after a failure.

    `cool`: lanes to block for `seconds`. `key_state`: new state of `keys`, None to leave them. `skip`: options of the
    pool that this request does not try again.
    """

    cool: tuple[str, ...] = ()
    seconds: float = 0.0
    key_state: KeyState | None = None
    keys: tuple["Key", ...] = ()
    skip: tuple[Option, ...] = ()


def consequences(
    failure: Failure, option: Option, options: Sequence[Option], *, now_us: int, default_seconds: float
) -> Consequences:
    """Act at the scope the failure speaks for, and at no wider one. `now_us`: Unix microseconds."""
    skip = _skipped(failure.scope, option, options)
    action = failure.action
    if action is FailureAction.COOL:
        seconds = min(_stated(failure, now_us) or default_seconds, COOL_SECONDS_MAX)
        return Consequences(cool=_lanes(failure.scope, option), seconds=seconds, skip=skip)
    if action in _COOLED_STATES:
        seconds = min(_stated(failure, now_us) or EXHAUSTED_SECONDS_DEFAULT, 40 * COOL_SECONDS_MAX)
        state = _COOLED_STATES[action]
        cool = () if state is KeyState.Invalid else _lanes(failure.scope, option)
        return Consequences(
            cool=cool, seconds=seconds, key_state=state, keys=_keys(failure.scope, option, options), skip=skip
        )
    return Consequences(skip=skip)


def _stated(failure: Failure, now_us: int) -> float:
    """Seconds until the time the provider named; 0 when it named none."""
    if failure.until_us > now_us:
        return (failure.until_us - now_us) / 1e6
    return failure.retry_after_us / 1e6


def _lanes(scope: FailureScope, option: Option) -> tuple[str, ...]:
    own, *group, provider = option.lanes
    if scope is FailureScope.KEY:
        return (own,)
    if scope is FailureScope.PROVIDER:
        return (provider,)
    return tuple(group) or (own,)


def _keys(scope: FailureScope, failed: Option, options: Sequence[Option]) -> tuple["Key", ...]:
    """The keys that a failure puts out: all of a group that cannot pay, or was closed, share its fate."""
    if scope is not FailureScope.QUOTA_GROUP:
        return (failed.key,)
    group = failed.key.quota_group
    return tuple({other.key.id: other.key for other in options if other.key.quota_group == group}.values())


def _skipped(scope: FailureScope, failed: Option, options: Sequence[Option]) -> tuple[Option, ...]:
    """What the failure speaks for. A provider in trouble is left alone while another one serves the model; where there
    is none, another of its keys may be luckier, and its breaker guards against a storm."""
    if scope is FailureScope.PROVIDER and any(other.provider is not failed.provider for other in options):
        return tuple(other for other in options if other.provider is failed.provider)
    if scope is FailureScope.QUOTA_GROUP:
        group, model = failed.key.quota_group, failed.model
        return tuple(other for other in options if other.key.quota_group == group and other.model == model)
    return tuple(other for other in options if other.key is failed.key)
