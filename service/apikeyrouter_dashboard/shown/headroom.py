"""Lanes: used, held and free; when they run out against when they are full again; and what to do about it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, bar, count, dollars, moment, percent, table, when

__all__ = ["LIKELY", "SCARCE", "advice", "even_pace", "lanes"]

Told = Mapping[str, Any]
Out = Mapping[str, datetime | None]
NOBODY: Out = {}
LIKELY = 0.5
SCARCE = 0.2
AHEAD = 1.15
"""So many times the even pace is too fast."""
_WINDOW_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "s": 1}


def lanes(found: Sequence[Told], now: datetime, *, wanted: str = "", out: Out = NOBODY) -> Markup:
    """Every limit of every lane, those without a serving key first, then the scarcest. `out`: of the former, when the
    first of their keys is back."""
    rows = [
        (_share_left(limit), lane, limit) for lane in found for limit in lane["limits"] if wanted in lane["id"].lower()
    ]
    rows.sort(key=lambda row: (row[1]["id"] not in out, row[0], row[1]["id"]))
    told = [_row(lane, limit, now, out) for _, lane, limit in rows]
    columns = ["lane", "limit", "used and held", "free", "capacity", "runs out", "full again", "pace", "advice"]
    return table(columns, told, none="no limits are known yet", numbers=(3, 4))


def _row(lane: Told, limit: Told, now: datetime, out: Out) -> tuple[object, ...]:
    left = _share_left(limit)
    kind = "exhausted" if left <= 0 else "critical" if left < 0.05 else "constrained" if left < SCARCE else "abundant"
    gauge = Markup('<span class="gauge">{}<span>{}</span></span>').format(
        bar([(kind, 1 - left)], f"{percent(1 - left)} used"), percent(1 - left)
    )
    name = Markup("{}{}").format(limit["name"].removesuffix("~"), badge("held", "learned") if limit["learned"] else "")
    is_out = lane["blocked_until"] or lane["breaker"] == "open" or lane["id"] in out
    blocked = Markup(" {}").format(badge("out", "✕ out")) if is_out else ""
    return (
        Markup("<code>{}</code>{}").format(lane["id"], blocked), name, gauge, _amount(limit, "remaining"),
        _amount(limit, "capacity"), _runs_out(limit, now),
        _full_again(limit, now),
        _pace(limit, now), advice(lane, limit, now, out),
    )  # fmt: skip


def _full_again(limit: Told, now: datetime) -> Markup | str:
    if not limit["used"]:
        return "it is full"
    if limit["counts"] == "concurrency":
        return "as requests end"
    return when(limit["full_again_at"], now)


def _amount(limit: Told, name: str) -> str:
    return dollars(limit[name]) if limit["counts"] == "spend" else count(limit[name])


def _share_left(limit: Told) -> float:
    return float(limit["remaining"] / limit["capacity"]) if limit["capacity"] else 0.0


def _runs_out(limit: Told, now: datetime) -> Markup:
    forecast = limit["forecast"]
    if limit["counts"] == "concurrency":
        return Markup('<span class="dim">as requests end</span>')
    if forecast is None:
        return Markup('<span class="unknown">unknown</span>')
    if forecast["expected_at"] is None:
        return Markup('<span class="dim">not before ({} likely)</span>').format(percent(forecast["probability"]))
    return Markup('{} <span class="dim">({} … {})</span>').format(
        when(forecast["expected_at"], now), when(forecast["earliest_at"], now, unknown="now"),
        when(forecast["latest_at"], now, unknown="later"),
    )  # fmt: skip


def _pace(limit: Told, now: datetime) -> Markup:
    """How fast it is used, against the pace that would use all of it evenly."""
    forecast = limit["forecast"]
    if forecast is None or limit["counts"] == "concurrency":
        return Markup('<span class="unknown">unknown</span>')
    amount = dollars(forecast["per_hour"]) if limit["counts"] == "spend" else count(round(forecast["per_hour"]))
    ratio = even_pace(limit["name"], forecast["per_hour"], limit["capacity"])
    if ratio is None:
        return Markup("{} an hour").format(amount)
    return Markup("{} an hour, {} of the even pace").format(amount, percent(ratio))


def even_pace(name: str, per_hour: float, capacity: float) -> float | None:
    """The pace as a share of the one that would use all of a limit evenly over its window; None: it has no window."""
    window = _WINDOW_SECONDS.get(name.removesuffix("~")[-1:])
    return None if window is None or not capacity else per_hour * window / 3600 / capacity


def advice(lane: Told, limit: Told, now: datetime, out: Out = NOBODY) -> Markup:
    """What to do: wait, throttle, add capacity, or nothing."""
    forecast = limit["forecast"]
    if lane["id"] in out:
        at = out[lane["id"]]
        if at is None:
            return Markup("none of its keys serves: rotate or enable them, or add one of another group")
        return Markup("none of its keys serves: wait, the first is back {}; or add one of another group").format(
            when(at.isoformat(), now)
        )
    if lane["blocked_until"]:
        return Markup("wait: it is back {}").format(when(lane["blocked_until"], now))
    if limit["remaining"] <= 0 and limit["counts"] != "concurrency":
        return Markup("wait until it is full again {}, or add capacity").format(when(limit["full_again_at"], now))
    if limit["counts"] == "concurrency":
        return Markup("add capacity, or let callers wait") if _share_left(limit) < SCARCE else Markup("–")
    if forecast is None or forecast["probability"] < LIKELY:
        return Markup("–")
    ends, resets = moment(forecast["expected_at"]), moment(limit["full_again_at"])
    if ends is not None and resets is not None and ends < resets and (resets - now).total_seconds() > 3600:
        span = max(1.0, (ends - now).total_seconds()) / max(1.0, (resets - now).total_seconds())
        return Markup("throttle to {} of the present pace, or add capacity").format(percent(min(1.0, span)))
    return Markup("add capacity, or let callers wait")
