"""Traffic, workers, shares."""

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.pages.frame import Block, Page
from apikeyrouter_dashboard.shown import fleet as shown
from apikeyrouter_dashboard.shown.charts import timeline
from apikeyrouter_dashboard.shown.words import table

__all__ = ["FleetPage"]

SAMPLES_MAX = 300


class FleetPage(Page):
    """What the fleet does, since the page was opened."""

    path, title = "/fleet", "Fleet"
    seconds: ClassVar[float] = 3.0

    def _build(self) -> None:
        self._samples: deque[shown.Sample] = deque(maxlen=SAMPLES_MAX)
        self._workers = Block()
        with ui.element("section").classes("panel below"):
            ui.html(
                "<h2>Traffic <span class='dim'>requests a second, since this page was opened; denied here: no "
                "provider saw them</span></h2>", sanitize=False,
            )  # fmt: skip
            self._chart = ui.echart(timeline([], {}, "1/s")).classes("chart")
            with ui.expansion("The same as a table").classes("wide"):
                self._table = Block()
        with ui.element("div").classes("panels"):
            with ui.element("section").classes("panel"):
                ui.html("<h2>Shares of clients</h2>", sanitize=False)
                self._clients = Block()
            with ui.element("section").classes("panel"):
                ui.html("<h2>Shares of keys</h2>", sanitize=False)
                self._keys = Block()

    async def _read(self) -> Any:
        api, today = self.session.api, datetime.now(UTC).date().isoformat()
        text, health, clients, keys, named, audit = await asyncio.gather(
            api.metrics(), api.health(), api.pages("/usage", "usage", by="client", since=today, most=200),
            api.pages("/usage", "usage", by="key", since=today, most=200),
            api.pages("/clients", "clients", most=1000), api.get("/audit", limit=50),
        )  # fmt: skip
        if text:
            self._samples.append(shown.sample_of(text, datetime.now(UTC)))
        weights = {one["name"]: float(one["weight"]) for one in named}
        return {"health": health, "clients": clients, "keys": keys, "weights": weights, "audit": audit["audit"]}

    def _show(self, told: Any, now: datetime) -> None:
        samples = list(self._samples)
        self._workers.put(shown.workers(samples[-1] if samples else None, told["health"]))
        times, series = shown.rates(samples)
        self._draw(self._chart, timeline(times, series, "1/s", shown.marks(told["audit"], samples) if times else []))
        rows = [(at, *(told[n] for told in series.values())) for n, at in enumerate(times)][-30:]
        self._table.put(table(["at", *series], rows[::-1], none="the first points come in some seconds"))
        self._clients.put(shown.shares(told["clients"], "client", told["weights"]))
        self._keys.put(shown.shares(told["keys"], "key", {}))
