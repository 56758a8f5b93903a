"""What is left to every pool and of every limit, and how long it lasts."""

import asyncio
from datetime import datetime
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.pages.frame import Block, Page, Told, nothing
from apikeyrouter_dashboard.shown import headroom as shown
from apikeyrouter_dashboard.shown.pool import CHIPS_MAX
from apikeyrouter_dashboard.shown.pools import GROUPINGS, lanes_out, pools, pools_table

__all__ = ["HeadroomPage"]

KINDS = {"quota_group": "quota groups", "key": "keys", "client": "clients", "": "all"}
LANES_MAX = 300
LARGE_SECONDS = 10.0
"""How long to rest between two looks at a large pool."""
TOGGLE = "no-caps dense unelevated toggle-color=primary"


class HeadroomPage(Page):
    """Pools and lanes: used, free, time to empty."""

    path, title = "/headroom", "Headroom"
    seconds: ClassVar[float] = 3.0

    def _build(self) -> None:
        with ui.element("section").classes("panel"):
            with ui.row().classes("tools"):
                ui.html("<h2>Pools <span class='dim'>keys that stand for each other</span></h2>", sanitize=False)
                self._grouping = ui.toggle(
                    {name: f"by {word}" for name, word in GROUPINGS.items()}, value="provider_id",
                    on_change=self.refresh,
                ).props(f'{TOGGLE} aria-label="What makes a pool"')  # fmt: skip
            self._pools = Block()
        with ui.element("section").classes("panel"):
            with ui.row().classes("tools"):
                ui.html("<h2>Lanes <span class='dim'>limits as they are metered</span></h2>", sanitize=False)
                self._kind = ui.toggle(KINDS, value="quota_group", on_change=self.look).props(
                    f'{TOGGLE} aria-label="Kind of lane"'
                )
                self._wanted = ui.input(placeholder="find a lane", on_change=self.refresh).props(
                    'dense outlined clearable debounce=200 aria-label="Find a lane"'
                )
            self._lanes = Block()

    async def _read(self) -> Any:
        kind = str(self._kind.value)
        keys, groups, others = await asyncio.gather(
            self.session.api.pages("/pool", "keys"), self._limits("quota_group"),
            self._limits(kind or None) if kind != "quota_group" else nothing(),
        )  # fmt: skip
        return {"keys": keys, "groups": groups, "lanes": groups if kind == "quota_group" else others, "kind": kind}

    async def _limits(self, kind: str | None) -> list[Told]:
        return await self.session.api.pages("/limits", "limits", most=LANES_MAX, forecast="true", kind=kind)

    def _show(self, told: Any, now: datetime) -> None:
        keys = told["keys"]
        self._pace(LARGE_SECONDS if len(keys) > CHIPS_MAX else self.seconds)
        self._pools.put(pools_table(pools(keys, told["groups"], str(self._grouping.value)), now))
        if told["kind"] == self._kind.value:  # else it was asked for before another kind was wanted
            wanted = (self._wanted.value or "").strip().lower()
            self._lanes.put(shown.lanes(told["lanes"], now, wanted=wanted, out=lanes_out(keys)))
