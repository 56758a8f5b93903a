"""What is under way: every open reservation of every worker."""

import asyncio
from datetime import datetime
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.pages.frame import Block, Page
from apikeyrouter_dashboard.shown import flight as shown

__all__ = ["FlightPage"]

LISTED_MAX = 500


class FlightPage(Page):
    """Open reservations, live."""

    path, title = "/flight", "In flight"
    seconds: ClassVar[float] = 2.0

    def _build(self) -> None:
        self._summary = Block()
        with ui.element("section").classes("panel below"):
            self._rows = Block()
        with ui.element("section").classes("panel"):
            ui.html("<h2>Reclaimed after crashes <span class='dim'>their workers never told how they ended; Money "
                    "resolves them</span></h2>", sanitize=False)  # fmt: skip
            self._reclaimed = Block()

    async def _read(self) -> Any:
        api = self.session.api
        return await asyncio.gather(
            api.pages("/reservations", "reservations", most=LISTED_MAX), api.pages("/suspense", "suspense", most=500)
        )

    def _show(self, told: Any, now: datetime) -> None:
        found, suspended = told
        self._summary.put(shown.summary(found, suspended))
        self._rows.put(shown.flight(found, now))
        self._reclaimed.put(shown.reclaimed(suspended, now))
