"""Who changed what; and whether the books agree with what is held."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from apikeyrouter.domain.models.system_error import LedgerUnavailableError
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.management.desk import AUDIT, Page, ReadDesk, cursor_at

__all__ = ["routes"]

LOOKED_AT_MAX = 20_000
"""Entries that one question with a filter looks at."""
BATCH = 1000

routes = APIRouter()
Filter = Annotated[str | None, Query(max_length=256)]


@routes.get("/audit")
async def list_audit(
    desk: ReadDesk, page: Page, kind: Filter = None, id: Filter = None, actor: Filter = None
) -> dict[str, Any]:
    """Changes made through management, newest first: who, when, what, from what to what. Never a secret."""
    wanted = {name: value for name, value in (("kind", kind), ("id", id), ("actor", actor)) if value is not None}
    found: list[dict[str, Any]] = []
    before, looked_at = page.after, 0
    if before and not before.replace("-", "").isdigit():
        raise Refused(400, "invalid_request", "cursor: is none that this service gave", param="cursor")
    while len(found) <= page.limit and looked_at < LOOKED_AT_MAX:
        batch = await desk.records.entries(AUDIT, before=before, limit=BATCH if wanted else page.limit + 1)
        found += [
            {"entry": entry_id, **entry}
            for entry_id, entry in batch
            if all(entry.get(name) == value for name, value in wanted.items())
        ]
        looked_at += len(batch)
        if not batch:
            break
        before = batch[-1][0]
    shown = found[: page.limit]
    return {"audit": shown, "next_cursor": cursor_at(shown[-1]["entry"]) if len(found) > page.limit else None}


@routes.get("/audit/ledger")
async def audit_ledger(desk: ReadDesk) -> dict[str, Any]:
    """Every counter that differs from what the open reservations add up to. There should be none.

    503: writes came in between during every try; ask again when there is less traffic.
    """
    catalogue = desk.router.catalogue
    lanes, scopes = catalogue.lane_ids(), list(catalogue.budget_rules())
    try:
        drifts = await desk.router.ledger.audit(lanes=lanes, scopes=scopes)
    except LedgerUnavailableError as exc:
        raise Refused(503, "ledger_busy", str(exc)) from exc
    return {
        "lanes": len(lanes), "scopes": len(scopes),
        "drift": [
            {"where": one.where, "counter": one.counter, "counted": one.counted, "recomputed": one.recomputed}
            for one in drifts
        ],
    }  # fmt: skip
