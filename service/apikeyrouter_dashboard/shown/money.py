"""Budgets as a tree, what is in suspense, and spend over time."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, bar, button, count, dollars, moment, note, percent, table, when

__all__ = [
    "DIMENSIONS", "against_actual", "by_day", "cost_of", "first_to_block", "series", "spend_table", "suspense",
    "tokens_of", "tree",
]  # fmt: skip

Told = Mapping[str, Any]
SCOPES = ("global", "provider", "team", "client", "key", "policy")
"""From the root of the tree to its leaves."""
DIMENSIONS = ("client", "team", "provider", "model", "key")
SERIES_MAX = 7
STATES = ((1.0, "exhausted"), (0.9, "critical"), (0.8, "constrained"))
"""What is said of a budget from which share of it on."""


def tree(budgets: Sequence[Told], now: datetime) -> Markup:
    """Every budget with its books, the widest scopes first."""
    rows = [_row(one, now) for one in sorted(budgets, key=lambda one: (SCOPES.index(one["scope"]), one["id"]))]
    columns = ["scope", "", "books", "settled", "held", "suspense", "free", "limit", "used up", "resets"]
    return table(columns, rows, none="no budgets: spend is counted, and nothing limits it", numbers=(3, 4, 5, 6, 7))


def _row(budget: Told, now: datetime) -> tuple[object, ...]:
    depth = min(SCOPES.index(budget["scope"]), 3)
    name = Markup('<span style="padding-left:{}px">{}</span>').format(depth * 14, budget["id"])
    limit = budget["limit_usd"] or 1e-9
    settled, held, suspense = (budget[f"{kind}_usd"] / limit for kind in ("settled", "held", "suspense"))
    share = settled + held + suspense
    parts = [(_state(share), settled), ("held", held), ("suspense", suspense)]
    gauge = Markup('<span class="gauge">{}<span>{}</span></span>').format(
        bar(parts, f"{percent(share)} of {dollars(budget['limit_usd'])} taken"), percent(share)
    )
    unpriced = budget["unpriced_requests"]
    more = Markup(' <span class="dim">+ {} unpriced</span>').format(unpriced) if unpriced else ""
    hard = badge("settled", "hard") if budget["enforcement"] == "hard" else badge("free", "soft")
    return (
        name, hard, gauge, Markup("{}{}").format(dollars(budget["settled_usd"]), more), dollars(budget["held_usd"]),
        dollars(budget["suspense_usd"]), dollars(budget["remaining_usd"]), dollars(budget["limit_usd"]),
        _ends(budget, now), when(budget["resets_at"], now, unknown="never"),
    )  # fmt: skip


def _state(share: float) -> str:
    """How well off a budget is of which so much is taken."""
    return next((state for least, state in STATES if share >= least), "settled")


def _ends(budget: Told, now: datetime) -> Markup:
    """When it is used up, with the band of the forecast."""
    forecast = budget["forecast"]
    if forecast is None or not forecast["observed_seconds"]:
        return Markup('<span class="unknown">unknown</span>')
    if forecast["used_up_at"] is None:
        return Markup('<span class="dim">not before it resets</span>')
    band = _band(forecast["earliest"], forecast["latest"], now)
    return Markup('{} <span class="dim">{}</span>').format(when(forecast["used_up_at"], now), band)


def _band(earliest: str | None, latest: str | None, now: datetime) -> Markup:
    if earliest is None:
        return Markup("")
    return Markup("({} … {})").format(when(earliest, now), when(latest, now, unknown="later"))


def first_to_block(budgets: Sequence[Told], now: datetime) -> Markup:
    """The hard budget that will refuse requests first, and when."""
    hard = [one for one in budgets if one["enforcement"] == "hard"]
    full = [one for one in hard if one["remaining_usd"] <= 0]
    if full:
        resets = when(full[0]["resets_at"], now, unknown="never")
        return Markup("<p>{} <b>{}</b> refuses requests now; resets {}.</p>").format(
            badge("bad", "✕"), full[0]["id"], resets
        )
    known = [one for one in hard if one["forecast"] and one["forecast"]["used_up_at"]]
    first = min(known, key=lambda one: moment(one["forecast"]["used_up_at"]) or now, default=None)
    if first is None:
        return note("No hard budget will be used up before it resets, as far as its pace tells.")
    forecast = first["forecast"]
    return Markup("<p>{} The first to block: <b>{}</b>, {} {} at {} an hour.</p>").format(
        badge("warn", "△"), first["id"], when(forecast["used_up_at"], now),
        _band(forecast["earliest"], forecast["latest"], now), dollars(forecast["burn_per_hour"]),
    )  # fmt: skip


def suspense(found: Sequence[Told], now: datetime, *, may: bool) -> Markup:
    """What is neither spent nor free: requests whose end was never told."""
    rows = [
        (
            Markup("<code>{}</code>").format(one["id"][:12]), when(one["created_at"], now), dollars(one["held_usd"]),
            ", ".join(scope["id"] for scope in one["scopes"]),
            when(min((scope["due_at"] for scope in one["scopes"] if scope["due_at"]), default=None), now),
            Markup("{} {}").format(
                button("charge", "Charge …", id=one["id"]), button("refund", "Refund", id=one["id"])
            ) if may else Markup('<span class="dim">takes the role operate</span>'),
        )
        for one in found
    ]  # fmt: skip
    return table(["reservation", "began", "held", "in budgets", "its rule decides", ""], rows,
                 none="nothing is in suspense", numbers=(2,))  # fmt: skip


def cost_of(row: Told) -> float:
    """Dollars of a row of usage."""
    return float(row["cost_usd"])


def tokens_of(row: Told) -> float:
    """Tokens of a row of usage."""
    return float(row["input_tokens"] + row["output_tokens"])


def series(
    usage: Sequence[Told], dimension: str, days: Sequence[str], amount: Callable[[Told], float]
) -> dict[str, list[float]]:
    """An amount by day of the largest; the rest together. Days without a report are days without use."""
    sums: dict[str, dict[str, float]] = {}
    for row in usage:
        name = row.get(dimension) or "none"
        told = sums.setdefault(str(name), {})
        told[row["day"]] = told.get(row["day"], 0.0) + amount(row)
    ranked = sorted(sums, key=lambda name: -sum(sums[name].values()))
    found = {name: [round(sums[name].get(day, 0.0), 9) for day in days] for name in ranked[:SERIES_MAX]}
    rest = ranked[SERIES_MAX:]
    if rest:
        found["the others"] = [round(sum(sums[name].get(day, 0.0) for name in rest), 9) for day in days]
    return found


def against_actual(decisions: Sequence[Told]) -> Markup:
    """What requests were admitted for against what they used, by model, the dearest first."""
    sums: dict[str, list[float]] = {}
    for one in decisions:
        expected = one["expected"]
        if expected is None or one["outcome"] != "ok" or one["input_tokens"] is None or one["cost_estimated"]:
            continue
        told = sums.setdefault(one["model"], [0.0] * 5)
        added = (
            1, expected["input_tokens"] + expected["output_tokens"], one["input_tokens"] + (one["output_tokens"] or 0),
            float(expected["cost"] or 0), float(one["cost"] or 0),
        )  # fmt: skip
        sums[one["model"]] = [before + more for before, more in zip(told, added, strict=True)]
    rows = [
        (model, count(number), count(wanted), count(used), _ratio(used, wanted), dollars(reckoned), dollars(paid),
         _ratio(paid, reckoned))
        for model, (number, wanted, used, reckoned, paid) in sorted(sums.items(), key=lambda one: -one[1][4])
    ]  # fmt: skip
    columns = ["model", "requests", "tokens expected", "used", "share", "dollars expected", "booked", "share"]
    return table(columns, rows, none="no request has told what it used yet", numbers=range(1, 8))


def _ratio(actual: float, expected: float) -> str:
    return percent(actual / expected) if expected else "unknown"


def by_day(days: Sequence[str], dollars_of: Mapping[str, list[float]], tokens: Mapping[str, list[float]]) -> Markup:
    """The charts in rows, the latest day first; days of which nothing is told are left out."""
    rows = [
        (day, name, dollars(dollars_of.get(name, [0.0] * len(days))[n]), count(tokens.get(name, [0.0] * len(days))[n]))
        for n, day in reversed([*enumerate(days)])
        for name in dict.fromkeys((*dollars_of, *tokens))
        if dollars_of.get(name, [0.0] * len(days))[n] or tokens.get(name, [0.0] * len(days))[n]
    ]
    return table(["day", "", "dollars", "tokens"], rows, none="nothing was used in this time", numbers=(2, 3))


def spend_table(usage: Sequence[Told], dimension: str) -> Markup:
    """The same in rows, with what of it was estimated or has no price."""
    sums: dict[str, dict[str, float]] = {}
    counted = ("requests", "served", "denied", "failed", "estimated_requests", "unpriced_requests", "cost_usd")
    for row in usage:
        told = sums.setdefault(str(row.get(dimension) or "none"), dict.fromkeys(counted, 0.0))
        for name in counted:
            told[name] += row[name]
    rows = [
        (name, *(count(told[column]) for column in counted[:-1]), dollars(told["cost_usd"]))
        for name, told in sorted(sums.items(), key=lambda one: -one[1]["cost_usd"])
    ]
    columns = [dimension, "requests", "served", "denied", "failed", "estimated", "unpriced", "spent"]
    return table(columns, rows, none="nothing was used in this time", numbers=range(1, 8))
