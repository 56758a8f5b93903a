"""What follows from a failure: lanes that cool, keys that change their state, options that are left alone. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from apikeyrouter.domain.components.failure_taxonomy import TOO_LONG
from apikeyrouter.domain.components.pool import Option
from apikeyrouter.domain.models.accounting import LaneState, Metric
from apikeyrouter.domain.models.api_key import KeyState
from apikeyrouter.domain.models.failure import Failure, FailureAction, FailureScope

if TYPE_CHECKING:
    from apikeyrouter.domain.components.catalogue import Key

COOL_SECONDS_MAX = 26 * 3600.0
"""Longest that a lane cools: a day with the hour that comes twice, and an hour more."""
EXHAUSTED_SECONDS_DEFAULT = 3600.0
"""How long an exhausted key is left alone when the provider named no date: it is probed again after that."""
EXHAUSTED_SECONDS_MAX = 40 * 86_400.0
PAUSE_SECONDS_MAX = 60.0
"""Longest that a provider without capacity comes last, whatever it says itself: its breaker does the rest."""
SKIP_SECONDS = 600.0
"""How long a key that does not have a model comes last for it."""
PUTS_OUT = (FailureAction.EXHAUST, FailureAction.INVALIDATE)
"""What changes the state of keys."""
_TOKENS = (Metric.TOKENS, Metric.INPUT_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consequences:
    """What to do after a failure.

    `cool`: lanes that nobody may use for `seconds`, in the whole fleet. `avoid`: lanes and places that come last in
    this process for `seconds`. `key_state`: the new state of `keys` (for `seconds`, where it has an end), None to leave
    them. `skip`: options that this request does not try again.
    """

    cool: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    seconds: float = 0.0
    key_state: KeyState | None = None
    keys: tuple["Key", ...] = ()
    skip: tuple[Option, ...] = ()


def consequences(
    failure: Failure,
    option: Option,
    options: Sequence[Option],
    *,
    keys: Iterable["Key"],
    lanes: Mapping[str, LaneState],
    now_us: int,
    default_seconds: float,
) -> Consequences:
    """Act at the scope the failure speaks for, and at no wider one.

    `options`: the request's pool; `keys`: all there are; `lanes`: the snapshot; `now_us`: Unix microseconds.
    """
    skip = _skipped(failure, option, options, lanes)
    action = failure.action
    stated = stated_seconds(failure, now_us)
    if action is FailureAction.COOL:
        seconds = min(stated or default_seconds, COOL_SECONDS_MAX)
        return Consequences(cool=(_lane(failure.scope, option),), seconds=seconds, skip=skip)
    if action in PUTS_OUT:
        return replace(put_out(failure, option.key, keys, now_us=now_us), skip=skip)
    if action is FailureAction.SKIP_MODEL:
        return Consequences(avoid=(option.id,), seconds=SKIP_SECONDS, skip=skip)
    if action is FailureAction.BACK_OFF and stated:
        seconds = min(stated, PAUSE_SECONDS_MAX)
        return Consequences(avoid=(_lane(failure.scope, option),), seconds=seconds, skip=skip)
    return Consequences(skip=skip)


def put_out(failure: Failure, failed: "Key", keys: Iterable["Key"], *, now_us: int) -> Consequences:
    """The keys that a failure puts out, the state they go to and for how long. `keys`: all there are."""
    alike = _keys(failure.scope, failed, keys)
    if failure.action is FailureAction.INVALIDATE:
        return Consequences(key_state=KeyState.Invalid, keys=alike)
    seconds = min(stated_seconds(failure, now_us) or EXHAUSTED_SECONDS_DEFAULT, EXHAUSTED_SECONDS_MAX)
    return Consequences(key_state=KeyState.Exhausted, keys=alike, seconds=seconds)


def stated_seconds(failure: Failure, now_us: int) -> float:
    """Seconds until the time the provider named, or its kind of failure has; 0 when there is none."""
    if failure.until_us > now_us:
        return (failure.until_us - now_us) / 1e6
    return (failure.retry_after_us or failure.pause_us) / 1e6


def _lane(scope: FailureScope, option: Option) -> str:
    """The narrowest lane that the failure speaks for."""
    own, *group, provider = option.lanes
    if scope is FailureScope.PROVIDER:
        return provider
    return group[0] if scope is FailureScope.QUOTA_GROUP and group else own


def _keys(scope: FailureScope, failed: "Key", keys: Iterable["Key"]) -> tuple["Key", ...]:
    """The keys that a failure puts out: all of a group that cannot pay, or was closed, share its fate."""
    if scope is not FailureScope.QUOTA_GROUP:
        return (failed,)
    group, provider = failed.quota_group, failed.provider_id
    alike = (key for key in keys if key.quota_group == group and key.provider_id == provider)
    return tuple(key for key in alike if key.state.eligible or key is failed)


def _skipped(
    failure: Failure, failed: Option, options: Sequence[Option], lanes: Mapping[str, LaneState]
) -> tuple[Option, ...]:
    """What the failure speaks for. A provider in trouble is left alone while another one serves the model; where there
    is none, another of its keys may be luckier, and its breaker guards against a storm."""
    scope = failure.scope
    if failure.meaning == TOO_LONG.name:
        taken = failed.able.context_tokens  # where that is not known, nobody is known to take more
        return tuple(other for other in options if taken is None or (other.able.context_tokens or 0) <= taken)
    if scope is FailureScope.PROVIDER and any(other.provider is not failed.provider for other in options):
        return tuple(other for other in options if other.provider is failed.provider)
    if scope is FailureScope.QUOTA_GROUP:
        group, model = failed.key.quota_group, failed.model
        return tuple(
            other
            for other in options
            if (other.key.quota_group == group and other.model == model)
            or (failure.requested and _largest(other, lanes) < failure.requested)
        )
    if scope is FailureScope.KEY_MODEL:
        return tuple(other for other in options if other.key is failed.key and other.model == failed.model)
    return tuple(other for other in options if other.key is failed.key)


def _largest(option: Option, lanes: Mapping[str, LaneState]) -> float:
    """The largest request that an option's limits on tokens are known to admit."""
    known = (lanes[lane] for lane in option.lanes if lane in lanes)
    sizes = [limit.capacity for lane in known for limit in lane.limits if limit.metric in _TOKENS]
    return min(sizes, default=float("inf"))
