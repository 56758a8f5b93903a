"""Decisions: which request went where, and for one of them, why: every candidate with its numbers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, button, note, table, told_at, when

__all__ = ["explained", "listed", "matches"]

Told = Mapping[str, Any]


def matches(decision: Told, wanted: str, *, only: str) -> bool:
    """Whether a decision has that text in it, and is of that kind: all, refused, retried."""
    if only == "refused" and decision["selected_key_id"]:
        return False
    if only == "retried" and decision["attempts"] < 2:
        return False
    fields = ("request_id", "selected_key_id", "selected_provider_id", "model", "explanation")
    return not wanted or any(wanted in str(decision[name]).lower() for name in fields)


def listed(found: Sequence[Told], now: datetime) -> Markup:
    """Decisions in rows, as they came."""
    rows = [
        (
            when(one["timestamp"], now), button("explain", one["request_id"], kind="link", id=one["request_id"]),
            one["model"], _went(one), _attempts(one), one["objective"]["primary"],
            f"{one['confidence']:.2f}", ", ".join(one["policy_ids"]),
        )
        for one in found
    ]  # fmt: skip
    columns = ["when", "request", "model", "went to", "attempts", "objective", "confidence", "policies"]
    return table(columns, rows, none="no such decision", numbers=(6,))


def _went(decision: Told) -> Markup:
    if decision["selected_key_id"]:
        return Markup("{} <span class='dim'>{}</span>").format(
            decision["selected_key_id"], decision["selected_provider_id"]
        )
    first = str(decision["explanation"]).partition("nothing was held; ")[2] or str(decision["explanation"])
    return Markup("{} <span class='dim'>{}</span>").format(badge("denied", "✕ refused"), first[:120])


def _attempts(decision: Told) -> Markup:
    """A retry that was absorbed is no outage, and is not shown as one."""
    number = decision["attempts"]
    if number < 2:
        return Markup("{}").format(number)
    if decision["selected_key_id"]:
        return badge("held", f"{number}: absorbed")
    return badge("bad", f"{number}: all failed")


def explained(decision: Told) -> Markup:
    """One decision with its candidates, what each of them measured, and why each loser lost."""
    parts = sorted({name for one in decision["candidates"] for name in one["parts"]})
    rows = [
        (
            one["key_id"], one["provider_id"], badge(one["outcome"], one["outcome"]), _number(one["score"]),
            "" if one["turn"] is None else one["turn"], *(_number(one["parts"].get(name)) for name in parts),
            one["reason"] or ("chosen" if one["outcome"] == "chosen" else ""),
        )
        for one in decision["candidates"]
    ]  # fmt: skip
    columns = ["key", "provider", "outcome", "score", "turn", *(part.replace("_", " ") for part in parts), "why"]
    at = datetime.fromisoformat(decision["timestamp"])
    facts = [
        ("Model", decision["model"]), ("When", told_at(at)), ("Objective", decision["objective"]["primary"]),
        ("Policies", ", ".join(decision["policy_ids"]) or "none applied"),
        ("Attempts", f"{decision['attempts']}{', absorbed: the caller got its answer' if _absorbed(decision) else ''}"),
        ("Lanes seen", f"{decision['snapshot_age_ms']} ms before"), ("Confidence", f"{decision['confidence']:.2f}"),
    ]  # fmt: skip
    told = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(name, text) for name, text in facts)
    candidates = table(columns, rows, none="there was no candidate", numbers=range(3, 5 + len(parts)))
    return Markup('<dl class="facts">{}</dl><h3>Candidates</h3>{}<h3>In words</h3><pre>{}</pre>').format(
        told, candidates, decision["text"]
    )


def _absorbed(decision: Told) -> bool:
    return decision["attempts"] > 1 and bool(decision["selected_key_id"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"


def fresh(number: int) -> Markup:
    """That so many have come since."""
    if not number:
        return note("live: nothing new")
    return button("renew", f"{number} new – show them")
