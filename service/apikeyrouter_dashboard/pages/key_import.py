"""Importing many keys: pasted or from a file, checked first or at once, with a result for each row."""

from typing import Any

from nicegui import ui
from nicegui.events import UploadEventArguments

from apikeyrouter_dashboard.management import Trouble
from apikeyrouter_dashboard.pages.frame import Block, Page, tell
from apikeyrouter_dashboard.shown import key_import as shown

__all__ = ["KeyImport"]

FILE_BYTES_MAX = 16 * 2**20
EXPLAINED = (
    "A key a line; or CSV whose first line names its columns (key_material, provider_id, quota_group, models, …); "
    "or JSON lines, or a JSON array. A row that is refused keeps no other back; the same again changes nothing."
)
ACCEPTED = ".csv,.txt,.json,.jsonl,.ndjson"


class KeyImport:
    """A panel of a page. A file stays in the page's process: its material is not sent back to the browser."""

    def __init__(self, page: Page, *, may: bool) -> None:
        self._page = page
        self._file: tuple[str, str] | None = None
        self._answer: tuple[Any, int] | None = None
        with ui.element("section").classes("panel"):
            ui.html("<h2>Import keys</h2>", sanitize=False)
            ui.label(EXPLAINED).classes("dim")
            self._lines = ui.textarea(placeholder="sk-…").classes("wide mono").props(
                'outlined dense autogrow autocomplete="off" spellcheck="false" aria-label="Keys to import"'
            )  # fmt: skip
            with ui.row().classes("tools"):
                self._provider = ui.input("provider, where a row says none", value="openai").props("dense outlined")
                self._upload = ui.upload(
                    label="or a file", auto_upload=True, max_file_size=FILE_BYTES_MAX, on_upload=self._take,
                    on_rejected=lambda: tell("at most 16 MiB", bad=True),
                ).props(f'flat bordered accept="{ACCEPTED}"')  # fmt: skip
                buttons = [
                    ui.button("Check", on_click=lambda: self._send(dry_run=True)).props("outline no-caps dense"),
                    ui.button("Import", on_click=lambda: self._send(dry_run=False)).props("unelevated no-caps dense"),
                ]
                self._save = ui.button("Save the results", on_click=self._download).props("flat no-caps dense")
            for made in (*buttons, self._upload):
                if not may:
                    made.disable()
                    made.tooltip("takes the role admin")
            self._save.set_visibility(False)
            self._result = Block(live=True)

    async def _take(self, event: UploadEventArguments) -> None:
        try:
            self._file = (event.file.name, (await event.file.read()).decode("utf-8-sig"))
        except UnicodeDecodeError:
            tell(f"{event.file.name} is not UTF-8", bad=True)

    async def _send(self, *, dry_run: bool) -> None:
        text = str(self._lines.value or "")
        given = text if text.strip() or self._file is None else self._file[1]
        if not given.strip():
            tell("there is no key to import: paste some, or choose a file", bad=True)
            return
        kind, body, shift = shown.body_of(given)
        asked = {"provider_id": str(self._provider.value or "").strip() or None, "dry_run": str(dry_run).lower()}
        try:
            answer = await self._page.session.api.upload("/keys/import", body.encode(), kind, **asked)
        except Trouble as exc:
            tell(str(exc), bad=True)
            return
        self._answer = (answer, shift)
        self._result.put(shown.imported(answer, shift))
        self._save.set_visibility(True)
        if not dry_run:
            self._forget()
            await self._page.look()

    def _forget(self) -> None:
        """What was imported is not kept here."""
        self._file = None
        self._lines.set_value("")
        self._upload.reset()

    def _download(self) -> None:
        if self._answer is not None:
            ui.download.content(shown.rows_as_csv(*self._answer), "imported-keys.csv", "text/csv")
