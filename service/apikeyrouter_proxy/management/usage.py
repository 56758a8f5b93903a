"""Usage and spend of the whole fleet, by any of client, team, key, provider, model and day; JSON or CSV."""

import csv
import io
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.management.desk import Page, ReadDesk, page_of
from apikeyrouter_proxy.usage import COUNTED, DIMENSIONS, report

__all__ = ["routes"]

DAYS_DEFAULT, DAYS_MAX = 30, 400
NANOUSD = 1_000_000_000

routes = APIRouter()
Only = Annotated[str | None, Query(max_length=256)]
CSV: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "As JSON, or with format=csv"}
}


@routes.get("/usage", responses=CSV)
async def get_usage(
    desk: ReadDesk,
    page: Page,
    by: Annotated[str, Query(description="Comma-separated: client, team, key, provider, model, day")] = "day",
    since: Annotated[date | None, Query(description="First day, UTC; default: 30 days back")] = None,
    until: Annotated[date | None, Query(description="Last day, UTC; default: today")] = None,
    client: Only = None,
    team: Only = None,
    key: Only = None,
    provider: Only = None,
    model: Only = None,
    format: Literal["json", "csv"] = "json",
) -> Any:
    """What was used on those days, at most a second old: requests, tokens, dollars. A report; budgets are the books."""
    wanted = tuple(dict.fromkeys(part.strip() for part in by.split(",") if part.strip()))
    unknown = [name for name in wanted if name not in (*DIMENSIONS, "day")]
    if unknown or not wanted:
        raise Refused(400, "invalid_request", f"by: must be of {', '.join((*DIMENSIONS, 'day'))}", param="by")
    last = until or datetime.now(UTC).date()
    first = since or _back(last, DAYS_DEFAULT - 1)
    count = (last - first).days + 1
    if not 1 <= count <= DAYS_MAX:
        raise Refused(400, "invalid_request", f"since: must be 1 to {DAYS_MAX} days before until", param="since")
    named = {"client": client, "team": team, "key": key, "provider": provider, "model": model}
    only = {name: value for name, value in named.items() if value is not None}
    await desk.runtime.usage.flush()
    rows = await report(desk.records, [first + timedelta(days=n) for n in range(count)], by=wanted, only=only)
    shown = [_shown(row) for row in rows]
    if format == "csv":
        return Response(_csv(wanted, shown), media_type="text/csv; charset=utf-8")
    total = _shown({name: sum(row[name] for row in rows) for name in COUNTED})
    placed = [{**row, "_place": f"{number:09d}"} for number, row in enumerate(shown)]
    paged = page_of("usage", placed, page, by=lambda row: str(row["_place"]))
    for row in paged["usage"]:
        del row["_place"]
    return {**paged, "since": first.isoformat(), "until": last.isoformat(), "by": list(wanted), "sum": total}


def _back(day: date, days: int) -> date:
    return day - timedelta(days=days) if day.toordinal() > days else date.min


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in row.items() if name != "cost_nanousd"}
    return {**told, "cost_usd": row["cost_nanousd"] / NANOUSD}


def _csv(by: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    columns = [*by, *(name for name in COUNTED if name != "cost_nanousd"), "cost_usd"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cost = f"{row['cost_usd']:.9f}"
        writer.writerow({**{name: _plain(value) for name, value in row.items()}, "cost_usd": cost})
    return text.getvalue()


def _plain(value: object) -> object:
    """A spreadsheet must not take a client's words for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
