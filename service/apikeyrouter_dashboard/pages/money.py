"""Budgets, suspense and spend over time."""

import asyncio
import time
from datetime import datetime
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.management import path_of
from apikeyrouter_dashboard.pages.forms import Field, Form, number
from apikeyrouter_dashboard.pages.frame import Action, Block, Page, Told, ask_first
from apikeyrouter_dashboard.pages.ranges import days_of, range_toggle
from apikeyrouter_dashboard.shown import money as shown
from apikeyrouter_dashboard.shown.charts import stacked

__all__ = ["MoneyPage"]


LATEST_MAX = 300
LATEST_SECONDS = 15.0
"""How long to rest between two looks at the latest requests."""


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
                range_toggle(self.session, self.look)
                self._by = ui.toggle({name: f"by {name}" for name in shown.DIMENSIONS}, value="team",
                                     on_change=self.look)  # fmt: skip
                self._by.props('no-caps dense unelevated toggle-color=primary aria-label="By"')
            with ui.element("div").classes("panels"):
                with ui.element("div"):
                    ui.html("<h3>Dollars</h3>", sanitize=False)
                    self._chart = ui.echart(stacked([], {}, "$")).classes("chart")
                with ui.element("div"):
                    ui.html("<h3>Tokens</h3>", sanitize=False)
                    self._tokens = ui.echart(stacked([], {}, "")).classes("chart")
            with ui.expansion("The same as tables").classes("wide"):
                self._table = Block()
                self._by_day = Block()
        with ui.element("section").classes("panel"):
            ui.html(f"<h2>Estimate against actual <span class='dim'>of the last {LATEST_MAX} requests, where the "
                    "provider told what was used</span></h2>", sanitize=False)  # fmt: skip
            self._actual = Block()
            self._latest: list[Told] = []
            self._latest_at = 0.0

    async def _read(self) -> Any:
        api, days = self.session.api, [day.isoformat() for day in days_of(self.session)]
        dimension = str(self._by.value)
        budgets, suspended, usage = await asyncio.gather(
            api.pages("/budgets", "budgets"), api.pages("/suspense", "suspense", most=500),
            api.pages("/usage", "usage", by=f"day,{dimension}", since=days[0], until=days[-1]),
        )  # fmt: skip
        if time.monotonic() >= self._latest_at:
            self._latest = await api.pages("/decisions", "decisions", most=LATEST_MAX)
            self._latest_at = time.monotonic() + LATEST_SECONDS
        return {"budgets": budgets, "suspense": suspended, "usage": usage, "days": days, "by": dimension}

    def _show(self, told: Any, now: datetime) -> None:
        self._first.put(shown.first_to_block(told["budgets"], now))
        self._tree.put(shown.tree(told["budgets"], now))
        self._suspense.put(shown.suspense(told["suspense"], now, may=self.session.may("operate")))
        days = told["days"]
        dollars, tokens = (shown.series(told["usage"], told["by"], days, of) for of in (shown.cost_of, shown.tokens_of))
        self._draw(self._chart, stacked(days, dollars, "$"))
        self._draw(self._tokens, stacked(days, tokens, ""))
        self._table.put(shown.spend_table(told["usage"], told["by"]))
        self._actual.put(shown.against_actual(self._latest))
        self._by_day.put(shown.by_day(days, dollars, tokens))

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
