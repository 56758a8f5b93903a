"""When a provider says to come back: every form in one place (`providers.md` §1.3, last line), in microseconds.

Everything is capped at RETRY_MAX_US; zero, negative, NaN and infinite hints count as none.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

RETRY_MAX_US = 24 * 3600 * 1_000_000
"""Longest relative hint believed: 24 hours."""

DATE_AHEAD_MAX_US = 400 * 24 * 3600 * 1_000_000
"""Farthest absolute date believed: 400 days."""

_UNITS_US = {
    "h": 3_600_000_000.0,
    "m": 60_000_000.0,
    "s": 1_000_000.0,
    "ms": 1_000.0,
    "us": 1.0,
    "µs": 1.0,
    "ns": 0.001,
}
_DURATION_PART = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(ms|us|µs|ns|h|m|s)")
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,12})?(?:ms|us|µs|ns|h|m|s))+")
_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,15})?")
_TRY_AGAIN = re.compile(
    r"(?:try again|retry)(?: your request)?(?: in| after) ((?:\d{1,12}(?:\.\d{1,12})?\s?"
    r"(?:milliseconds?|ms|seconds?|sec|minutes?|min|hours?|h|m|s)(?![a-z])\s?(?:and )?)+)",
    re.IGNORECASE,
)
_SPOKEN_PART = re.compile(
    r"(\d{1,12}(?:\.\d{1,12})?)\s?(milliseconds?|ms|seconds?|sec|minutes?|min|hours?|h|m|s)", re.IGNORECASE
)
_REGAIN = re.compile(r"regain access on (\d{4})-(\d{2})-(\d{2})(?:[ T](?:at )?(\d{2}):(\d{2}))?", re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=2048)
def duration_us(text: str) -> int | None:
    """A Go duration (`6m0s`, `8.64s`, `12ms`) or a bare number of seconds (Azure); None for anything else."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        seconds = float(text)
        return round(seconds * 1e6) if seconds >= 0 else None
    if not _DURATION.fullmatch(text):
        return None
    return round(sum(float(number) * _UNITS_US[unit] for number, unit in _DURATION_PART.findall(text)))


def retry_after_us(headers: Mapping[str, str], message: str, retry_delay: str, *, now_us: int) -> int:
    """The best hint of an error answer: headers first (milliseconds before seconds), then the body; 0 when none."""
    for hint in (
        _milliseconds(headers.get("retry-after-ms")),
        _milliseconds(headers.get("x-ms-retry-after-ms")),
        _retry_after(headers.get("retry-after"), headers, now_us),
        duration_us(retry_delay) if retry_delay else None,
        spoken_us(message),
        _exhausted_us(headers),
    ):
        if hint:
            return min(hint, RETRY_MAX_US)
    return 0


def _milliseconds(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else round(min(number * 1e3, RETRY_MAX_US))


def _number(text: str | None) -> float | None:
    if text is None or not _NUMBER.fullmatch(text.strip()):
        return None
    number = float(text)
    return number if math.isfinite(number) and number > 0 else None


def _retry_after(text: str | None, headers: Mapping[str, str], now_us: int) -> int | None:
    if text is None:
        return None
    number = _number(text)
    if number is not None:
        return round(min(number * 1e6, RETRY_MAX_US))
    until = http_date_us(text)
    if until is None:
        return None
    said_at = http_date_us(headers.get("date", ""))
    return max(0, until - (now_us if said_at is None else said_at))


def http_date_us(text: str) -> int | None:
    """An HTTP date as Unix microseconds; None when it is none."""
    if not text or len(text) > 64:
        return None
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return unix_us(moment)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def rfc3339_us(text: str) -> int | None:
    """An RFC 3339 instant as Unix microseconds; None when it is none or has no zone."""
    if len(text) > 40:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return unix_us(moment) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def unix_us(moment: datetime) -> int:
    """An aware datetime as integer Unix microseconds, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def spoken_us(message: str) -> int | None:
    """ "Please try again in 1m2.5s" (or "20 seconds") in a message; None when it says nothing of the kind."""
    said = _TRY_AGAIN.search(message)
    if said is None:
        return None
    total = sum(float(number) * _UNITS_US[_unit(unit)] for number, unit in _SPOKEN_PART.findall(said.group(1)))
    return round(min(total, RETRY_MAX_US))


def _unit(word: str) -> str:
    word = word.lower()
    if word.startswith("mil") or word == "ms":
        return "ms"
    return word[0]


def _exhausted_us(headers: Mapping[str, str]) -> int | None:
    """The longest reset among the dimensions whose `remaining` is 0."""
    longest: int | None = None
    for what in ("requests", "tokens", "project-tokens", "input-tokens", "output-tokens"):
        if headers.get(f"x-ratelimit-remaining-{what}", "").strip() == "0":
            reset = duration_us(headers.get(f"x-ratelimit-reset-{what}", ""))
            longest = max(longest or 0, reset or 0)
    return longest


def regain_us(message: str, *, now_us: int) -> int:
    """ "You will regain access on 2026-09-01 at 00:00 UTC" as Unix µs; 0 when absent, invalid or too far away."""
    said = _REGAIN.search(message)
    if said is None:
        return 0
    year, month, day, hour, minute = (int(group or 0) for group in said.groups())
    try:
        until = unix_us(datetime(year, month, day, hour, minute, tzinfo=UTC))
    except (ValueError, OverflowError):
        return 0
    return until if 0 < until <= now_us + DATE_AHEAD_MAX_US else 0


def next_month_us(now_us: int) -> int:
    """The first instant of the next month, UTC, as Unix µs."""
    now = _EPOCH + timedelta(microseconds=now_us)
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return unix_us(datetime(year, month, 1, tzinfo=UTC))


def next_pacific_day_us(now_us: int) -> int:
    """The next midnight on the Pacific (America/Los_Angeles, with its daylight saving time), as Unix µs."""
    now = (_EPOCH + timedelta(microseconds=now_us)).astimezone(ZoneInfo("America/Los_Angeles"))
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0, fold=0) + timedelta(days=1)
    return unix_us(midnight)
