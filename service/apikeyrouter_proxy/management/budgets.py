"""Budgets: of the configuration file and of policies, shown; those made here, changed. Money is in dollars."""

import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, BeforeValidator, Field

from apikeyrouter.domain.components.budgets import budget_id
from apikeyrouter.domain.components.limits import known_timezone
from apikeyrouter.domain.models.accounting import SuspenseRule, UnpricedRule
from apikeyrouter.domain.models.budget import LIMIT_DOLLARS_MAX, Budget, BudgetScope, BudgetStatus, TimeWindow
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter_proxy.access import Refused
from apikeyrouter_proxy.management.desk import AdminDesk, Desk, Input, Made, Page, ReadDesk, Resource, page_of

__all__ = ["ClientBudget", "remove_budgets", "replace_budgets", "routes"]

routes = APIRouter()
BUDGET = Resource(
    kind="budget",
    counted=frozenset(
        {
            "settled_usd", "held_usd", "suspense_usd", "remaining_usd", "unpriced_usd", "unpriced_requests", "late_usd",
            "resets_at", "forecast", "cells",
        }
    ),
)  # fmt: skip
OF_CLIENT = "client-"
"""What the names of budgets begin with that a client was made with."""
BudgetId = Annotated[str, Path(min_length=1, max_length=400)]


def _finite(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise InvalidRequestError("must be a number of dollars")
    return Decimal(str(value))


Dollars = Annotated[
    Decimal,
    BeforeValidator(_finite, json_schema_input_type=float),
    Field(gt=0, le=LIMIT_DOLLARS_MAX, allow_inf_nan=False),
]
Zone = Annotated[str, Field(max_length=100), AfterValidator(known_timezone)]
Enforcement = Literal["hard", "soft"]
SuspenseSeconds = Annotated[int, Field(ge=60, le=30 * 86_400)]


class ClientBudget(Input):
    """A budget of one client."""

    limit_usd: Dollars
    period: TimeWindow = TimeWindow.Monthly
    enforcement: Enforcement = "hard"


class NewBudget(Input):
    """A budget to make. `name` tells budgets of one scope apart; absent, it is the period's."""

    scope: Literal["global", "provider", "key", "team", "client"]
    limit_usd: Dollars
    scope_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    period: TimeWindow = TimeWindow.Monthly
    enforcement: Enforcement = "hard"
    timezone: Zone = "UTC"
    unpriced: UnpricedRule | None = None
    flat_usd: Dollars | None = None
    suspense: SuspenseRule = SuspenseRule.CHARGE
    suspense_after_seconds: SuspenseSeconds = 3600


class BudgetUpdate(Input):
    """What is to change of a budget; the rest stays. What was spent stays."""

    limit_usd: Dollars | None = None
    period: TimeWindow | None = None
    enforcement: Enforcement | None = None
    timezone: Zone | None = None
    unpriced: UnpricedRule | None = None
    flat_usd: Dollars | None = None
    suspense: SuspenseRule | None = None
    suspense_after_seconds: SuspenseSeconds | None = None


_NAMES = {"limit_usd": "limit", "flat_usd": "flat", "enforcement": "enforcement_mode"}


@routes.post("/budgets", status_code=201)
async def create_budget(desk: AdminDesk, new: NewBudget) -> Response:
    """Make a budget: in force here at once, elsewhere within a second. The same again: 200."""

    async def make() -> Made:
        id_ = budget_id(BudgetScope(new.scope), new.scope_id, new.name or new.period.value)
        known = {budget.id for budget in await desk.router.cost_controller.list_budgets()}
        if id_ in known:
            return _same(new, await _shown(desk, id_))
        await desk.router.cost_controller.create_budget(
            new.scope, new.limit_usd, new.period, new.enforcement, new.scope_id, name=new.name, timezone=new.timezone,
            unpriced=new.unpriced, flat=new.flat_usd or 0, suspense=new.suspense,
            suspense_after_seconds=new.suspense_after_seconds,
        )  # fmt: skip
        return Made(id=id_, shown=await _shown(desk, id_))

    return await desk.create(BUDGET, new, make)


@routes.get("/budgets")
async def list_budgets(
    desk: ReadDesk, page: Page, scope: str | None = None, scope_id: str | None = None
) -> dict[str, Any]:
    """Every budget, with its books as of now."""
    found = [
        budget
        for budget in await desk.router.cost_controller.list_budgets()
        if scope in (None, budget.scope.value) and scope_id in (None, budget.scope_id)
    ]
    paged = page_of("budgets", ({"id": budget.id} for budget in found), page)
    return {**paged, "budgets": [one async for one in _still_there(desk, paged["budgets"])]}


@routes.get("/budgets/{budget_id:name}")
async def get_budget(desk: ReadDesk, budget_id: BudgetId) -> Response:
    """One budget, with its books as of now."""
    return BUDGET.answer(await _shown(desk, budget_id))


@routes.patch("/budgets/{budget_id:name}")
async def update_budget(desk: AdminDesk, budget_id: BudgetId, new: BudgetUpdate) -> Response:
    """Change a budget that was made here. A changed period goes on with what was counted where the two overlap."""
    told = {name: getattr(new, name) for name in new.model_fields_set if getattr(new, name) is not None}

    async def write() -> None:
        _refuse_foreign(desk, budget_id)
        changes = {_NAMES.get(name, name): value for name, value in told.items()}
        if changes:
            await desk.router.cost_controller.update_budget(budget_id, **changes)

    return await desk.change(BUDGET, budget_id, lambda: _shown(desk, budget_id), write)


@routes.delete("/budgets/{budget_id:name}", status_code=204, response_class=Response)
async def delete_budget(desk: AdminDesk, budget_id: BudgetId) -> Response:
    """Forget a budget that was made here. What is held in it ends as it does."""

    async def remove() -> None:
        _refuse_foreign(desk, budget_id)
        await desk.router.cost_controller.delete_budget(budget_id)

    return await desk.delete(BUDGET, budget_id, lambda: _shown(desk, budget_id), remove)


async def replace_budgets(desk: Desk, client: str, budgets: list[ClientBudget]) -> None:
    """Give a client these budgets instead of those that it was made with. Raises InvalidRequestError."""
    names = [_name(budget) for budget in budgets]
    if len(set(names)) < len(names):
        raise InvalidRequestError("has two of the same period and enforcement", field="budgets")
    await remove_budgets(desk, client, but=frozenset(names))
    for budget, name in zip(budgets, names, strict=True):
        await desk.router.cost_controller.create_budget(
            BudgetScope.Client, budget.limit_usd, budget.period, budget.enforcement, client, name=name
        )


async def remove_budgets(desk: Desk, client: str, *, but: frozenset[str] = frozenset()) -> None:
    """Forget the budgets that a client was made with."""
    for budget in await desk.router.cost_controller.list_budgets():
        mine = budget.scope is BudgetScope.Client and budget.scope_id == client
        if mine and budget.name.startswith(OF_CLIENT) and budget.name not in but:
            await desk.router.cost_controller.delete_budget(budget.id)


def _name(budget: ClientBudget) -> str:
    return f"{OF_CLIENT}{budget.enforcement}-{budget.period.value}"


def _same(new: NewBudget, known: dict[str, Any]) -> Made:
    wanted = new.model_dump(exclude={"name", "unpriced"}, exclude_none=True)
    if known["source"] == "code" and all(_json(value) == known[name] for name, value in wanted.items()):
        return Made(id=known["id"], shown=known, is_new=False)
    raise Refused(
        409, "name_taken", f"budget {known['id']!r} exists with other settings; PATCH changes it", param="name"
    )


def _json(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else value


def _refuse_foreign(desk: Desk, id: str) -> None:
    rule = desk.router.catalogue.budget_rules().get(id)
    if rule is not None and rule.source != "code":
        where = "the configuration file" if rule.source == "file" else "a policy"
        raise Refused(409, "declared_elsewhere", f"budget {id!r} is declared in {where}; change it there")


async def _still_there(desk: Desk, listed: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for one in listed:
        with contextlib.suppress(Refused):  # deleted since it was listed
            yield await _shown(desk, one["id"])


async def _shown(desk: Desk, id: str) -> dict[str, Any]:
    """What is there now: another worker may take it away at any moment."""
    controller = desk.router.cost_controller
    try:
        budget = await controller.get_budget(id)
        rule = desk.router.catalogue.budget_rules().get(id)
        status = await controller.get_budget_status(id)
    except InvalidRequestError as exc:
        raise Refused(404, "not_found", f"no budget {id!r}") from exc
    return show(budget, status, "code" if rule is None else rule.source)


def show(budget: Budget, status: BudgetStatus, source: str) -> dict[str, Any]:
    """A budget and its books, in JSON types."""
    return {
        "id": budget.id, "name": budget.name, "scope": budget.scope.value, "scope_id": budget.scope_id,
        "limit_usd": float(budget.limit), "period": budget.period.value, "enforcement": budget.enforcement_mode.value,
        "timezone": budget.timezone, "unpriced": budget.unpriced.value, "flat_usd": float(budget.flat) or None,
        "suspense": budget.suspense.value, "suspense_after_seconds": budget.suspense_after_seconds, "source": source,
        "settled_usd": float(status.settled), "held_usd": float(status.held), "suspense_usd": float(status.suspense),
        "remaining_usd": float(status.remaining), "unpriced_usd": float(status.unpriced),
        "unpriced_requests": status.unpriced_requests, "late_usd": float(status.late),
        "resets_at": None if status.resets_at is None else status.resets_at.isoformat(),
        "forecast": None if status.forecast is None else status.forecast.model_dump(mode="json"),
        "cells": [
            {
                "cell": one.cell, "granted_usd": float(one.granted), "settled_usd": float(one.settled),
                "held_usd": float(one.held), "suspense_usd": float(one.suspense), "free_usd": float(one.free),
            }
            for one in status.cells
        ],
    }  # fmt: skip
