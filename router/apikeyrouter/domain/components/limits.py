"""Declared limits (`rpm: 500`) as the ledger counts them. Pure.

A row says amounts; a profile says how whoever meters them refills; a row's own `kind` overrides the profile.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from math import nextafter
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, model_validator

from apikeyrouter.domain.models.accounting import AMOUNT_MAX, Limit, LimitKind, Metric, Period
from apikeyrouter.domain.models.cost_estimate import nanousd
from apikeyrouter.domain.models.edge import EdgeModel
from apikeyrouter.domain.models.system_error import InvalidRequestError

__all__ = ["SAFE_PROFILE", "LimitProfile", "LimitRow", "compile_limits", "known_timezone", "positive_integer"]

MINUTE_US = 60_000_000
DAY_US = 86_400_000_000
JITTER_US = 500_000
"""How much later than another a request may arrive that was sent at the same time."""
HEADROOM_DEFAULT = 0.02
HEADROOM_MAX = 0.5
ROUNDING = 1e-9
DOLLARS_MAX = Decimal(9_007_199)
"""2^53 nano-dollars in whole dollars: the largest amount that is counted exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitProfile:
    """How somebody's limits refill when nothing else is declared.

    `minute`, `day`: the kinds of per-minute and per-day limits, `timezone` of a calendar day. `safe`: the kind is not
    known, and only the reading burst + rate × window ≤ limit is sure. `slice_us`: requests a minute are checked in
    slices of that length (0: they are not). `tokens`: what `tpm` and `tpd` count. `refund`: tokens held but not used
    come back.
    """

    minute: LimitKind = LimitKind.BUCKET
    day: LimitKind = LimitKind.BUCKET
    timezone: str = "UTC"
    safe: bool = False
    slice_us: int = 0
    tokens: Metric = Metric.TOKENS
    refund: bool = True


SAFE_PROFILE = LimitProfile(safe=True, refund=False)
"""For whom nothing is known of: half of the limit may come at once, the other half refills over the window."""


def positive_integer(value: object) -> int:
    """`value` if it is an integer from 1 to 2^53 - 1. Errors: InvalidRequestError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequestError("must be a positive integer")
    if value > AMOUNT_MAX:
        raise InvalidRequestError(f"must be at most {AMOUNT_MAX}: larger amounts cannot be counted exactly")
    return value


def dollars_amount(value: object) -> Decimal:
    """`value` as an amount of dollars, 0 < amount ≤ 9,007,199. Errors: InvalidRequestError."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise InvalidRequestError("must be a number of dollars")
    amount = Decimal(str(value))
    if not amount.is_finite() or amount <= 0:
        raise InvalidRequestError("must be a positive, finite number of dollars")
    if amount > DOLLARS_MAX:
        raise InvalidRequestError(f"must be at most {DOLLARS_MAX} dollars: larger amounts cannot be counted exactly")
    return amount


def known_timezone(value: object) -> str:
    """`value` if it names a time zone, e.g. America/Los_Angeles. Errors: InvalidRequestError."""
    try:
        return ZoneInfo(value).key if isinstance(value, str) and value else _no_timezone()
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return _no_timezone()


def _no_timezone() -> str:
    raise InvalidRequestError("is not a known time zone; write it like America/Los_Angeles or UTC")


def _fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= HEADROOM_MAX:
        raise InvalidRequestError(f"must be a number between 0 and {HEADROOM_MAX}")
    return float(value)


Count = Annotated[int, BeforeValidator(positive_integer)]
Dollars = Annotated[Decimal, BeforeValidator(dollars_amount)]
Timezone = Annotated[str, BeforeValidator(known_timezone)]
Fraction = Annotated[float, BeforeValidator(_fraction)]


@dataclass(frozen=True, slots=True)
class _Dimension:
    name: str
    metric: Metric
    period_us: int


_RATES = {
    "rpm": _Dimension("rpm", Metric.REQUESTS, MINUTE_US),
    "tpm": _Dimension("tpm", Metric.TOKENS, MINUTE_US),
    "input_tpm": _Dimension("itpm", Metric.INPUT_TOKENS, MINUTE_US),
    "output_tpm": _Dimension("otpm", Metric.OUTPUT_TOKENS, MINUTE_US),
    "rpd": _Dimension("rpd", Metric.REQUESTS, DAY_US),
    "tpd": _Dimension("tpd", Metric.TOKENS, DAY_US),
}
"""What a row may say of rates; `concurrency` and `spend_usd` are no rates."""


class LimitRow(EdgeModel):
    """Amounts, as a person declares them. Requests and tokens per minute or UTC day, requests in flight, dollars.

    `kind` (bucket, fixed, sliding, calendar) applies to every rate of the row; `burst` is how many of the row's one
    rate may come at once; `headroom` (0 … 0.5; in whole units, rounded down) is taken off what may come at once;
    `timezone` is where a calendar day or a spend period begins; `spend_period` goes with `spend_usd` (default monthly);
    `slabs`: whether under load workers may hold a second of requests at once (default off).
    """

    rpm: Count | None = None
    tpm: Count | None = None
    input_tpm: Count | None = None
    output_tpm: Count | None = None
    rpd: Count | None = None
    tpd: Count | None = None
    concurrency: Count | None = None
    spend_usd: Dollars | None = None
    kind: Literal["bucket", "fixed", "sliding", "calendar"] | None = None
    burst: Count | None = None
    headroom: Fraction | None = None
    timezone: Timezone | None = None
    spend_period: Literal["hourly", "daily", "weekly", "monthly", "total"] | None = None
    slabs: Literal["off", "auto"] | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "LimitRow":
        if not self.dimensions:
            raise InvalidRequestError(f"limits nothing; give one of {', '.join((*_RATES, 'concurrency', 'spend_usd'))}")
        self._check_burst()
        self._check_calendar()
        if self.spend_period is not None and self.spend_usd is None:
            raise InvalidRequestError("goes with spend_usd", field="spend_period")
        if (self.kind or self.headroom) and not self.rates:
            raise InvalidRequestError("goes with a rate", field="kind" if self.kind else "headroom")
        return self

    @property
    def rates(self) -> list[str]:
        """The rates the row limits, in the order of the documentation."""
        return [name for name in _RATES if getattr(self, name) is not None]

    @property
    def dimensions(self) -> list[str]:
        """Everything the row limits."""
        others = ("concurrency", "spend_usd")
        return [*self.rates, *(name for name in others if getattr(self, name) is not None)]

    def _check_burst(self) -> None:
        if self.burst is None:
            return
        if self.kind not in (None, "bucket"):
            raise InvalidRequestError(f"belongs to a bucket, not to kind {self.kind}", field="burst")
        if len(self.rates) != 1:
            raise InvalidRequestError("belongs to one rate; give each rate a row of its own", field="burst")

    def _check_calendar(self) -> None:
        by_minute = [name for name in self.rates if _RATES[name].period_us == MINUTE_US]
        if self.kind == "calendar" and by_minute:
            raise InvalidRequestError(
                f"calendar is for days; put {by_minute[0]} into a row of its own or make it fixed", field="kind"
            )
        if self.timezone is not None and self.kind not in (None, "calendar") and self.spend_usd is None:
            raise InvalidRequestError(f"belongs to a calendar, not to kind {self.kind}", field="timezone")


def compile_limits(row: LimitRow, profile: LimitProfile) -> tuple[Limit, ...]:
    """The row's limits for the ledger, in the row's order."""
    limits = [_rate(name, row, profile) for name in row.rates]
    if row.concurrency is not None:
        limits.append(
            Limit(name="concurrency", metric=Metric.CONCURRENCY, kind=LimitKind.CONCURRENCY, amount=row.concurrency)
        )
    if row.spend_usd is not None:
        limits.append(_spend(row, row.spend_usd))
    return tuple(replace(limit, slabs=True) for limit in limits) if row.slabs == "auto" else tuple(limits)


def limits_from(declared: Mapping[str, Any], profile: LimitProfile) -> tuple[Limit, ...]:
    """The limits of one plain mapping, as a key's metadata has them. Errors: InvalidRequestError naming the field."""
    return compile_limits(LimitRow.parse(declared), profile)


def _rate(name: str, row: LimitRow, profile: LimitProfile) -> Limit:
    dimension, amount = _RATES[name], int(getattr(row, name))
    if name == "rpm" and profile.slice_us and row.kind is None and row.burst is None:
        return _sliced(amount, row, profile)
    daily = dimension.period_us == DAY_US
    kind = LimitKind(row.kind) if row.kind is not None else (profile.day if daily else profile.minute)
    amount, burst, period_us = amount, row.burst, dimension.period_us
    if kind is LimitKind.BUCKET and burst is None:
        amount, burst, period_us = _bucket(amount, period_us, row, profile)
    by_calendar = kind is LimitKind.CALENDAR
    headroom = row.headroom if row.headroom is not None else (0.0 if by_calendar else HEADROOM_DEFAULT)
    return Limit(
        name=dimension.name,
        metric=profile.tokens if dimension.metric is Metric.TOKENS else dimension.metric,
        kind=kind,
        amount=amount,
        period_us=period_us,
        burst=burst,
        headroom=_whole(headroom, amount if burst is None else burst),
        calendar=Period.DAILY,
        timezone=(row.timezone or profile.timezone) if by_calendar else "UTC",
        refund=profile.refund,
    )


def _whole(headroom: float, full: int) -> float:
    """The headroom in whole units, rounded down: a small limit is never a whole request smaller than it says."""
    units = int(full * headroom + ROUNDING)
    exact = units / full
    return exact if full - full * exact >= full - units else nextafter(exact, 0.0)


def _sliced(per_minute: int, row: LimitRow, profile: LimitProfile) -> Limit:
    """Requests a minute where they are checked in slices, wherever these begin: so many in any stretch of that length.

    The stretch is JITTER_US longer, as what was sent earlier may arrive later. Where a slice has room for less than
    one request, the stretch is as long as one takes.
    """
    per_slice = per_minute * profile.slice_us // MINUTE_US
    period_us = profile.slice_us if per_slice else -(-MINUTE_US // per_minute)
    amount = max(1, per_slice)
    return Limit(
        name="rpm", metric=Metric.REQUESTS, kind=LimitKind.SLIDING, amount=amount, period_us=period_us + JITTER_US,
        headroom=_whole(row.headroom or 0.0, amount), refund=profile.refund,
    )  # fmt: skip


def _bucket(amount: int, period_us: int, row: LimitRow, profile: LimitProfile) -> tuple[int, int | None, int]:
    """(amount, burst, period) of a bucket whose burst was not declared."""
    if profile.safe and row.kind is None:
        return _safe_bucket(amount, period_us)
    return amount, None, period_us


def _safe_bucket(limit: int, period_us: int) -> tuple[int, int, int]:
    """burst + rate × window ≤ limit: half and half, the odd one to the burst; a limit of one waits two windows."""
    if limit == 1:
        return 1, 1, 2 * period_us
    return limit // 2, limit - limit // 2, period_us


def _spend(row: LimitRow, amount: Decimal) -> Limit:
    return Limit(
        name="spend",
        metric=Metric.SPEND,
        kind=LimitKind.CALENDAR,
        amount=nanousd(amount),
        calendar=Period(row.spend_period or "monthly"),
        timezone=row.timezone or "UTC",
    )
