"""Decisions as they come, one explained, and a request tried out."""

import asyncio
from datetime import datetime
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.management import Trouble, path_of
from apikeyrouter_dashboard.pages.frame import Action, Block, Page, tell
from apikeyrouter_dashboard.shown import decisions as shown

__all__ = ["DecisionsPage"]

LISTED_MAX = 100
STEP_SECONDS = 0.05
KINDS = {"all": "all", "refused": "refused", "retried": "retried"}
OBJECTIVES = ["fairness", "cost", "reliability", "latency", "quality"]


class DecisionsPage(Page):
    """A list that stays still while it is read."""

    path, title = "/decisions", "Decisions"
    seconds: ClassVar[float] = 4.0

    def _build(self) -> None:
        self._listed: list[Any] = []
        with ui.element("section").classes("panel"):
            ui.html("<h2>What would happen now</h2>", sanitize=False)
            with ui.row().classes("tools"):
                self._model = _field("model", "gpt-4o-mini")
                self._objective = ui.select(OBJECTIVES, value="fairness", label="objective").props("dense outlined")
                self._tokens = _field("max_tokens", "64")
                self._caller = _field("client", "")
                self._team = _field("team", "")
                ui.button("Try it", on_click=self._try).props("no-caps unelevated dense").classes("try")
        with ui.element("section").classes("panel"):
            with ui.row().classes("tools"):
                self._only = ui.toggle(KINDS, value="all", on_change=self._begin_anew).props(
                    'no-caps dense unelevated toggle-color=primary aria-label="Which"'
                )
                self._wanted = ui.input(placeholder="request id, key, model", on_change=self.refresh).props(
                    'dense outlined clearable debounce=250 aria-label="Find"'
                )
                ui.button("Explain this id", on_click=lambda: self._explain(str(self._wanted.value or ""))).props(
                    "no-caps outline dense"
                )
                self._fresh = Block(live=True)
            self._rows = Block()
        with ui.dialog() as self._dialog, ui.card().classes("editor-card"):
            with ui.row().classes("key-head"):
                self._title = ui.label("").classes("ask-title").props('role="heading" aria-level="2"')
                ui.button("✕", on_click=self._dialog.close).props('flat dense no-caps aria-label="Close"')
            self._explained = Block("wide")
        asked = self.query.get("explain")
        if asked:
            ui.timer(0, lambda: self._explain(asked), once=True)

    async def _read(self) -> Any:
        kind = str(self._only.value)
        only = None if kind == "all" else kind
        return kind, await self.session.api.pages("/decisions", "decisions", most=LISTED_MAX, only=only)

    def _show(self, told: Any, now: datetime) -> None:
        kind, latest = told
        if kind != self._only.value:
            return  # it was asked for before another kind was wanted
        if not self._listed:
            self._listed = latest
        known = {one["id"] for one in self._listed}
        self._fresh.put(shown.fresh(sum(one["id"] not in known for one in latest)))
        wanted = (self._wanted.value or "").strip().lower()
        self._rows.put(shown.listed([one for one in self._listed if shown.matches(one, wanted)], now))

    def _actions(self) -> dict[str, Action]:
        return {"explain": lambda data: self._explain(data["id"]), "renew": lambda data: self._renew()}

    async def _begin_anew(self) -> None:
        """Others are wanted."""
        self._listed = []
        while self._busy:
            await asyncio.sleep(STEP_SECONDS)
        await self.look()

    def _renew(self) -> None:
        _, self._listed = self.told
        self.refresh()

    async def _explain(self, request_id: str) -> None:
        if not request_id.strip():
            tell("give a request id", bad=True)
            return
        try:
            told = await self.session.api.get(path_of("decisions", request_id.strip()))
        except Trouble as exc:
            tell(str(exc), bad=True)
            return
        self._open(request_id, told)

    async def _try(self) -> None:
        body: dict[str, Any] = {"model": self._model.value, "objective": self._objective.value}
        body |= {name: field.value for name, field in (("client", self._caller), ("team", self._team)) if field.value}
        if str(self._tokens.value).isdigit():
            body["max_tokens"] = int(self._tokens.value)
        try:
            told = await self.session.api.send("POST", "/decisions/dry-run", body)
        except Trouble as exc:
            tell(str(exc), bad=True)
            return
        went = told["selected_key_id"]
        self._open(f"It would go to {went}" if went else "It would be refused", told)

    def _open(self, title: str, told: Any) -> None:
        self._title.set_text(title)
        self._explained.put(shown.explained(told))
        self._dialog.open()


def _field(label: str, value: str) -> Any:
    return ui.input(label, value=value).props("dense outlined")
