"""The demo's live table and its last words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from apikeyrouter.commands.demo.figures import NANOUSD_PER_USD, UTILISATION_GOAL, Figures
from apikeyrouter.commands.demo.plan import CONTROL_ORGANISATION
from apikeyrouter.domain.models.accounting import LaneState, ScopeState

__all__ = ["View", "draw", "last_words"]


@dataclass(slots=True)
class View:
    """What the table shows at a moment."""

    headline: str = "starting"
    report: Mapping[str, Any] = field(default_factory=dict)
    lanes: Sequence[LaneState] = ()
    budget: ScopeState | None = None
    clients: Mapping[str, Any] = field(default_factory=dict)
    now_us: int = 0


def draw(view: View) -> RenderableType:
    """Organisations with their keys, then totals."""
    table = Table(title=view.headline, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("organisation / key")
    for column in ("admitted", "limit used", "in flight", "refused there", "state", "billed $"):
        table.add_column(column, justify="right")
    lanes = {lane.id: lane for lane in view.lanes}
    for name, seen in view.report.get("organisations", {}).items():
        if name != CONTROL_ORGANISATION:
            _add_organisation(table, name, seen, lanes, view.now_us)
    return Group(table, Text(_totals(view)))


def _add_organisation(
    table: Table, name: str, seen: Mapping[str, Any], lanes: Mapping[str, LaneState], now_us: int
) -> None:
    group = next((lane for lane in lanes.values() if lane.id.startswith(f"g:{name}:")), None)
    table.add_row(name, *_cells(seen, group, now_us), style="bold")
    for key, one in seen["keys"].items():
        table.add_row(f"  {key}", *_cells(one, lanes.get(f"k:{key}"), now_us))


def _cells(seen: Mapping[str, Any], lane: LaneState | None, now_us: int) -> list[str]:
    used = max((limit.used / limit.capacity for limit in lane.limits if limit.capacity), default=None) if lane else None
    return [
        str(seen["admitted"]),
        "" if used is None else f"{used:.0%}",
        str(seen["in_flight"]),
        str(seen["over_limit"]),
        _state(lane, used, now_us),
        _dollars(seen["cost_nanousd"]),
    ]


def _state(lane: LaneState | None, used: float | None, now_us: int) -> str:
    if lane is None:
        return ""
    if lane.breaker != "closed":
        return f"breaker {lane.breaker}"
    if lane.blocked_until_us > now_us:
        return "cooling"
    return "full" if used is not None and used >= 0.99 else "available"


def _totals(view: View) -> str:
    clients, budget = view.clients, view.budget
    if not clients or budget is None:
        return ""
    return (
        f"clients: {clients['sent']} sent, {clients['answered']} answered, {clients['denied']} denied, "
        f"{clients['failed_over']} failed over, {clients['lost']} lost; "
        f"added latency {clients['overhead_ms_p50']} ms p50, {clients['overhead_ms_p99']} ms p99\n"
        f"books: settled ${_dollars(budget.settled)}, held ${_dollars(budget.held)}, "
        f"in suspense ${_dollars(budget.suspense)}"
    )


def last_words(figures: Figures) -> str:
    """What was admitted, denied, failed over, over the limit, spent and used, a line each."""
    agree = "agree" if figures.books_agree else "DIFFER"
    suspense = (
        f"; up to ${_dollars(figures.suspense_nanousd)} of a killed worker's requests in suspense"
        if figures.suspense_nanousd
        else ""
    )
    return "\n".join(
        [
            f"admitted       {figures.admitted} of {figures.offered} offered in {figures.seconds:g} s",
            f"denied         {figures.denied} by the router, at once, with a time to come back",
            f"failed over    {figures.failed_over} to another key after a provider's error",
            f"lost           {figures.lost}{_killed(figures)}; {figures.failed} other errors",
            f"over limit     {figures.over_limit} refused by the providers",
            f"capacity       {figures.utilisation:.1%} of the {figures.capacity} requests that the limits allowed "
            f"(goal {UTILISATION_GOAL:.0%})",
            f"spent          ${_dollars(figures.settled_nanousd)} in our books, "
            f"${_dollars(figures.billed_nanousd)} on the providers' bill: they {agree}{suspense}",
            f"control load   {figures.control_sent} requests around the router: "
            f"{figures.control_admitted} admitted, {figures.control_rejected} refused by the provider",
        ]
    )


def _killed(figures: Figures) -> str:
    return f" with worker {figures.killed_worker}, killed half way" if figures.killed_worker else ""


def _dollars(nanousd: int) -> str:
    return f"{nanousd / NANOUSD_PER_USD:.6f}"
