"""One key: everything that is known of it, and what can be done with it."""

import json
from datetime import UTC, datetime
from typing import Any

from nicegui import ui

from apikeyrouter_dashboard.management import Trouble, path_of
from apikeyrouter_dashboard.pages.forms import Field, Form, as_json
from apikeyrouter_dashboard.pages.frame import Block, Page, ask_first, tell
from apikeyrouter_dashboard.shown.pool import key_facts

__all__ = ["KeyDialog"]

REASON = "from the operator's page"


class KeyDialog:
    """A dialog about one key of the page's pool. Buttons that the role does not allow are off."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._id = ""
        with ui.dialog() as self._dialog, ui.card().classes("key-card"):
            with ui.row().classes("key-head"):
                self._title = ui.label("").classes("ask-title").props('role="heading" aria-level="2"')
                ui.button("✕", on_click=self._dialog.close).props('flat dense no-caps aria-label="Close"')
            self._facts = Block("wide")
            with ui.row().classes("ask-row"):
                self._button("Probe", self._probe, "operate")
                self._button("Disable", self._disable, "operate")
                self._button("Enable", self._enable, "operate")
                self._button("Metadata …", self._change_metadata, "admin")
                self._button("Rotate …", self._rotate, "admin")
                self._button("Revoke …", self._revoke, "admin")

    def _button(self, text: str, act: Any, role: str) -> None:
        made = ui.button(text, on_click=act).props("outline no-caps dense").classes(f"key-{text.split()[0].lower()}")
        if not self._page.session.may(role):
            made.disable()
            made.tooltip(f"takes the role {role}")

    async def open(self, key_id: str) -> None:
        """Show one key."""
        self._id = key_id
        self._title.set_text(key_id)
        await self._show()
        self._dialog.open()

    async def _show(self) -> None:
        key = next((one for one in self._page.told["keys"] if one["id"] == self._id), None)
        if key is None:
            self._dialog.close()
            return
        try:
            told = await self._page.session.api.get(path_of("keys", self._id, "transitions"), limit=10)
        except Trouble as exc:
            tell(str(exc), bad=True)
            told = {"transitions": []}
        self._facts.put(key_facts(key, told["transitions"], datetime.now(UTC)))

    async def _probe(self) -> None:
        path = path_of("keys", self._id, "probe")
        try:
            told = await self._page.session.api.send("POST", path)
        except Trouble as exc:
            tell(str(exc), bad=True)
            return
        said = {True: "the provider takes it", False: "the provider refuses it", None: "the provider said nothing"}
        tell(f"{self._id}: {said[told['works']]} ({told['latency_ms']} ms) {told['message']}", bad=not told["works"])
        await self._again()

    async def _disable(self) -> None:
        if await ask_first(f"Disable {self._id}?", "Requests under way end as they do; no new ones go there."):
            await self._to_state("disabled")

    async def _enable(self) -> None:
        await self._to_state("available")

    async def _to_state(self, state: str) -> None:
        body = {"state": state, "reason": REASON}
        if await self._page.send("PATCH", path_of("keys", self._id), body, done=f"{self._id} is {state}") is not None:
            await self._again()

    async def _change_metadata(self) -> None:
        path = path_of("keys", self._id)
        try:
            known = (await self._page.session.api.get(path))["metadata"]
        except Trouble as exc:
            tell(str(exc), bad=True)
            return

        async def save(given: dict[str, Any]) -> Any:
            told = as_json(given["metadata"])
            if told is None:
                return None
            return await self._page.send("PATCH", path, {"metadata": told}, done=f"{self._id}: changed")

        text = Field("metadata", "Metadata as JSON", json.dumps(known, indent=2), lines=True)
        about = "Among others quota_group, models, tier, tags, weight, limits; it takes the place of what there was."
        await Form(f"Metadata of {self._id}", [text], about=about).ask(save)
        await self._again()

    async def _rotate(self) -> None:
        with ui.dialog() as dialog, ui.card().classes("ask"):
            ui.label(f"Rotate {self._id}").classes("ask-title")
            ui.label("The new material takes the old one's place, under the same id, at once.").classes("dim")
            material = (
                ui.input("New key material", password=True).classes("wide").props('outlined dense autocomplete="off"')
            )
            typed = ui.input(f"Type {self._id} to go on").classes("wide").props("outlined dense")
            with ui.row().classes("ask-row"):
                ui.button("Cancel", on_click=lambda: dialog.submit(False)).props("flat no-caps")
                go = ui.button("Rotate", on_click=lambda: dialog.submit(True)).props(
                    "no-caps unelevated color=negative"
                )
                go.bind_enabled_from(typed, "value", backward=lambda value: value == self._id)
        wanted = await dialog
        given = str(material.value or "").strip()
        dialog.delete()
        if wanted and given:
            path = path_of("keys", self._id, "rotate")
            if await self._page.send("POST", path, {"key_material": given}, done=f"{self._id} is rotated") is not None:
                await self._again()

    async def _revoke(self) -> None:
        text = "The key is forgotten; requests under way with it end as they do. This cannot be taken back."
        if await ask_first(f"Revoke {self._id}?", text, word=self._id, act="Revoke"):
            await self._page.send("DELETE", path_of("keys", self._id), done=f"{self._id} is revoked")
            self._dialog.close()

    async def _again(self) -> None:
        await self._page.look()
        await self._show()
