"""Decisions: why requests went where they went, whichever worker served them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import Field

from apikeyrouter.domain.components.explaining import decision_of
from apikeyrouter.domain.interfaces.state_store import QUERY_LIMIT_MAX, StateQuery
from apikeyrouter.domain.models.call import Facts
from apikeyrouter.domain.models.routing_decision import RoutingDecision
from apikeyrouter.domain.models.system_error import InvalidRequestError, ModelNotFoundError
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.management.desk import Desk, Input, Page, ReadDesk, cursor_at

__all__ = ["routes"]

routes = APIRouter()
RequestId = Annotated[str, Path(min_length=1, max_length=256)]
Named = Annotated[str, Field(min_length=1, max_length=256)]
Only = Literal["refused", "retried"]
PROMPT_LENGTH_MAX = 100_000
TOKENS_MAX = 10_000_000


class Asked(Input):
    """A request to try out: a chat of one message."""

    model: Named
    prompt: Annotated[str, Field(min_length=1, max_length=PROMPT_LENGTH_MAX)] = "Hello"
    max_tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None = None
    provider_id: Named | None = None
    client: Named | None = None
    team: Named | None = None
    objective: Named | None = None


@routes.get("/decisions")
async def list_decisions(
    desk: ReadDesk,
    page: Page,
    key_id: Annotated[str | None, Query(max_length=256)] = None,
    provider_id: Annotated[str | None, Query(max_length=256)] = None,
    only: Only | None = None,
) -> dict[str, Any]:
    """The latest decisions of all workers, newest first. Candidates and attempts are shown of one decision.

    `only`: those that nothing was held for (refused), or that took more than one attempt (retried).
    """
    found = await _lately(desk, key_id, provider_id)
    newest = sorted((one for one in found if only is None or _is(one, only)), key=_place, reverse=True)
    after = page.after
    rest = [one for one in newest if _place(one) < after] if after else newest
    shown = rest[: page.limit]
    decisions = [decision_of(one) if isinstance(one, Facts) else one for one in shown]
    return {
        "decisions": [_listed(one) for one in decisions],
        "total": len(newest),
        "next_cursor": cursor_at(_place(shown[-1])) if len(rest) > len(shown) else None,
    }


def _listed(decision: RoutingDecision) -> dict[str, Any]:
    """One of many: without its candidates, and of its attempts what the last was admitted for."""
    last = decision.tried[-1] if decision.tried else None
    cost = None if last is None or last.expected_cost is None else str(last.expected_cost)
    return {
        **decision.model_dump(mode="json", exclude={"candidates", "tried"}),
        "expected": None if last is None else {
            "input_tokens": last.expected_input_tokens, "output_tokens": last.expected_output_tokens, "cost": cost,
        },
    }  # fmt: skip


async def _lately(desk: Desk, key_id: str | None, provider_id: str | None) -> Sequence[Facts | RoutingDecision]:
    """What was decided lately, wherever: as facts where the store tells them, so that only a page is worded."""
    told = await desk.router.state_store.recent_facts()
    if told:
        return [one for one in told if key_id in (None, one.key_id) and provider_id in (None, one.provider_id)]
    query = StateQuery("RoutingDecision", key_id=key_id, provider_id=provider_id, limit=QUERY_LIMIT_MAX)
    found: list[RoutingDecision] = await desk.router.state_store.query_state(query)
    return found


@routes.post("/decisions/dry-run")
async def try_request(desk: ReadDesk, asked: Asked) -> dict[str, Any]:
    """What would happen to such a request now, and why, with all candidates and numbers. Nothing is held or sent."""
    told = asked.model_dump(exclude_none=True, include={"model", "provider_id", "client", "team"})
    parameters = {} if asked.max_tokens is None else {"max_tokens": asked.max_tokens}
    intent = {**told, "messages": [{"role": "user", "content": asked.prompt}], "parameters": parameters}
    try:
        decision = await desk.router.dry_run(intent, asked.objective)
    except ModelNotFoundError as exc:
        raise Refused(400, "invalid_request", "model: no key serves it", param="model") from exc
    return {**decision.model_dump(mode="json"), "text": desk.router.routing_engine.explain_decision(decision)}


@routes.get("/decisions/{request_id}")
async def get_decision(desk: ReadDesk, request_id: RequestId) -> dict[str, Any]:
    """One decision with all its candidates and numbers, and the same in words."""
    try:
        explained = await desk.router.explain(request_id)
    except InvalidRequestError as exc:
        raise Refused(404, "not_found", f"nobody remembers a request {request_id!r}") from exc
    return {**explained.decision.model_dump(mode="json"), "text": explained.text}


def _is(decided: Facts | RoutingDecision, only: Only) -> bool:
    attempts = len(decided.attempts) if isinstance(decided, Facts) else decided.attempts
    served = bool(decided.attempts) if isinstance(decided, Facts) else bool(decided.selected_key_id)
    return attempts > 1 if only == "retried" else not served


def _place(decided: Facts | RoutingDecision) -> str:
    """What they are sorted by: when, and which."""
    if isinstance(decided, Facts):
        return f"{decided.at_us / 1e6:020.6f} {decided.request_id}"
    return f"{decided.timestamp.timestamp():020.6f} {decided.id}"
