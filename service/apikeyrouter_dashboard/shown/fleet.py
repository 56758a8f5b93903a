"""The fleet: what `/metrics` says of traffic and workers, who gets which share, and what was changed."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, count, percent, table, when

__all__ = ["Sample", "jain", "marks", "rates", "sample_of", "shares", "workers"]

Told = Mapping[str, Any]
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


def _sum(sample: Sample, names: Sequence[str]) -> float:
    return sum(sample.outcomes.get(name, 0.0) for name in names)


def marks(audit: Sequence[Told], samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """What was changed while the chart was drawn, at the next point of its time."""
    found: list[tuple[str, str]] = []
    for entry in audit:
        at = datetime.fromisoformat(entry["at"])
        place = next((sample for sample in samples[1:] if sample.at >= at), None)
        if place is not None and at >= samples[0].at:
            found.append((place.at.strftime("%H:%M:%S"), f"{entry['action']} {entry['id']}"))
    return found[:12]


def workers(sample: Sample | None, health: Told) -> Markup:
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
    cells = Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, text) for name, text in facts)
    return Markup('<dl class="strip">{}</dl>').format(cells)


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
    even = badge("ok" if index is not None and index > 0.8 else "warn", "unknown" if index is None else f"{index:.2f}")
    columns = [dimension, "served", "share", "entitled", "denied", "failed"]
    body = table(columns, told, none="nobody was served today", numbers=range(1, 6))
    return Markup(
        "<p>Jain index {} <span class='dim'>1 is even; of what was served today, by weight</span></p>{}"
    ).format(even, body)


def audit_log(entries: Sequence[Told], now: datetime) -> Markup:
    """Who changed what, newest first."""
    rows = [
        (when(one["at"], now), f"{one['actor']} ({one['role']})", one["action"], one["id"], _changes(one["details"]))
        for one in entries
    ]
    return table(["when", "who", "what", "of", "changes"], rows, none="nothing was changed yet")


def _changes(details: Told) -> str:
    changed = details.get("changed")
    if isinstance(changed, Mapping):
        return "; ".join(f"{name}: {old} → {new}" for name, (old, new) in changed.items())
    return ""
