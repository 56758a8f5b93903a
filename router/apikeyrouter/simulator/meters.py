"""From configured rows of limits to limiters with names: what is counted, for whom, of which models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from apikeyrouter.simulator.clock import NS_PER_SECOND
from apikeyrouter.simulator.config import LimitRow, spend_nanousd
from apikeyrouter.simulator.limits import (
    Bucket,
    CalendarWindow,
    FixedWindow,
    InFlight,
    Limit,
    RollingWindow,
)

__all__ = ["ConcurrencyMeter", "Meter", "Metric", "Owner", "build_meters"]

Metric = Literal["requests", "tokens", "input_tokens", "output_tokens", "spend"]
_DAY_NS = 86_400 * NS_PER_SECOND


class Owner(NamedTuple):
    """Whose limit it is: an organisation's or a key's."""

    scope: Literal["organisation", "key"]
    id: str


@dataclass(slots=True)
class Meter:
    """A limiter over one metric of one pool of models. ``name`` is the field of the row (rpm, tpd, …)."""

    owner: Owner
    name: str
    metric: Metric
    pool: frozenset[str] | None
    kind: str
    amount: int
    period_ns: int
    limit: Limit
    born_ns: int
    used: int = 0
    refused: int = 0

    def covers(self, model: str) -> bool:
        """Whether requests for ``model`` count here."""
        return self.pool is None or model in self.pool

    def take(self, amount: int, now_ns: int) -> None:
        """Count ``amount``, limit or not."""
        self.used += amount
        self.limit.take(amount, now_ns)

    def as_dict(self, now_ns: int) -> dict[str, Any]:
        """State as plain JSON types; ``allowed`` is the most it could have admitted since the start."""
        return {
            "scope": self.owner.scope,
            "owner": self.owner.id,
            "name": self.name,
            "models": None if self.pool is None else sorted(self.pool),
            "kind": self.kind,
            "limit": self.amount,
            "period_seconds": self.period_ns / NS_PER_SECOND,
            "used": self.used,
            "allowed": self.limit.allowed(self.born_ns, now_ns),
            "remaining": self.limit.remaining(now_ns),
            "refused": self.refused,
        }


@dataclass(slots=True)
class ConcurrencyMeter:
    """A limit of requests in flight over one pool of models."""

    owner: Owner
    pool: frozenset[str] | None
    amount: int
    in_flight: InFlight
    refused: int = 0
    name: str = "concurrency"

    def covers(self, model: str) -> bool:
        """Whether requests for ``model`` count here."""
        return self.pool is None or model in self.pool

    def as_dict(self) -> dict[str, Any]:
        """State as plain JSON types."""
        return {
            "scope": self.owner.scope,
            "owner": self.owner.id,
            "name": self.name,
            "models": None if self.pool is None else sorted(self.pool),
            "limit": self.amount,
            "in_flight": self.in_flight.now,
            "peak": self.in_flight.peak,
            "refused": self.refused,
        }


_MINUTE_METRICS: tuple[tuple[str, Metric], ...] = (
    ("rpm", "requests"),
    ("tpm", "tokens"),
    ("input_tpm", "input_tokens"),
    ("output_tpm", "output_tokens"),
)
_SLICE_SECONDS = {"azure": 10.0}
"""How long the slices are in which requests a minute are checked."""
_MINUTE_KINDS = {"gemini": "fixed"}
_DAY_KINDS = {"gemini": "calendar", "openrouter": "calendar"}
_ZONES = {"gemini": "America/Los_Angeles"}
_DAY_METRICS: tuple[tuple[str, Metric], ...] = (("rpd", "requests"), ("tpd", "tokens"))


def build_meters(
    rows: Iterable[LimitRow], *, owner: Owner, now_ns: int, dialect: str = ""
) -> tuple[list[Meter], list[ConcurrencyMeter]]:
    """The limiters of ``rows``, untouched at ``now_ns``: those over time, and those of requests in flight."""
    meters: list[Meter] = []
    concurrency: list[ConcurrencyMeter] = []
    for row in rows:
        pool = None if row.models is None else frozenset(row.models)
        minute_ns = int(row.period_seconds * NS_PER_SECOND)
        for metrics, period_ns in ((_MINUTE_METRICS, minute_ns), (_DAY_METRICS, _DAY_NS)):
            for name, metric in metrics:
                amount = getattr(row, name)
                if amount is not None:
                    kind = _kind_of(row, dialect, daily=period_ns == _DAY_NS)
                    limit = _sliced(row, name, amount, dialect) or _rate_limit(
                        row, kind, metric, amount, period_ns=period_ns, now_ns=now_ns, dialect=dialect
                    )
                    meters.append(Meter(owner, name, metric, pool, kind, amount, period_ns, limit, now_ns))
        if row.spend_usd is not None:
            meters.append(_spend_meter(row, owner=owner, pool=pool, now_ns=now_ns))
        if row.concurrency is not None:
            concurrency.append(ConcurrencyMeter(owner, pool, row.concurrency, InFlight(limit=row.concurrency)))
    return meters, concurrency


def _sliced(row: LimitRow, name: str, amount: int, dialect: str) -> Limit | None:
    """Requests a minute, checked in slices; None where they are not."""
    own = 0.0 if row.kind is not None else _SLICE_SECONDS.get(dialect, 0.0)
    seconds = own if row.slice_seconds is None else row.slice_seconds
    if name != "rpm" or not seconds:
        return None
    share = max(1, int(amount * seconds / row.period_seconds))
    return FixedWindow(limit=share, period_ns=int(seconds * NS_PER_SECOND))


def _kind_of(row: LimitRow, dialect: str, *, daily: bool) -> str:
    """The row's kind; else the dialect's own (providers.md §1.2); else a token bucket."""
    return row.kind or (_DAY_KINDS if daily else _MINUTE_KINDS).get(dialect, "bucket")


def _rate_limit(
    row: LimitRow, kind: str, metric: Metric, amount: int, *, period_ns: int, now_ns: int, dialect: str
) -> Limit:
    if kind == "fixed" or (kind == "calendar" and period_ns != _DAY_NS):
        return FixedWindow(limit=amount, period_ns=period_ns)
    if kind == "calendar":
        zone = row.timezone if row.kind is not None else _ZONES.get(dialect, row.timezone)
        return CalendarWindow(limit=amount, zone=ZoneInfo(zone))
    if kind == "sliding":
        return RollingWindow(limit=amount, period_ns=period_ns)
    burst = row.burst if metric == "requests" else row.burst_tokens
    return Bucket(limit=amount, period_ns=period_ns, burst=burst, now_ns=now_ns)


def _spend_meter(row: LimitRow, *, owner: Owner, pool: frozenset[str] | None, now_ns: int) -> Meter:
    amount = spend_nanousd(row)
    if row.spend_period_seconds is None:
        calendar = CalendarWindow(limit=amount, zone=ZoneInfo(row.timezone), unit=row.spend_period)
        return Meter(owner, "spend_usd", "spend", pool, "calendar", amount, _DAY_NS, calendar, now_ns)
    period_ns = int(row.spend_period_seconds * NS_PER_SECOND)
    limit: Limit = RollingWindow(limit=amount, period_ns=period_ns)
    if row.kind == "fixed":
        limit = FixedWindow(limit=amount, period_ns=period_ns)
    elif row.kind == "bucket":
        limit = Bucket(limit=amount, period_ns=period_ns, now_ns=now_ns)
    return Meter(owner, "spend_usd", "spend", pool, row.kind or "sliding", amount, period_ns, limit, now_ns)
