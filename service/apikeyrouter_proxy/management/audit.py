"""Who changed what; and whether the books agree with what is held."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from apikeyrouter.domain.models.system_error import LedgerUnavailableError
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.audit_log import AUDIT
from apikeyrouter_proxy.management.desk import Page, ReadDesk, journal_page

__all__ = ["routes"]

routes = APIRouter()
Filter = Annotated[str | None, Query(max_length=256)]


@routes.get("/audit")
async def list_audit(
    desk: ReadDesk, page: Page, kind: Filter = None, id: Filter = None, actor: Filter = None
) -> dict[str, Any]:
    """Changes made through management, newest first: who, when, what, from what to what. Never a secret."""
    told = {name: value for name, value in (("kind", kind), ("id", id), ("actor", actor)) if value is not None}
    wanted = (lambda entry: all(entry.get(name) == value for name, value in told.items())) if told else None
    found, cursor = await journal_page(desk.records, AUDIT, page, wanted)
    return {"audit": [{"entry": id_, **entry} for id_, entry in found], "next_cursor": cursor}


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
