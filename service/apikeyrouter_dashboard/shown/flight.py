"""Open reservations: how old, how long leased, what they hold."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, count, dollars, facts_strip, moment, span_of, table, when

__all__ = ["flight", "reclaimed", "summary"]

Told = Mapping[str, Any]
OLD_SECONDS = 60


def summary(found: Sequence[Told], suspended: Sequence[Told]) -> Markup:
    """What is held, in one line; and what was reclaimed after crashes."""
    facts = [
        ("open", count(len(found))), ("money held", dollars(sum(one["held_usd"] for one in found))),
        ("tokens held", count(sum(_tokens(one) for one in found))),
        ("reclaimed, in suspense", count(len(suspended))),
        ("money in suspense", dollars(sum(one["held_usd"] for one in suspended))),
    ]  # fmt: skip
    return facts_strip(facts)


def flight(found: Sequence[Told], now: datetime) -> Markup:
    """Every open reservation, the oldest first."""
    rows = [
        (
            _age(one, now), _call(one), _key(one), when(one["deadline"], now),
            _tokens(one) or Markup('<span class="unknown">not metered</span>'), dollars(one["held_usd"]),
            ", ".join(scope["id"] for scope in one["scopes"]),
            ", ".join(lane for lane in one["lanes"] if not lane.startswith(("k:", "p:"))),
            Markup('<code title="reservation {}">{}</code>').format(one["id"], one["worker"]),
        )
        for one in sorted(found, key=lambda one: one["created_at"])
    ]  # fmt: skip
    columns = ["age", "request", "key", "lease ends", "tokens", "held", "budgets", "lanes", "worker"]
    return table(columns, rows, none="nothing is in flight", numbers=(4, 5))


def reclaimed(found: Sequence[Told], now: datetime) -> Markup:
    """What came back when a lease ended: requests and concurrency at once, money once it is resolved."""
    rows = [
        (
            when(one["created_at"], now), when(one["deadline"], now), _key(one), dollars(one["held_usd"]),
            ", ".join(scope["id"] for scope in one["scopes"]),
            Markup('<code title="reservation {}">{}</code>').format(one["id"], one["worker"]),
        )
        for one in sorted(found, key=lambda one: str(one["deadline"]), reverse=True)
    ]  # fmt: skip
    columns = ["began", "lease ended", "key", "in suspense", "budgets", "worker"]
    return table(columns, rows, none="nothing had to be reclaimed that is still open", numbers=(3,))


def _call(one: Told) -> Markup:
    """What it is held for. What another worker holds is told once it is open for some time."""
    call = one["call"]
    if call is None:
        return Markup('<span class="dim" title="another worker told nothing of it yet">young</span>')
    more = [f"attempt {call['attempt']}"] if call["attempt"] > 1 else []
    more += ["stream"] if call["stream"] else []
    more += [f"client {call['client']}"] if call["client"] else []
    told = ", ".join([call["model"], *more])
    return Markup('<code title="{}">…{}</code> <span class="dim">{}</span>').format(
        call["request_id"], call["request_id"][-10:], told
    )


def _age(one: Told, now: datetime) -> Markup:
    began = moment(one["created_at"]) or now
    seconds = (now - began).total_seconds()
    return badge("constrained" if seconds > OLD_SECONDS else "free", span_of(seconds))


def _key(one: Told) -> str:
    return next((lane[2:] for lane in one["lanes"] if lane.startswith("k:")), "unknown")


def _tokens(one: Told) -> int:
    """What it was admitted for, of the limit that counts the most tokens."""
    told = [charge["amount"] for charge in one["charges"] if "t" in charge["limit"].rpartition("p")[0]]
    return max(told, default=0)
