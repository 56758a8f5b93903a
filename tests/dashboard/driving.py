"""A browser and the pages under test: the page's process, a Chromium that watches itself, and how tests wait."""

import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from apikeyrouter.commands.dashboard import running_dashboard

__all__ = ["CHROMIUM", "Seat", "open_browser", "seat_at"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 15_000
HARMLESS = ("Failed to load resource",)
"""What Chromium itself writes into the console of a request that was refused, as a test wanted."""


@contextlib.asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Chromium as Debian packs it, without a window."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        try:
            yield browser
        finally:
            await browser.close()


@dataclass(slots=True)
class Seat:
    """Somebody in front of the page, who notes everything that should not be."""

    url: str
    page: Page
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note errors of the console and of scripts, and every request to somewhere else."""
        self.page.set_default_timeout(WAIT_MS)
        self.page.on("console", lambda told: self._note(told.type, told.text))
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        self.page.on("request", lambda request: self._ask(request.url))

    def _note(self, kind: str, text: str) -> None:
        if kind == "error" and not text.startswith(HARMLESS):
            self.complaints.append(f"console: {text}")

    def _ask(self, url: str) -> None:
        if not url.startswith((self.url, self.url.replace("http", "ws", 1), "data:", "blob:")):
            self.complaints.append(f"request to {url}")

    async def sign_in(self, key: str) -> None:
        """Give the key at the door, and wait for the first page."""
        await self.page.goto(f"{self.url}/sign-in")
        await self.page.fill("#key", key)
        await self.page.click("button[type=submit]")
        await self.page.wait_for_url(f"{self.url}/")

    async def go(self, path: str) -> None:
        """Open a page, and wait until it has shown what it read."""
        await self.page.goto(self.url + path)
        await self.page.wait_for_selector(".age time, .age:has-text('as of'), .trouble:visible")

    async def reads(self, text: str) -> None:
        """Wait until the page says that."""
        await self.page.wait_for_selector(f"text={text}")

    async def act(self, act: str, **data: str) -> None:
        """Press a button of the page."""
        told = "".join(f'[data-{name}="{value}"]' for name, value in data.items())
        await self.page.click(f'main [data-act="{act}"]{told}')

    async def press(self, text: str) -> None:
        """Press a button of the dialog that is open, by its words."""
        await self.page.locator(".q-dialog").last.get_by_role("button", name=text, exact=True).click()


@contextlib.asynccontextmanager
async def seat_at(browser: Browser, url: str, **options: Any) -> AsyncIterator[Seat]:
    """A fresh browser profile in front of the page; at the end nothing may have gone wrong."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, **options)
    seat = Seat(url, await context.new_page(), context)
    seat.watch()
    try:
        yield seat
    finally:
        await context.close()
    assert seat.complaints == []


@contextlib.contextmanager
def page_for(service_url: str, key: str) -> Iterator[str]:
    """The page's own process for a service; its address."""
    assert sys.executable
    with running_dashboard(service_url, key) as link:
        yield link.partition("/sign-in")[0]
