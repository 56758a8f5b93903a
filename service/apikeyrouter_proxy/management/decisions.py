"""Decisions: why requests went where they went, whichever worker served them."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from apikeyrouter.domain.interfaces.state_store import QUERY_LIMIT_MAX, StateQuery
from apikeyrouter.domain.models.routing_decision import RoutingDecision
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.management.desk import Page, ReadDesk, cursor_at

__all__ = ["routes"]

routes = APIRouter()
RequestId = Annotated[str, Path(min_length=1, max_length=256)]


@routes.get("/decisions")
async def list_decisions(
    desk: ReadDesk,
    page: Page,
    key_id: Annotated[str | None, Query(max_length=256)] = None,
    provider_id: Annotated[str | None, Query(max_length=256)] = None,
) -> dict[str, Any]:
    """The latest decisions of all workers, newest first. Their candidates are shown one decision at a time."""
    query = StateQuery("RoutingDecision", key_id=key_id, provider_id=provider_id, limit=QUERY_LIMIT_MAX)
    found: list[RoutingDecision] = await desk.router.state_store.query_state(query)
    newest = sorted(found, key=_place, reverse=True)
    after = page.after
    rest = [one for one in newest if _place(one) < after] if after else newest
    shown = rest[: page.limit]
    more = len(rest) > len(shown)
    return {
        "decisions": [one.model_dump(mode="json", exclude={"candidates"}) for one in shown],
        "total": len(newest),
        "next_cursor": cursor_at(_place(shown[-1])) if more else None,
    }


@routes.get("/decisions/{request_id}")
async def get_decision(desk: ReadDesk, request_id: RequestId) -> dict[str, Any]:
    """One decision with all its candidates and numbers, and the same in words."""
    try:
        explained = await desk.router.explain(request_id)
    except InvalidRequestError as exc:
        raise Refused(404, "not_found", f"nobody remembers a request {request_id!r}") from exc
    return {**explained.decision.model_dump(mode="json"), "text": explained.text}


def _place(decision: RoutingDecision) -> str:
    return f"{decision.timestamp.timestamp():020.6f} {decision.id}"
