"""What is left of every limit, and how long it lasts."""

from datetime import datetime
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.pages.frame import Block, Page
from apikeyrouter_dashboard.shown import headroom as shown

__all__ = ["HeadroomPage"]

KINDS = {"": "all", "quota_group": "quota groups", "key": "keys", "client": "clients"}
LANES_MAX = 300


class HeadroomPage(Page):
    """Lanes: used, free, time to empty."""

    path, title = "/headroom", "Headroom"
    seconds: ClassVar[float] = 3.0

    def _build(self) -> None:
        with ui.row().classes("tools"):
            self._kind = ui.toggle(KINDS, value="", on_change=self.look).props(
                'no-caps dense unelevated toggle-color=primary aria-label="Kind of lane"'
            )
            self._wanted = ui.input(placeholder="find a lane", on_change=self.refresh).props(
                'dense outlined clearable debounce=200 aria-label="Find a lane"'
            )
        with ui.element("section").classes("panel"):
            self._lanes = Block()

    async def _read(self) -> Any:
        return await self.session.api.pages(
            "/limits", "limits", most=LANES_MAX, forecast="true", kind=self._kind.value or None
        )

    def _show(self, told: Any, now: datetime) -> None:
        self._lanes.put(shown.lanes(told, now, wanted=(self._wanted.value or "").strip().lower()))
