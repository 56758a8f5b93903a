"""Budgets, suspense and spend over time."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.management import path_of
from apikeyrouter_dashboard.pages.forms import Field, Form, number
from apikeyrouter_dashboard.pages.frame import Action, Block, Page, ask_first
from apikeyrouter_dashboard.shown import money as shown
from apikeyrouter_dashboard.shown.charts import stacked

__all__ = ["MoneyPage"]

RANGES = {1: "today", 7: "7 days", 30: "30 days", 90: "90 days"}


class MoneyPage(Page):
    """What is settled, held, in suspense and free; who spends it; what blocks first."""

    path, title = "/money", "Money"
    seconds: ClassVar[float] = 3.0

    def _build(self) -> None:
        with ui.element("section").classes("panel"):
            ui.html("<h2>Budgets</h2>", sanitize=False)
            self._first = Block()
            self._tree = Block()
        with ui.element("section").classes("panel"):
            ui.html("<h2>In suspense</h2>", sanitize=False)
            self._suspense = Block()
        with ui.element("section").classes("panel"):
            ui.html("<h2>Spend</h2>", sanitize=False)
            with ui.row().classes("tools"):
                self._days = ui.toggle(RANGES, value=7, on_change=self.look).props(
                    'no-caps dense unelevated toggle-color=primary aria-label="Range"'
                )
                self._by = ui.toggle({name: f"by {name}" for name in shown.DIMENSIONS}, value="team",
                                     on_change=self.look)  # fmt: skip
                self._by.props('no-caps dense unelevated toggle-color=primary aria-label="By"')
            self._chart = ui.echart(stacked([], {}, "$")).classes("chart")
            with ui.expansion("The same as a table").classes("wide"):
                self._table = Block()

    async def _read(self) -> Any:
        api, today = self.session.api, datetime.now(UTC).date()
        since = today - timedelta(days=int(self._days.value) - 1)
        dimension = str(self._by.value)
        budgets, suspended, usage = await asyncio.gather(
            api.pages("/budgets", "budgets"), api.pages("/suspense", "suspense", most=500),
            api.pages("/usage", "usage", by=f"day,{dimension}", since=since.isoformat(), until=today.isoformat()),
        )  # fmt: skip
        days = [(since + timedelta(days=n)).isoformat() for n in range(int(self._days.value))]
        return {"budgets": budgets, "suspense": suspended, "usage": usage, "days": days, "by": dimension}

    def _show(self, told: Any, now: datetime) -> None:
        self._first.put(shown.first_to_block(told["budgets"], now))
        self._tree.put(shown.tree(told["budgets"], now))
        self._suspense.put(shown.suspense(told["suspense"], now, may=self.session.may("operate")))
        series = shown.spend_series(told["usage"], told["by"], told["days"])
        self._draw(self._chart, stacked(told["days"], series, "$"))
        self._table.put(shown.spend_table(told["usage"], told["by"]))

    def _actions(self) -> dict[str, Action]:
        return {
            "charge": lambda data: self._charge(data["id"]),
            "refund": lambda data: self._refund(data["id"]),
        }

    async def _charge(self, id: str) -> None:
        held = next((one["held_usd"] for one in self.told["suspense"] if one["id"] == id), 0.0)
        about = "Its budgets book that as spent, in the periods that were charged; what was held is free."
        amount = Field("cost_usd", "What it did cost, in dollars", f"{held:.9f}".rstrip("0"))

        async def save(given: dict[str, Any]) -> Any:
            return await self._resolve(id, {"action": "charge", "cost_usd": number(given["cost_usd"])})

        await Form(f"Charge {id[:12]}", [amount], about=about, act="Charge").ask(save)

    async def _refund(self, id: str) -> None:
        text = "It counts as never spent. If the provider bills it all the same, the books are too low."
        if await ask_first(f"Refund {id[:12]}?", text, act="Refund"):
            await self._resolve(id, {"action": "refund"})

    async def _resolve(self, id: str, body: dict[str, Any]) -> Any:
        return await self.send("POST", path_of("suspense", id, "resolve"), body, done=f"{body['action']}: done")
