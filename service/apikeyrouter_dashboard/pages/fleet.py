"""Traffic, workers, the store, shares."""

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.management import Management, Refusal
from apikeyrouter_dashboard.pages.frame import Block, Page, Told, nothing
from apikeyrouter_dashboard.pages.ranges import days_of, is_live, range_toggle
from apikeyrouter_dashboard.shown import deployment
from apikeyrouter_dashboard.shown import fleet as shown
from apikeyrouter_dashboard.shown.charts import stacked, timeline
from apikeyrouter_dashboard.shown.words import table

__all__ = ["FleetPage"]

SAMPLES_MAX, ROWS_MAX = 300, 90
NO_STORE = 404


class FleetPage(Page):
    """What the fleet does, since the page was opened."""

    path, title = "/fleet", "Fleet"
    seconds: ClassVar[float] = 3.0

    def _build(self) -> None:
        self._samples: deque[shown.Sample] = deque(maxlen=SAMPLES_MAX)
        self._workers = self._section("Workers", "every host; each says every two seconds how it is")
        self._store = self._section("Store", "the server behind the ledger, by its own word")
        with ui.element("section").classes("panel"):
            _head("Traffic", "now: requests a second since this page was opened, of the host that answers; else all "
                             "requests of the fleet by day (UTC)")  # fmt: skip
            with ui.row().classes("tools"):
                range_toggle(self.session, self.look)
            self._chart = ui.echart(timeline([], {}, "1/s")).classes("chart")
            self._host = Block()
            with ui.expansion("The same as a table").classes("wide"):
                self._table = Block()
        with ui.element("div").classes("panels"):
            self._clients = self._section("Shares of clients", "of what was served in that time, by weight")
            self._keys = self._section("Shares of keys", "of what was served in that time")
            self._processes = self._section("Shares of workers", "of what is decided now")
            self._happened = self._section("What happened", "changes, states of keys, workers", "tall")
        self._findings = self._section("Set-up", "what doctor checks, and what to do")

    def _section(self, title: str, about: str, kind: str = "") -> Block:
        with ui.element("section").classes("panel"):
            _head(title, about)
            return Block(kind)

    async def _read(self) -> Any:
        api, live, days = self.session.api, is_live(self.session), [day.isoformat() for day in days_of(self.session)]

        def used(by: str, most: int) -> Any:
            return api.pages("/usage", "usage", by=by, since=days[0], until=days[-1], most=most)

        text, health, clients, keys, by_day, named, audit, workers, store, transitions = await asyncio.gather(
            api.metrics(), api.health(), used("client", 200), used("key", 200),
            nothing() if live else used("day", len(days)),
            api.pages("/clients", "clients", most=1000), api.get("/audit", limit=50),
            api.pages("/workers", "workers", most=1000), _store(api), api.get("/transitions", limit=50),
        )  # fmt: skip
        if text:
            self._samples.append(shown.sample_of(text, datetime.now(UTC)))
        weights = {one["name"]: float(one["weight"]) for one in named}
        return {
            "days": days, "by_day": None if live else by_day, "health": health, "clients": clients, "keys": keys,
            "weights": weights, "workers": workers, "store": store,
            "changes": shown.changes(audit["audit"], transitions["transitions"]),
        }  # fmt: skip

    def _show(self, told: Any, now: datetime) -> None:
        samples, workers = list(self._samples), told["workers"]
        self._workers.put(deployment.workers(workers, now))
        self._store.put(deployment.store(told["store"], workers, now))
        self._host.put(shown.host(samples[-1] if samples else None, told["health"]))
        found = [*told["changes"], *deployment.deployments(workers)]
        self._show_traffic(told, samples, found)
        self._clients.put(shown.shares(told["clients"], "client", told["weights"]))
        self._keys.put(shown.shares(told["keys"], "key", {}))
        self._processes.put(shown.processes(workers))
        self._happened.put(shown.happened(found, now))

    def _show_traffic(self, told: Any, samples: list[shown.Sample], found: list[tuple[datetime, str]]) -> None:
        if told["by_day"] is None:
            times, series = shown.rates(samples)
            chart = timeline(times, series, "1/s", shown.marks(found, samples) if times else [])
        else:
            times, series = told["days"], shown.by_day(told["by_day"], told["days"])
            chart = stacked(times, series, "", shown.marks_by_day(found, times))
        self._draw(self._chart, chart)
        rows = [(at, *(of[n] for of in series.values())) for n, at in enumerate(times)][-ROWS_MAX:]
        self._table.put(table(["at", *series], rows[::-1], none="the first points come in some seconds"))

    def examined(self, findings: list[Told]) -> None:
        """Here everything is shown, and the banner besides."""
        super().examined(findings)
        self._findings.put(deployment.findings(findings))


def _head(title: str, about: str) -> None:
    ui.html(f"<h2>{title} <span class='dim'>{about}</span></h2>", sanitize=False)


async def _store(api: Management) -> Told | None:
    """None: the service has none, its state is its process's own."""
    try:
        told: Told = await api.get("/store")
    except Refusal as exc:
        if exc.status != NO_STORE:
            raise
        return None
    return told
