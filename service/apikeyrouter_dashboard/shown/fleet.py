"""The fleet: what `/metrics` says of traffic and workers, who gets which share, and what was changed."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, count, facts_strip, percent, table, when

__all__ = [
    "Sample",
    "audit_log",
    "by_day",
    "changes",
    "happened",
    "host",
    "jain",
    "marks",
    "marks_by_day",
    "processes",
    "rates",
    "sample_of",
    "shares",
]

Told = Mapping[str, Any]
MARKS_MAX, LISTED_MAX, NAMES_MAX = 12, 20, 3
TOGETHER = timedelta(seconds=5)
"""Keys that fared alike within this fared so together."""
_LINE = re.compile(r"^(\w+)(?:\{([^}]*)\})? ([0-9.eE+-]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
UPSTREAM = ("rate_limit_error", "quota_exceeded_error")
LOCAL = ("no_eligible_keys", "budget_exceeded_error", "policy_denied")
"""Outcomes that a provider's 429 is behind, and those that no provider saw."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What `/metrics` said at a moment."""

    at: datetime
    outcomes: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    attempts: float = 0.0


def sample_of(text: str, at: datetime) -> Sample:
    """Read Prometheus' text, as far as it is shown."""
    outcomes: dict[str, float] = {}
    gauges: dict[str, float] = {}
    attempts = 0.0
    for name, labels, value in _LINE.findall(text):
        if name == "apikeyrouter_requests_total":
            outcome = dict(_LABEL.findall(labels)).get("outcome", "")
            outcomes[outcome] = outcomes.get(outcome, 0.0) + float(value)
        elif name == "apikeyrouter_attempts_total":
            attempts += float(value)
        elif not labels and not name.endswith("_total"):
            gauges[name.removeprefix("apikeyrouter_")] = float(value)
    return Sample(at, outcomes, gauges, attempts)


def rates(samples: Sequence[Sample]) -> tuple[list[str], dict[str, list[float | None]]]:
    """Requests a second between each two samples: answered, denied here, refused upstream, failed. A counter that went
    back (a restart) says nothing about its time."""
    names: dict[str, tuple[str, ...]] = {"answered": ("ok",), "denied here": LOCAL, "refused upstream": UPSTREAM}
    known = {outcome for group in names.values() for outcome in group}
    times: list[str] = []
    series: dict[str, list[float | None]] = {name: [] for name in (*names, "other")}
    for before, after in itertools.pairwise(samples):
        seconds = (after.at - before.at).total_seconds() or 1.0
        times.append(after.at.strftime("%H:%M:%S"))
        others = tuple(outcome for outcome in after.outcomes if outcome not in known)
        for name, group in (*names.items(), ("other", others)):
            grown = _sum(after, group) - _sum(before, group)
            series[name].append(round(grown / seconds, 2) if grown >= 0 else None)
    return times, series


def by_day(usage: Sequence[Told], days: Sequence[str]) -> dict[str, list[float | None]]:
    """Requests of the fleet by day: answered, denied here, failed. Days without a report are days without requests."""
    told = {row["day"]: row for row in usage}
    names = {"answered": "served", "denied here": "denied", "failed": "failed"}
    return {name: [told[day][field] if day in told else 0 for day in days] for name, field in names.items()}


def marks_by_day(found: Sequence[tuple[datetime, str]], days: Sequence[str]) -> list[tuple[str, str]]:
    """What happened on the days that are shown, a mark a day."""
    told: dict[str, list[str]] = {}
    for at, text in sorted(found, key=lambda one: one[0], reverse=True):
        told.setdefault(at.astimezone(UTC).date().isoformat(), []).append(text)
    return [(day, _some(told[day])) for day in days if day in told]


def _some(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more"


def _sum(sample: Sample, names: Sequence[str]) -> float:
    return sum(sample.outcomes.get(name, 0.0) for name in names)


def changes(audit: Sequence[Told], transitions: Sequence[Told]) -> list[tuple[datetime, str]]:
    """What was changed, and what became of keys (those together that fared alike at once): when, and in words."""
    told = [(datetime.fromisoformat(one["at"]), f"{one['action']} {one['id']}") for one in audit]
    alike: dict[str, list[tuple[datetime, str]]] = {}
    for one in sorted(transitions, key=lambda one: str(one["timestamp"])):
        at, became = datetime.fromisoformat(one["timestamp"]), _became(one)
        group = alike.setdefault(became, [])
        if group and at - group[-1][0] > TOGETHER:
            told.append((group[0][0], f"{_names([name for _, name in group])} {became}"))
            group.clear()
        group.append((at, str(one["entity_id"])))
    return told + [(group[0][0], f"{_names([name for _, name in group])} {what}") for what, group in alike.items()]


def _became(one: Told) -> str:
    return "registered" if one["from_state"] is None else str(one["to_state"] or "revoked")


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= NAMES_MAX else f"{len(names)} keys"


def marks(found: Sequence[tuple[datetime, str]], samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """What happened while the chart was drawn, the latest first, each at the next point of its time."""
    told: dict[str, list[str]] = {}
    for at, text in sorted(found, key=lambda one: one[0], reverse=True):
        place = next((sample for sample in samples[1:] if sample.at >= at), None)
        if place is not None and at >= samples[0].at and len(told) < MARKS_MAX:
            told.setdefault(place.at.strftime("%H:%M:%S"), []).append(text)
    return [(at, _some(texts)) for at, texts in told.items()]


def happened(found: Sequence[tuple[datetime, str]], now: datetime) -> Markup:
    """The same in rows, the latest first."""
    rows = [
        (when(at.isoformat(), now), text)
        for at, text in sorted(found, key=lambda one: one[0], reverse=True)[:LISTED_MAX]
    ]
    return table(["when", "what"], rows, none="nothing has happened")


def host(sample: Sample | None, health: Told) -> Markup:
    """The host that answers: its workers and what they have under way."""
    gauges = {} if sample is None else sample.gauges
    store = gauges.get("store_up")
    facts = [
        ("workers on this host", count(gauges.get("workers"))), ("in flight", count(gauges.get("inflight"))),
        ("waiting for room", count(gauges.get("waiting"))),
        ("ends not confirmed", count(gauges.get("settlements_pending"))),
        ("store", "unknown" if store is None else "answers" if store else "away"),
        ("version", health["version"]), ("service", health["status"]),
    ]  # fmt: skip
    return facts_strip(facts)


def jain(amounts: Sequence[float]) -> float | None:
    """How even shares are, by Jain's index: 1 all alike, 1/n one has all; None: there are none."""
    squares = sum(amount * amount for amount in amounts)
    return None if not squares else sum(amounts) ** 2 / (len(amounts) * squares)


def shares(usage: Sequence[Told], dimension: str, entitled: Mapping[str, float]) -> Markup:
    """Who got which share of what was served, against what its weight entitles it to."""
    rows = [row for row in usage if row.get(dimension)]
    served, weights = sum(row["served"] for row in rows), sum(entitled.get(row[dimension], 1.0) for row in rows)
    told = [
        (
            row[dimension], count(row["served"]), percent(row["served"] / served) if served else "unknown",
            percent(entitled.get(row[dimension], 1.0) / weights), count(row["denied"]), count(row["failed"]),
        )
        for row in sorted(rows, key=lambda row: -row["served"])
    ]  # fmt: skip
    index = jain([row["served"] / entitled.get(row[dimension], 1.0) for row in rows])
    columns = [dimension, "served", "share", "entitled", "denied", "failed"]
    body = table(columns, told, none="nobody was served in that time", numbers=range(1, 6))
    return _jain_line(index) + body


def processes(workers: Sequence[Told]) -> Markup:
    """Who decides which share of what is decided now; all are entitled to the same."""
    live = [one for one in workers if one["state"] != "lost"]
    total = sum(one["decisions_per_second"] for one in live)
    rows = [
        (Markup("<code>{}</code>").format(one["id"]), count(one["decisions_per_second"]),
         percent(one["decisions_per_second"] / total) if total else "unknown", percent(1 / len(live)),
         count(one["waiting"]), f"{one['waiting_longest_ms'] / 1000:.1f} s" if one["waiting"] else "–")
        for one in live
    ]  # fmt: skip
    columns = ["worker", "decisions/s", "share", "entitled", "waiting", "longest"]
    body = table(columns, rows, none="no worker has said anything", numbers=range(1, 6))
    return _jain_line(jain([one["decisions_per_second"] for one in live])) + body


def _jain_line(index: float | None) -> Markup:
    even = badge("ok" if index is not None and index > 0.8 else "warn", "unknown" if index is None else f"{index:.2f}")
    return Markup("<p>Jain index {} <span class='dim'>1 is even</span></p>").format(even)


def audit_log(entries: Sequence[Told], now: datetime) -> Markup:
    """Who changed what, newest first."""
    rows = [
        (when(one["at"], now), f"{one['actor']} ({one['role']})", one["action"], one["id"], _changes(one["details"]))
        for one in entries
    ]
    return table(["when", "who", "what", "of", "changes"], rows, none="nothing was changed yet")


def _changes(details: Told) -> str:
    """From what to what; what is no change, as it is told."""
    changed = details.get("changed")
    if isinstance(changed, Mapping):
        return "; ".join(f"{name}: {_word(old)} → {_word(new)}" for name, (old, new) in changed.items())
    return "; ".join(f"{name.replace('_', ' ')}: {_word(told)}" for name, told in details.items())


def _word(told: object) -> str:
    return "none" if told is None else str(told)
