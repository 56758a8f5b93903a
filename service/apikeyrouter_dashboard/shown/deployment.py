"""The deployment itself: its workers, the server behind the ledger, and what doctor finds."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import (
    UNKNOWN,
    badge,
    count,
    facts_strip,
    moment,
    percent,
    span_of,
    table,
    tight,
    when,
)

__all__ = ["banner", "deployments", "findings", "store", "workers"]

Told = Mapping[str, Any]
MODES = {
    "normal": ("ok", "✓ normal"), "lost": ("bad", "✕ lost"), "store_away": ("bad", "! store away"),
    "bounded": ("warn", "◔ serving from its share"), "draining": ("held", "↓ draining"),
}  # fmt: skip
CLOCK_MS_MAX = 1000
SLOW_US = 10_000
"""A worker's clock, and its reserves, are worth a mark from here on."""
TOGETHER = timedelta(seconds=10)
"""Workers that began within this of each other began together."""
VERDICTS = {"problem": ("bad", "! problem"), "warning": ("warn", "△ warning"), "ok": ("ok", "✓ fine")}


def banner(told: Sequence[Told]) -> Markup:
    """What is wrong with the deployment, over every page: problems in full, warnings when asked for."""
    problems, warnings = ([one for one in told if one["verdict"] == name] for name in ("problem", "warning"))
    lines = Markup("").join(
        Markup('<p class="is-bad">{} <b>{}</b>: {} <span class="todo">→ {}</span></p>').format(
            badge("bad", "!"), one["check"], one["found"], one["remedy"] or ""
        )
        for one in problems
    )
    if not warnings:
        return lines
    more = Markup("").join(
        Markup('<p><b>{}</b>: {} <span class="todo">→ {}</span></p>').format(
            one["check"], one["found"], one["remedy"] or ""
        )
        for one in warnings
    )
    names = ", ".join(dict.fromkeys(str(one["check"]) for one in warnings))
    return lines + Markup("<details><summary>{} {}</summary>{}</details>").format(
        badge("warn", f"△ {len(warnings)}"), f"of the set-up: {names}", more
    )


def findings(told: Sequence[Told]) -> Markup:
    """Everything that was checked, what is wrong first."""
    order = list(VERDICTS)
    rows = [
        (badge(*VERDICTS[one["verdict"]]), one["check"], one["found"], one["remedy"] or "–")
        for one in sorted(told, key=lambda one: order.index(one["verdict"]))
    ]
    return table(["", "check", "found", "what to do"], rows, none="nothing was checked yet")


def workers(found: Sequence[Told], now: datetime) -> Markup:
    """Every worker of every host; those that need somebody first."""
    order = ("lost", "store_away", "bounded", "draining", "normal")
    rows = [_worker(one, now) for one in sorted(found, key=lambda one: (order.index(one["state"]), one["host"]))]
    columns = [
        "worker", "mode", "heard", "up", "decisions/s", "open", "waiting", "reserve p50 / p99", "clock", "unsettled",
        "memory", "CPU", "version",
    ]  # fmt: skip
    return table(columns, rows, none="no worker has said anything", numbers=(4, 5, 6, 9, 10, 11))


def _worker(one: Told, now: datetime) -> tuple[object, ...]:
    began = moment(one["started_at"]) or now
    waiting = count(one["waiting"])
    if one["waiting"]:
        waiting += f", longest {span_of(one['waiting_longest_ms'] / 1000)}"
    return (
        Markup("<code>{}</code> <span class='dim'>{}:{}</span>").format(one["id"], one["host"], one["pid"]),
        badge(*MODES[one["state"]]), when(one["heard_at"], now), tight(span_of((now - began).total_seconds())),
        count(one["decisions_per_second"]), count(one["open_requests"]), waiting, _reserves(one), _clock(one),
        count(one["unsettled"]), megabytes(one["memory_bytes"]), percent(one["cpu_share"]),
        Markup("{} <span class='dim'>configuration {}</span>").format(one["version"], one["config_version"]),
    )  # fmt: skip


def _reserves(one: Told) -> Markup:
    if one["reserve_p50_us"] is None:
        return Markup('<span class="dim">none asked</span>')
    text = f"{milliseconds(one['reserve_p50_us'])} / {milliseconds(one['reserve_p99_us'])}"
    return badge("warn", text) if one["reserve_p50_us"] > SLOW_US else Markup("{}").format(text)


def _clock(one: Told) -> Markup:
    told = f"{one['clock_offset_ms']:+d} ms"
    if one["clock_suspected"]:
        return badge("bad", f"! in doubt {told}")
    return badge("warn", told) if abs(one["clock_offset_ms"]) > CLOCK_MS_MAX else Markup("{}").format(told)


def store(told: Told | None, found: Sequence[Told], now: datetime) -> Markup:
    """The server behind the ledger in some figures; and what all workers do over it."""
    if told is None:
        return Markup("<p>{}: the service did not say</p>").format(UNKNOWN)
    used, most = told["memory_bytes"], told["memory_max_bytes"]
    room = f" of {megabytes(most)} ({percent(used / most)})" if used and most else ", no maximum set"
    live = [one for one in found if one["state"] != "lost"]
    role = told["role"] or "unknown role"
    replicas = told["replicas"]
    return facts_strip(
        [
            ("server", f"{told['server']} {told['version']}"),
            ("role", f"{role}, {count(replicas)} {'replica' if replicas == 1 else 'replicas'}"),
            ("answers in", f"{milliseconds(told['ping_us'])}, at most {milliseconds(told['ping_us_max'])}"),
            ("operations", f"{count(told['operations_per_second'])}/s"),
            ("memory", megabytes(told["memory_bytes"]) + room),
            ("eviction", _word(told["eviction"], fine="noeviction")),
            ("persistence", _persistence(told)),
            ("saved", when(told["snapshot_at"], now) if not told["append_only"] else Markup("as it goes")),
            ("clients", count(told["clients"])),
            ("workers' decisions", f"{count(round(sum(one['decisions_per_second'] for one in live), 1))}/s"),
        ]
    )


def _word(told: str | None, *, fine: str) -> Markup:
    if told is None:
        return UNKNOWN
    return Markup("{}").format(told) if told == fine else badge("bad", f"! {told}")


def _persistence(told: Told) -> Markup:
    if told["append_only"] is None:
        return UNKNOWN
    if not told["append_only"]:
        return badge("warn", "△ no append-only file")
    return badge("bad", "! the last write failed") if told["append_only_ok"] is False else Markup("append-only file")


def megabytes(number: int | None) -> str:
    """Memory as it is read."""
    if number is None:
        return "unknown"
    return f"{number / 2**20:,.0f} MiB" if number < 2**30 else f"{number / 2**30:,.1f} GiB"


def milliseconds(us: int) -> str:
    """A short time."""
    return f"{us / 1000:.2g} ms" if us < 100_000 else f"{us / 1000:,.0f} ms"


def deployments(found: Sequence[Told]) -> list[tuple[datetime, str]]:
    """When workers began, those together that began together; and when others were lost."""
    told: list[tuple[datetime, str]] = []
    group: list[datetime] = []
    for at, version in sorted((datetime.fromisoformat(one["started_at"]), one["version"]) for one in found):
        if group and at - group[-1] <= TOGETHER:
            told.pop()
        else:
            group.clear()
        group.append(at)
        told.append((group[0], f"{len(group)} worker{'s' if len(group) > 1 else ''} began, {version}"))
    lost = [one for one in found if one["state"] == "lost"]
    return told + [(datetime.fromisoformat(one["heard_at"]), f"worker {one['id']} lost") for one in lost]
