"""Limits and budgets as the integers that the scripts store. Pure; refuses what cannot be counted exactly."""

from math import ceil, floor, gcd

from apikeyrouter.domain.components.set_aside import without
from apikeyrouter.domain.components.slab_sizes import USE_SECONDS, with_slack
from apikeyrouter.domain.models.accounting import (
    AMOUNT_MAX,
    LIMIT_NAMES,
    LIMITS_PER_LANE_MAX,
    LaneConfig,
    Limit,
    LimitKind,
    Metric,
    Observation,
    ScopeConfig,
    SuspenseRule,
    UnpricedRule,
    check_id,
)
from apikeyrouter.domain.models.system_error import LedgerConfigError
from apikeyrouter.infrastructure.ledger.calendars import FUNDED, calendar_number

METRIC_CODES = {metric: code for code, metric in enumerate(Metric, start=1)}
KIND_CODES = {kind: code for code, kind in enumerate(LimitKind, start=1)}
UNPRICED_CODES = {rule: code for code, rule in enumerate(UnpricedRule, start=1)}
SUSPENSE_CODES = {rule: code for code, rule in enumerate(SuspenseRule, start=1)}
NAME_CODES = {name: code for code, name in enumerate(LIMIT_NAMES, start=1)}
SLIDING_SLOTS = 6
PERIOD_US_MIN = 1000
_LEVEL_MAX = 2**50
"""A bucket's level in scaled units stays below this, so that refunds modulo 2^52 are unambiguous."""
_BEGIN_ANEW = -2
"""What `record` takes for the use of a limit that has counted nothing."""
_TICKS_US = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)


def check_amount(value: int, *, what: str) -> int:
    """`value` if it is an integer that every counter can hold exactly."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= AMOUNT_MAX:
        raise LedgerConfigError(f"{what} must be an integer between 0 and 2^53 - 1, got {value!r}")
    return value


def lane_field(id: str) -> str:
    """The field that keeps a lane, and its configuration."""
    return f"l:{id}"


def scope_field(id: str) -> str:
    """The field that keeps a scope, and its configuration."""
    return f"s:{id}"


def id_of(field: str) -> str:
    """The id of the lane or scope that is kept in this field; an empty one has none."""
    return field[2:]


def bucket_numbers(amount: int, period_us: int, capacity: int, *, what: str) -> tuple[int, int, int]:
    """(scale, drain, tick_us): a level of `n * scale` is n amounts, and `drain` of it leaves every `tick_us`.

    Exact: the fraction amount / period is only ever reduced, and a coarser tick is used where 2^50 would not hold it.
    """
    for tick_us in _TICKS_US:
        if period_us % tick_us:
            break
        ticks = period_us // tick_us
        common = gcd(amount, ticks) or 1
        if capacity * (ticks // common) <= _LEVEL_MAX:
            return ticks // common, amount // common, tick_us
    raise LedgerConfigError(f"{what}: {amount} per {period_us} µs with a burst of {capacity} cannot be counted exactly")


def limit_numbers(limit: Limit) -> tuple[int, ...]:
    """name, metric, kind, capacity, scale, drain, tick, refund: a limit as a lane's record begins it."""
    what = f"limit {limit.name}"
    if limit.name not in NAME_CODES:
        raise LedgerConfigError(f"{what}: the name must be one of {', '.join(LIMIT_NAMES)}")
    check_amount(limit.amount, what=f"{what}: amount")
    if not 0 <= limit.headroom <= 0.5:
        raise LedgerConfigError(f"{what}: headroom must be between 0 and 0.5, got {limit.headroom!r}")
    if (limit.kind is LimitKind.CONCURRENCY) != (limit.metric is Metric.CONCURRENCY):
        raise LedgerConfigError(f"{what}: kind concurrency and metric concurrency belong together")
    if limit.burst is not None and limit.kind is not LimitKind.BUCKET:
        raise LedgerConfigError(f"{what}: only a bucket has a burst")
    capacity, scale, drain, tick_us = _limit_state_numbers(limit, what)
    head = (NAME_CODES[limit.name], METRIC_CODES[limit.metric], KIND_CODES[limit.kind])
    return (*head, capacity, scale, drain, tick_us, int(limit.refund))


def _limit_state_numbers(limit: Limit, what: str) -> tuple[int, int, int, int]:
    full = limit.amount if limit.burst is None else check_amount(limit.burst, what=f"{what}: burst")
    capacity = _with_headroom(full, limit.headroom)
    if limit.kind is LimitKind.CONCURRENCY:
        return limit.amount, 1, 0, 1
    if limit.kind is LimitKind.CALENDAR:
        return capacity, calendar_number(limit.calendar, limit.timezone), 0, 1
    check_amount(limit.period_us, what=f"{what}: period")
    if limit.period_us < PERIOD_US_MIN:
        raise LedgerConfigError(f"{what}: the period must be at least 1 ms")
    if limit.kind is LimitKind.BUCKET:
        if capacity and not limit.amount:
            raise LedgerConfigError(f"{what}: a bucket of amount 0 with a burst would never drain; leave the burst out")
        return capacity, *bucket_numbers(limit.amount, limit.period_us, capacity, what=what)
    slot = limit.period_us if limit.kind is LimitKind.FIXED else ceil(limit.period_us / SLIDING_SLOTS)
    return capacity, slot, 0, 1


def _with_headroom(full: int, headroom: float) -> int:
    return max(min(full, 1), floor(full - full * headroom))


def lane_entry(lane: LaneConfig) -> tuple[str, list[int]]:
    """The configuration field of a lane and its numbers."""
    check_id(lane.id, what="lane")
    if len(lane.limits) > LIMITS_PER_LANE_MAX:
        raise LedgerConfigError(f"lane {lane.id}: at most {LIMITS_PER_LANE_MAX} limits, got {len(lane.limits)}")
    names = [limit.name for limit in lane.limits]
    if len(set(names)) != len(names):
        raise LedgerConfigError(f"lane {lane.id}: a limit is declared twice: {', '.join(names)}")
    breaker = lane.breaker
    numbers = [int(lane.fair), 0, 0, 0, 0]
    try:
        if breaker is not None:
            numbers[1:] = [breaker.failures, breaker.window_us, breaker.open_us, breaker.open_max_us]
            for number in numbers[1:]:
                check_amount(number, what="breaker")
        for limit in lane.limits:
            numbers.extend(limit_numbers(_admitted(limit, lane.set_aside)))
    except LedgerConfigError as exc:
        raise LedgerConfigError(f"lane {lane.id}: {exc}") from None
    return lane_field(lane.id), numbers


def capacities(lane: LaneConfig) -> list[int]:
    """What the ledger admits of each of a lane's limits at once."""
    return [limit_numbers(_admitted(limit, lane.set_aside))[3] for limit in lane.limits]


def _admitted(limit: Limit, set_aside: float) -> Limit:
    """What the ledger admits of a limit. Errors: LedgerConfigError: slabs would leave nothing to come at once."""
    left = with_slack(without(limit, set_aside) if set_aside else limit)
    if left.slabs and left.burst is not None and left.burst < left.amount * USE_SECONDS * 1e6 / left.period_us:
        raise LedgerConfigError(
            f"limit {limit.name}: slabs need a burst of at least {2 * USE_SECONDS:g} seconds of its rate"
        )
    return left


def scope_entry(scope: ScopeConfig, *, funded: bool = False) -> tuple[str, list[int]]:
    """The configuration field of a scope and its numbers. `funded`: another cell is its home."""
    check_id(scope.id, what="scope")
    what = f"scope {scope.id}"
    return scope_field(scope.id), [
        check_amount(scope.limit_nanousd, what=f"{what}: limit"),
        int(scope.hard),
        UNPRICED_CODES[scope.unpriced],
        check_amount(scope.flat_nanousd, what=f"{what}: flat amount"),
        calendar_number(scope.period, scope.timezone) + (FUNDED if funded else 0),
        SUSPENSE_CODES[scope.suspense],
        check_amount(scope.suspense_after_us, what=f"{what}: suspense time"),
    ]


def observation_numbers(seen: Observation) -> list[int] | None:
    """Arguments of `record` for one observation; None when it says nothing that can be counted."""
    if seen.name not in NAME_CODES or not 0 <= seen.limit <= 2**40 or not 0 <= seen.reset_us <= 2**50:
        return None
    remaining = seen.remaining
    used = -1 if remaining is None or not 0 <= remaining <= seen.limit else seen.limit - remaining
    numbers = _observed_numbers(seen)
    if numbers is None:
        return None
    head = [NAME_CODES[seen.name], METRIC_CODES[seen.metric], KIND_CODES[seen.kind], seen.limit]
    return [*head, *numbers, used, seen.reset_us]


def restart_numbers(limit: str) -> list[int]:
    """Arguments of `record` for a limit that begins anew. Errors: LedgerConfigError: no limit has that name."""
    if limit not in NAME_CODES:
        raise LedgerConfigError(f"no limit is called {limit!r}; they are {', '.join(LIMIT_NAMES)}")
    return [NAME_CODES[limit], 1, 1, 0, 1, 0, 1, _BEGIN_ANEW, 0]


def _observed_numbers(seen: Observation) -> tuple[int, int, int] | None:
    if seen.kind is LimitKind.CONCURRENCY or not seen.limit:
        return 1, 0, 1
    if seen.kind in (LimitKind.CALENDAR, LimitKind.SLIDING) or not PERIOD_US_MIN <= seen.period_us <= 2**50:
        return None
    if seen.kind is LimitKind.FIXED:
        return seen.period_us, 0, 1
    try:
        return bucket_numbers(seen.limit, seen.period_us, seen.limit, what=seen.name)
    except LedgerConfigError:
        return None
