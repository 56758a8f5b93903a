"""When a policy's rules are in force: hours of days in a time zone, and from one moment to another. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

__all__ = ["NEVER", "Window", "in_force", "next_change", "read_window"]

NEVER = float("inf")
UTC_ZONE = ZoneInfo("UTC")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_GROUPS = {"weekdays": DAYS[:5], "weekend": DAYS[5:], "daily": DAYS}
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)|24:00")
_FIELDS = frozenset({"days", "start", "end", "timezone", "from", "until"})
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Hours of some days: from `start` to `end` (minutes since midnight; past it when `end` ≤ `start`) in `zone`.

    `since` and `until` (Unix seconds) bound it as a whole.
    """

    days: frozenset[int] = frozenset(range(7))
    start: int = 0
    end: int = _DAY_MINUTES
    zone: ZoneInfo = UTC_ZONE
    since: float = -NEVER
    until: float = NEVER

    def spans(self, now: float) -> Iterator[tuple[float, float]]:
        """Its stretches from two days before `now` to nine days after, in Unix seconds."""
        if len(self.days) == 7 and (self.start, self.end) == (0, _DAY_MINUTES):
            yield self.since, self.until
            return
        today = datetime.fromtimestamp(now, self.zone).date()
        for offset in range(-2, 10):
            day = today + timedelta(days=offset)
            if day.weekday() in self.days:
                length = self.end if self.end > self.start else self.end + _DAY_MINUTES
                start, end = max(self._moment(day, self.start), self.since), min(self._moment(day, length), self.until)
                if start < end:
                    yield start, end

    def _moment(self, day: date, minutes: int) -> float:
        days, rest = divmod(minutes, _DAY_MINUTES)
        local = datetime.combine(day + timedelta(days=days), time(rest // 60, rest % 60), self.zone)
        return local.astimezone(UTC).timestamp()


def in_force(windows: tuple[Window, ...], now: float) -> bool:
    """Whether one of them contains `now` (Unix seconds); without any: always."""
    return not windows or any(start <= now < end for window in windows for start, end in window.spans(now))


def next_change(windows: tuple[Window, ...], now: float) -> float:
    """The next moment at which `in_force` may answer otherwise, in Unix seconds."""
    edges = [edge for window in windows for span in window.spans(now) for edge in span if edge > now]
    later = [window.since for window in windows if window.since > now]
    return min([*edges, *later], default=NEVER)


def read_window(told: object) -> Window:
    """A window as people write it. Raises ValueError saying what is wrong.

    `days`: a list of mon … sun, or weekdays, weekend, daily. `start`, `end`: HH:MM. `timezone`: an IANA name. `from`,
    `until`: ISO moments with an offset, or dates, which begin at midnight of the time zone.
    """
    if not isinstance(told, Mapping):
        raise ValueError("must be a mapping with days, start, end, timezone, from or until")
    unknown = sorted(str(name) for name in told if name not in _FIELDS)
    if unknown:
        raise ValueError(f"{unknown[0]} is not known; there are {', '.join(sorted(_FIELDS))}")
    zone = _zone(told.get("timezone", "UTC"))
    window = Window(
        days=_days(told.get("days", "daily")), zone=zone, start=_minutes(told.get("start", "00:00"), "start"),
        end=_minutes(told.get("end", "24:00"), "end"), since=_instant(told.get("from"), zone, -NEVER, "from"),
        until=_instant(told.get("until"), zone, NEVER, "until"),
    )  # fmt: skip
    if window.start == window.end:
        raise ValueError("start and end are the same; leave both out for whole days")
    if window.since >= window.until:
        raise ValueError("from must be before until")
    return window


def _zone(name: object) -> ZoneInfo:
    try:
        return ZoneInfo(name) if isinstance(name, str) else ZoneInfo("")
    except (OSError, ValueError, LookupError) as exc:
        raise ValueError(f"timezone {name!r} is unknown; use an IANA name such as Europe/Berlin") from exc


def _days(told: Any) -> frozenset[int]:
    named = [told] if isinstance(told, str) else told
    if not isinstance(named, list | tuple) or not named:
        raise ValueError("days must be a list of mon … sun, or weekdays, weekend or daily")
    found: set[int] = set()
    for name in named:
        folded = name.casefold() if isinstance(name, str) else ""
        group = _GROUPS.get(folded, (folded[:3],) if folded[:3] in DAYS else ())
        if not group:
            raise ValueError(f"days: {name!r} is no day of the week")
        found.update(DAYS.index(day) for day in group)
    return frozenset(found)


def _minutes(told: object, field: str) -> int:
    match = _CLOCK.fullmatch(told) if isinstance(told, str) else None
    if match is None or (field == "start" and told == "24:00"):
        raise ValueError(f"{field} must be a time of day as HH:MM")
    return _DAY_MINUTES if match[1] is None else int(match[1]) * 60 + int(match[2])


def _instant(told: object, zone: ZoneInfo, default: float, field: str) -> float:
    if told is None:
        return default
    try:
        moment = told if isinstance(told, datetime) else datetime.fromisoformat(str(told))
    except ValueError:
        raise ValueError(f"{field} must be an ISO date or moment, e.g. 2027-01-31T18:00+01:00") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).timestamp()
