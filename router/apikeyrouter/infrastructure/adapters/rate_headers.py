"""Rate-limit headers as observations: which header says what is a table per provider (`providers.md` §1.2)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from apikeyrouter.domain.models.accounting import LimitKind, Metric, Observation
from apikeyrouter.infrastructure.adapters.retry_hints import duration_us, rfc3339_us

__all__ = ["DAY_US", "MINUTE_US", "HeaderLimit", "header_limits", "observe"]

MINUTE_US = 60_000_000
DAY_US = 86_400_000_000
OBSERVED_MAX = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderLimit:
    """One limit, and the headers that tell its size, what is left, and when it is whole again ("" where untold)."""

    name: str
    metric: Metric
    period_us: int
    limit: str
    remaining: str
    reset: str = ""


def header_limits(pattern: str, *rows: tuple[str, str, Metric, int]) -> tuple[HeaderLimit, ...]:
    """Limits whose headers differ in one word: `pattern` has `{what}` and `{which}`, rows (which, name, metric, µs)."""
    return tuple(
        HeaderLimit(
            name=name,
            metric=metric,
            period_us=period_us,
            limit=pattern.format(what="limit", which=which),
            remaining=pattern.format(what="remaining", which=which),
            reset=pattern.format(what="reset", which=which),
        )
        for which, name, metric, period_us in rows
    )


def observe(table: Iterable[HeaderLimit], headers: Mapping[str, str], *, now_us: int) -> list[Observation]:
    """What the headers say; absent, negative and absurd values are none. Of two of one name, the one with less left."""
    found: dict[str, Observation] = {}
    for row in table:
        limit = _count(headers.get(row.limit))
        remaining = _count(headers.get(row.remaining))
        if limit is None and remaining is None:
            continue
        seen = Observation(
            name=row.name,
            metric=row.metric,
            kind=LimitKind.BUCKET,
            period_us=row.period_us,
            limit=limit or 0,
            remaining=remaining,
            reset_us=_reset_us(headers.get(row.reset, ""), now_us),
        )
        other = found.get(row.name)
        if other is None or _left(seen) < _left(other):
            found[row.name] = seen
    return list(found.values())


def _left(seen: Observation) -> int:
    return OBSERVED_MAX if seen.remaining is None else seen.remaining


def _reset_us(text: str, now_us: int) -> int:
    """A Go duration, bare seconds, or an instant; 0 when untold."""
    wait_us = duration_us(text)
    if wait_us is None:
        until_us = rfc3339_us(text)
        wait_us = 0 if until_us is None else until_us - now_us
    return min(max(wait_us, 0), DAY_US)


def _count(text: str | None) -> int | None:
    """A non-negative count; None for absent, negative, fractional or absurd ones."""
    if text is None or len(text) > 16 or not (text.isascii() and text.isdigit()):
        return None
    value = int(text)
    return value if value <= OBSERVED_MAX else None
