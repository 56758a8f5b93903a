"""Dialogs that ask for some fields, and what may be written in them."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from apikeyrouter_dashboard.pages.frame import tell

__all__ = ["Field", "Form", "as_json", "number", "show_once"]

Save = Callable[[dict[str, Any]], Awaitable[object]]
"""What is done with what was given; None: it was refused."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name in the API, and what is asked. `choices`: one of these, of `many` any."""

    name: str
    label: str
    value: str = ""
    choices: Sequence[str] = ()
    many: bool = False
    hint: str = ""
    secret: bool = False
    lines: bool = False

    def make(self) -> Any:
        """The element in the page."""
        if self.choices:
            chosen: Any = self.value.split() if self.many else self.value or self.choices[0]
            made: Any = ui.select(list(self.choices), value=chosen, label=self.label, multiple=self.many)
            return made.classes("wide").props("outlined dense" + (" use-chips" if self.many else ""))
        if self.lines:
            made = ui.textarea(self.label, value=self.value).props('autogrow spellcheck="false"').classes("mono")
        else:
            made = ui.input(self.label, value=self.value, password=self.secret)
        if self.hint:
            made.props(f'hint="{self.hint}"')
        return made.classes("wide").props('outlined dense autocomplete="off"')


class Form:
    """A dialog with some fields. `about`: what will follow; `act`: what the button says."""

    def __init__(self, title: str, fields: Sequence[Field], *, about: str = "", act: str = "Save") -> None:
        with ui.dialog() as self._dialog, ui.card().classes("ask"):
            ui.label(title).classes("ask-title").props('role="heading" aria-level="2"')
            if about:
                ui.label(about).classes("dim")
            self._made = {field.name: field.make() for field in fields}
            with ui.row().classes("ask-row"):
                ui.button("Cancel", on_click=lambda: self._dialog.submit(False)).props("flat no-caps")
                ui.button(act, on_click=lambda: self._dialog.submit(True)).props("unelevated no-caps")

    async def ask(self, save: Save) -> None:
        """Ask until `save` takes what was given (texts, and lists where many may be chosen), or nobody wants to save.

        What is refused is asked again, as it was written. `save` says what was wrong.
        """
        while await self._dialog:
            if await save({name: _given(made.value) for name, made in self._made.items()}) is not None:
                break
        self._dialog.delete()


def _given(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else str(value or "").strip()


def number(text: str) -> Any:
    """A number of the API's; what is none is sent as it is, and refused there with a reason."""
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text


def as_json(text: str) -> dict[str, Any] | None:
    """A JSON object that somebody wrote; None: it is none, and that was said."""
    try:
        told = json.loads(text)
    except ValueError as exc:
        tell(f"this is no JSON: {exc}", bad=True)
        return None
    if not isinstance(told, dict):
        tell("what is wanted is a JSON object", bad=True)
        return None
    return told


async def show_once(title: str, secret: str) -> None:
    """A secret that its owner must take now: the only one that a browser is ever sent."""
    with ui.dialog().props("persistent") as dialog, ui.card().classes("ask"):
        ui.label(title).classes("ask-title")
        ui.label("It is shown this once; the service keeps a hash, or seals it.").classes("dim")
        ui.input(value=secret).props("readonly outlined dense").classes("wide mono secret")
        ui.button("I have it", on_click=lambda: dialog.submit(True)).props("unelevated no-caps")
    await dialog
    dialog.delete()
