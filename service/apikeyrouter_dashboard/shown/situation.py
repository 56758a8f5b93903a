"""What is wrong, what it costs, what happens next, what to do: read off the pool, the budgets and the providers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.pool import OUT, back, condition
from apikeyrouter_dashboard.shown.words import badge, by, count, dollars, facts_strip, first_sentence, percent, when

__all__ = ["Incident", "incidents", "strip", "told"]

Told = Mapping[str, Any]
SLOW_TIMES, SLOW_MS = 4.0, 1000
"""A provider is slow that takes so many times as long as the others, and longer than that."""
SPENT_SHARE = 0.8
NAMES_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One thing that an operator should know: how bad (bad, warn), what, what follows, what to do."""

    level: str
    what: str
    follows: Markup
    todo: str


def incidents(keys: Sequence[Told], budgets: Sequence[Told], now: datetime) -> list[Incident]:
    """Everything that is wrong, the worst first."""
    found = [*_out(keys, now), *_slow(keys), *_spent(budgets, now)]
    return sorted(found, key=lambda one: one.level != "bad")


def _out(keys: Sequence[Told], now: datetime) -> Iterable[Incident]:
    """Keys that cannot serve, by what they have in common."""
    total = len(keys)
    for (name, group), members in _alike(keys).items():
        ids = _names([str(key["id"]) for key in members])
        serving = sum(condition(key) not in OUT for key in keys)
        rest = f"{serving} of {total} keys serve"
        if name == "exhausted":
            peers = [key for key in keys if key["quota_group"] == group]
            what = f"Quota group {group} is exhausted" if len(members) == len(peers) else f"{ids}: exhausted"
            yield Incident(
                level="bad", what=f"{what} ({len(members)} of {len(peers)} keys)",
                follows=Markup("{}; {}").format(back(members[0], now), rest),
                todo="Wait for the reset, add a key of another organisation, or raise the limit with the provider.",
            )  # fmt: skip
        elif name == "invalid":
            yield Incident(
                level="bad", what=f"The provider refuses {ids}",
                follows=Markup("“{}”; {}").format(
                    first_sentence(members[0]["state_reason"] or "no reason was given"), rest
                ),
                todo="Rotate the key: open it, give it new material.",
            )  # fmt: skip
        elif name == "out":
            yield Incident(
                level="bad", what=f"{ids}: kept out by {members[0]['out_lane'] or 'an open breaker'}",
                follows=Markup("{}; {}").format(back(members[0], now), rest),
                todo="Look at the provider's status; probe a key to see whether it answers again.",
            )  # fmt: skip
        elif name == "throttled":
            yield Incident(
                level="warn", what=f"{ids}: throttled by the provider",
                follows=Markup("{}; {}").format(back(members[0], now), rest),
                todo="Nothing, if it ends by itself; a lower limit here would avoid it.",
            )  # fmt: skip


def _alike(keys: Sequence[Told]) -> dict[tuple[str, str], list[Told]]:
    """Keys that are out, by how and where: one line for an organisation or provider, not one for each of its keys."""
    found: dict[tuple[str, str], list[Told]] = {}
    for key in keys:
        name = condition(key)
        if name in OUT and name != "disabled":
            where = {"exhausted": key["quota_group"], "out": key["out_lane"] or ""}.get(name, key["provider_id"])
            found.setdefault((name, str(where)), []).append(key)
    return found


def _slow(keys: Sequence[Told]) -> Iterable[Incident]:
    typical = {
        name: median(told)
        for name, members in by(keys, "provider_id").items()
        if (told := [key["latency_ms"] for key in members if key["latency_ms"]])
    }
    for name, latency in typical.items():
        others = [other for provider, other in typical.items() if provider != name]
        if others and latency > SLOW_MS and latency > SLOW_TIMES * median(others):
            yield Incident(
                level="warn", what=f"Provider {name} is slow",
                follows=Markup("{} ms a request, the others {} ms; objective latency goes around it").format(
                    count(round(latency)), count(round(median(others)))
                ),
                todo="Look at its status page; take its keys out, or set a shorter time-out, if it does not end.",
            )  # fmt: skip


def _spent(budgets: Sequence[Told], now: datetime) -> Iterable[Incident]:
    for budget in budgets:
        taken = budget["settled_usd"] + budget["held_usd"] + budget["suspense_usd"]
        share = taken / budget["limit_usd"] if budget["limit_usd"] else 1.0
        if share < SPENT_SHARE:
            continue
        hard = budget["enforcement"] == "hard"
        forecast = budget["forecast"] or {}
        ends = Markup("used up {}").format(when(forecast["used_up_at"], now)) if forecast.get("used_up_at") else ""
        over = "requests are refused" if hard else "nothing is refused (soft)"
        resets = Markup("resets {}").format(when(budget["resets_at"], now, unknown="never"))
        yield Incident(
            level="bad" if hard and share >= 1 else "warn",
            what=f"Budget {budget['id']}: {percent(share)} of {dollars(budget['limit_usd'])} gone",
            follows=Markup(", ").join(part for part in (ends, over if share >= 1 else f"then {over}", resets) if part),
            todo="Raise the limit, or move work to what costs less.",
        )  # fmt: skip


def _names(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:NAMES_MAX])
    return shown if len(ids) <= NAMES_MAX else f"{shown} and {len(ids) - NAMES_MAX} more"


def told(found: Sequence[Incident]) -> Markup:
    """Incidents as a list; one calm line where there are none."""
    if not found:
        return Markup('<p class="calm"><i aria-hidden="true">✓</i> Nothing is wrong that this page knows of.</p>')
    rows = Markup("").join(
        Markup('<li class="is-{}"><strong>{} {}</strong><span>{}</span><span class="todo">→ {}</span></li>').format(
            one.level, badge(one.level, "!" if one.level == "bad" else "△"), one.what, one.follows, one.todo
        )
        for one in found
    )
    return Markup('<ul class="incidents">{}</ul>').format(rows)


def strip(state: Told, health: Told) -> Markup:
    """The deployment in one line."""
    keys, costs = state["keys"], state["costs"]
    unpriced = costs["unpriced_requests"]
    facts = [
        ("keys that serve", f"{keys['available'] + keys['recovering']} of {keys['total']}"),
        ("spent", dollars(costs["total_spent"]) + (f" + {unpriced} unpriced" if unpriced else "")),
        ("held", dollars(costs["held"])),
        ("in suspense", dollars(costs["suspense"])),
        ("store", "answers" if health["status"] == "healthy" else "degraded"),
        ("version", health["version"]),
    ]
    return facts_strip(facts)
