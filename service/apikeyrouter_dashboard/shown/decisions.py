"""Decisions: which request went where, and for one of them, why: every candidate with its numbers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, button, count, dollars, note, table, tight, told_at, when

__all__ = ["explained", "listed", "matches"]

Told = Mapping[str, Any]


def matches(decision: Told, wanted: str) -> bool:
    """Whether a decision has that text in it."""
    fields = ("request_id", "selected_key_id", "selected_provider_id", "model", "explanation")
    return not wanted or any(wanted in str(decision[name]).lower() for name in fields)


def listed(found: Sequence[Told], now: datetime) -> Markup:
    """Decisions in rows, as they came."""
    rows = [
        (
            when(one["timestamp"], now), button("explain", one["request_id"], kind="link", id=one["request_id"]),
            tight(one["model"]), one["client"] or one["team"] or "–", _went(one), _attempts(one),
            spent(one["total_us"]), _cost(one), one["objective"]["primary"], ", ".join(one["policy_ids"]),
        )
        for one in found
    ]  # fmt: skip
    columns = ["when", "request", "model", "for", "went to", "attempts", "took", "cost", "objective", "policies"]
    return table(columns, rows, none="no such decision", numbers=(6, 7))


def spent(us: int | None) -> str:
    """How long something took."""
    if not us:
        return "–"
    return f"{us / 1e6:.1f} s" if us >= 1_000_000 else f"{us / 1000:.0f} ms" if us >= 10_000 else f"{us / 1000:.1f} ms"


def _cost(decision: Told) -> str:
    if decision["cost"] is None:
        return "unknown" if decision["outcome"] == "ok" else "–"
    return f"{dollars(decision['cost'])}{' estimated' if decision['cost_estimated'] else ''}"


def _went(decision: Told) -> Markup:
    if decision["selected_key_id"]:
        failed = decision["outcome"] not in ("ok", "pending", "")
        return Markup("{} <span class='dim'>{}</span> {}").format(
            decision["selected_key_id"], decision["selected_provider_id"],
            badge("bad", f"✕ {decision['outcome'].replace('_', ' ')}") if failed else "",
        )  # fmt: skip
    first = str(decision["explanation"]).partition("nothing was held; ")[2] or str(decision["explanation"])
    return Markup("{} <span class='dim'>{}</span>").format(badge("denied", "✕ refused"), first[:120])


def _attempts(decision: Told) -> Markup:
    """A retry that was absorbed is no outage, and is not shown as one."""
    number = decision["attempts"]
    if number < 2:
        return Markup("{}").format(number)
    if decision["outcome"] == "ok":
        return badge("held", f"{number}: absorbed")
    return badge("bad", f"{number}: all failed")


def explained(decision: Told) -> Markup:
    """One decision with its candidates, what each of them measured, and why each loser lost."""
    parts = sorted({name for one in decision["candidates"] for name in one["parts"]})
    rows = [
        (
            tight(one["key_id"]), one["provider_id"], badge(one["outcome"], one["outcome"]), _number(one["score"]),
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
        ("Time", _times(decision)), ("Tokens and money", _used(decision)),
    ]  # fmt: skip
    told = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(name, text) for name, text in facts)
    candidates = table(columns, rows, none="there was no candidate", numbers=range(3, 5 + len(parts)))
    return Markup('<dl class="facts">{}</dl>{}<h3>Candidates</h3>{}<h3>In words</h3><pre>{}</pre>').format(
        told, _tried(decision), candidates, decision["text"]
    )


def _times(decision: Told) -> str:
    """Where the time went, in the order in which it did."""
    if not decision["total_us"]:
        return "not over yet, or never sent"
    reserve = sum(one["reserve_us"] for one in decision["tried"])
    parts = [
        ("in the queue", decision["waited_us"]), ("reserve", reserve), ("at the provider", decision["upstream_us"]),
        ("first token after", decision["first_token_us"]), ("here", decision["overhead_us"]),
    ]  # fmt: skip
    told = ", ".join(f"{name} {spent(us)}" for name, us in parts if us)
    return f"{spent(decision['total_us'])} in all: {told}"


def _used(decision: Told) -> str:
    """Estimate against actual, of the attempt that ended it."""
    if not decision["tried"]:
        return "nothing was sent"
    last = decision["tried"][-1]
    expected = (
        f"admitted for {count(last['expected_input_tokens'])} + {count(last['expected_output_tokens'])} tokens,"
        f" {dollars(last['expected_cost'])}"
    )
    if decision["input_tokens"] is None:
        return f"{expected}; what was used is not known"
    used = f"{count(decision['input_tokens'])} + {count(decision['output_tokens'])} tokens, {dollars(decision['cost'])}"
    return f"{expected}; used {used}{' (estimated)' if decision['cost_estimated'] else ''}"


def _tried(decision: Told) -> Markup:
    """Every attempt, in order. Those before the one that answered were absorbed: the caller never saw them."""
    if not decision["tried"]:
        return Markup("")
    rows = [
        (
            number, one["key_id"], Markup("{} <span class='dim'>{}</span>").format(one["model"], one["provider_id"]),
            _ended(one, absorbed=_absorbed(decision)), one["status"] or "–", spent(one["reserve_us"]),
            spent(one["upstream_us"]), dollars(one["cost"]), Markup("<code>{}</code>").format(one["worker"]),
        )
        for number, one in enumerate(decision["tried"], start=1)
    ]  # fmt: skip
    columns = ["", "key", "model", "ended", "status", "reserve", "at the provider", "booked", "worker"]
    return Markup("<h3>Attempts</h3>{}").format(table(columns, rows, numbers=(4, 5, 6, 7)))


def _ended(attempt: Told, *, absorbed: bool) -> Markup:
    if not attempt["failure"]:
        return badge("ok", "✓ answered")
    why = str(attempt["failure"]).replace("_", " ")
    return badge("held", f"↷ absorbed: {why}") if absorbed else badge("bad", f"✕ {why}")


def _absorbed(decision: Told) -> bool:
    return bool(decision["attempts"] > 1 and decision["outcome"] == "ok")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"


def fresh(number: int) -> Markup:
    """That so many have come since."""
    if not number:
        return note("live: nothing new")
    return button("renew", f"{number} new – show them")
