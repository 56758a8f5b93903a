"""What all pages share: the frame, one poller that rests while nobody looks, and the way of an action."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from markupsafe import Markup
from nicegui import ui
from nicegui.events import GenericEventArguments

from apikeyrouter_dashboard.management import Refusal, Trouble
from apikeyrouter_dashboard.sessions import Session
from apikeyrouter_dashboard.shown.deployment import banner
from apikeyrouter_dashboard.shown.words import told_at

__all__ = ["Action", "Block", "Page", "Told", "ask_first", "nothing", "tell"]

Told = dict[str, Any]
Action = Callable[[dict[str, str]], Awaitable[None] | None]
FIRST_SECONDS_MAX = 1.2
"""How long a page waits for its first answers before it is sent without them."""
FINDINGS_SECONDS = 20.0
"""How long to rest between two looks at what doctor finds."""
RETRY_SECONDS = 1.0
"""How long to rest after a look that failed."""
_CLICKED = """(e) => {
  const found = e.target.closest('[data-act]');
  if (found && !found.disabled) emit({...found.dataset});
}"""


class Block:
    """A piece of a page whose HTML is sent again only when it has changed. Content must be Markup: escaped."""

    def __init__(self, kind: str = "", *, live: bool = False) -> None:
        self._html = ui.html("", sanitize=False).classes(kind)
        if live:
            self._html.props('role="status" aria-live="polite"')

    def put(self, content: Markup | str) -> None:
        """Show that. Text that is no Markup is escaped."""
        told = str(content if isinstance(content, Markup) else Markup("{}").format(content))
        if told != self._html.content:
            self._html.set_content(told)

    def hidden(self, hidden: bool) -> None:
        """Out of sight, or back."""
        self._html.set_visibility(not hidden)


@dataclass(eq=False)
class Page:
    """One page of one browser.

    Subclasses make elements (`_build`), ask the API (`_read`), put its answers into them (`_show`), take `_actions`.
    """

    path: ClassVar[str] = "/"
    title: ClassVar[str] = ""
    seconds: ClassVar[float] = 2.0
    """How long to rest between two looks."""

    session: Session
    query: Mapping[str, str] = field(default_factory=dict)
    told: Any = None
    """What was read last."""
    _read_at: datetime | None = None
    _busy: bool = False
    _timer: Any = None
    _examining: Any = None

    # --- what a page is ------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """Make the page's elements."""

    async def _read(self) -> Any:
        """Ask the API for what is shown. Errors: Refusal, Trouble."""

    def _show(self, told: Any, now: datetime) -> None:
        """Put what was read on the page."""

    def _actions(self) -> dict[str, Action]:
        """What `data-act` of a button in the page leads to."""
        return {}

    # --- what all pages do ---------------------------------------------------------------------------------------

    async def open(self, pages: "tuple[type[Page], ...]", is_dark: bool | None) -> None:
        """Make the page and begin to look."""
        ui.add_head_html('<link rel="stylesheet" href="/look/look.css"><script defer src="/look/look.js"></script>')
        ui.query("body").classes("dashboard")
        dark = ui.dark_mode(is_dark)
        self._client = ui.context.client
        self._client.content.classes(remove="nicegui-content").classes("page")
        ui.html(_navigation(pages, type(self), self.session), sanitize=False).classes("top").on(
            "theme", lambda event: setattr(dark, "value", event.args)
        )
        self._trouble = Block("trouble", live=True)
        self._trouble.hidden(True)
        self._banner = Block("banner", live=True)
        with ui.element("div").props('id="main"').on("click", self._act, js_handler=_CLICKED):
            self._build()
        self._age = Block("age dim")
        ui.on("seen", self._seen)
        ui.on("theme", lambda event: setattr(dark, "value", event.args))
        first = asyncio.ensure_future(self.look())
        await asyncio.wait([first], timeout=FIRST_SECONDS_MAX)
        self._timer = ui.timer(self.seconds, self.look, immediate=False)
        self._examining = ui.timer(FINDINGS_SECONDS, self._examine)

    async def look(self) -> None:
        """Read and show once. A look that takes long is not overtaken by the next."""
        if self._busy or self._client.is_deleted:
            return
        self._busy = True
        try:
            told = await self._read()
        except Refusal as exc:
            await self._refused(exc)
        except Trouble as exc:
            self._complain(str(exc))
        else:
            self.told, self._read_at = told, datetime.now(UTC)
            self.refresh()
        finally:
            self._busy = False

    async def _examine(self) -> None:
        """Ask what is wrong with the deployment. A service that cannot say so is what `look` complains of."""
        try:
            told = await self.session.api.get("/findings")
        except Trouble:
            return
        if not self._client.is_deleted:
            with self._client:
                self.examined(told["findings"])

    def examined(self, findings: list[Told]) -> None:
        """Show what doctor finds."""
        self._banner.put(banner(findings))

    def refresh(self) -> None:
        """Show what was read last once more."""
        if self._client.is_deleted or self.told is None:
            return
        self._pace(self.seconds)
        with self._client:
            self._trouble.hidden(True)
            self._show(self.told, datetime.now(UTC))
            if self._read_at is not None:
                self._age.put(Markup("as of {}").format(told_at(self._read_at)))

    def _pace(self, seconds: float) -> None:
        """How long to rest between two looks from now on."""
        if self._timer is not None and self._timer.interval != seconds:
            self._timer.interval = seconds

    async def _refused(self, exc: Refusal) -> None:
        if exc.status == 401:
            with self._client:
                ui.navigate.to("/sign-in")
            return
        self._complain(str(exc))

    def _complain(self, message: str) -> None:
        if self._client.is_deleted:
            return
        self._pace(RETRY_SECONDS)
        since = "" if self._read_at is None else f"; what is shown is of {told_at(self._read_at)}"
        with self._client:
            self._trouble.hidden(False)
            self._trouble.put(Markup('<b aria-hidden="true">!</b> {}').format(f"{message}{since}"))

    def _seen(self, event: GenericEventArguments) -> None:
        """The tab came into sight, or left it: nobody asks for what nobody sees."""
        if self._timer is not None:
            self._timer.active = self._examining.active = bool(event.args)

    async def _act(self, event: GenericEventArguments) -> None:
        data = {str(name): str(value) for name, value in dict(event.args or {}).items()}
        action = self._actions().get(data.get("act", ""))
        if action is None:
            return
        done = action(data)
        if done is not None:
            await done

    @staticmethod
    def _draw(chart: Any, options: Told) -> None:
        """Give a chart other options, where they differ."""
        if chart.options != options:
            chart.options.clear()
            chart.options.update(options)
            chart.update()

    async def send(self, method: str, path: str, body: Any = None, *, done: str) -> Any:
        """Do something through the API, say how it went, and look again. None: it was refused, and that was said."""
        try:
            told = await self.session.api.send(method, path, body)
        except Trouble as exc:
            tell(str(exc), bad=True)
            return None
        tell(done)
        await self.look()
        return told if told is not None else {}


async def nothing() -> list[Told]:
    """Nothing, in place of what need not be asked for."""
    return []


def tell(message: str, *, bad: bool = False) -> None:
    """One line that goes away by itself."""
    ui.notify(message, type="negative" if bad else "positive", position="bottom", timeout=8000 if bad else 3000)


async def ask_first(title: str, text: str, *, word: str = "", act: str = "Do it") -> bool:
    """Ask before something is done. `word`: what has to be typed, for what destroys."""
    with ui.dialog() as dialog, ui.card().classes("ask"):
        ui.label(title).classes("ask-title").props('role="heading" aria-level="2"')
        ui.label(text).classes("dim")
        typed = ui.input(f"Type {word} to go on").classes("wide").props("outlined dense") if word else None
        with ui.row().classes("ask-row"):
            ui.button("Cancel", on_click=lambda: dialog.submit(False)).props("flat no-caps")
            go = ui.button(act, on_click=lambda: dialog.submit(True)).props("no-caps unelevated color=negative")
            if typed is not None:
                go.bind_enabled_from(typed, "value", backward=lambda value: value == word)
    answer = bool(await dialog)
    dialog.delete()
    return answer


def _navigation(pages: tuple[type[Page], ...], here: type[Page], session: Session) -> Markup:
    links = Markup("").join(
        Markup('<a href="{}"{}><kbd aria-hidden="true">{}</kbd> {}</a>').format(
            page.path, Markup(' aria-current="page"') if page is here else "", number, page.title
        )
        for number, page in enumerate(pages, start=1)
    )
    return Markup(
        '<a class="skip" href="#main">Skip to the content</a><header><b class="brand">ApiKeyRouter</b><nav '
        'aria-label="Pages">{}</nav><span class="who"><button type="button" data-theme title="Dark or light" '
        'aria-label="Dark or light">◐</button><span title="Signed in as {}">{} · {}</span><form method="post" '
        'action="/sign-out"><button type="submit">Sign out</button></form></span></header>'
    ).format(links, session.name, session.name, session.role)
