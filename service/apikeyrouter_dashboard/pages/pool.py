"""The first page: what is wrong, and the pool map."""

import asyncio
from datetime import datetime
from typing import Any, ClassVar

from markupsafe import Markup
from nicegui import ui

from apikeyrouter_dashboard.pages.frame import Action, Block, Page
from apikeyrouter_dashboard.pages.key_dialog import KeyDialog
from apikeyrouter_dashboard.shown import pool as shown
from apikeyrouter_dashboard.shown import situation
from apikeyrouter_dashboard.shown.words import empty

__all__ = ["PoolPage"]

LARGE_SECONDS = 5.0
"""How long to rest between two looks at a large pool: a look at 2,000 keys costs a worker 60 ms."""
TRANSITIONS_READ = 200
"""So many of the latest changes of keys are looked through for who took a key out."""
STEPS = (
    "Name a provider key: OPENAI_API_KEY in the environment, a row under keys: in the configuration, or",
    "register one: Manage, Import keys (role admin).",
    "Send a request; the key shows up here with what is left of its limits.",
)


class PoolPage(Page):
    """Every key at a glance."""

    path, title = "/", "Pool"
    seconds: ClassVar[float] = 2.0

    def _build(self) -> None:
        self._actors: dict[str, Any] = {}
        self._strip = Block("strip-block")
        self._incidents = Block("incidents-block", live=True)
        with ui.row().classes("tools"):
            self._grouping = ui.toggle(
                {name: f"by {word}" for name, word in shown.GROUPINGS.items()}, value=self._asked_for(),
                on_change=self.refresh,
            ).props('no-caps dense unelevated toggle-color=primary aria-label="Group by"')  # fmt: skip
            self._wanted = ui.input(placeholder="find a key", on_change=self.refresh).props(
                'dense outlined clearable debounce=200 aria-label="Find a key"'
            )
        self._legend = Block()
        self._map = ui.element("div").classes("map")
        self._groups: dict[str, _GroupOnPage] = {}
        self._nothing = Block()
        with ui.expansion("The same as a table").classes("wide") as self._expansion:
            self._table = Block()
        self._expansion.on_value_change(self.refresh)
        self._dialog = KeyDialog(self)

    def _asked_for(self) -> str:
        told = self.query.get("by", "")
        return told if told in shown.GROUPINGS else "quota_group"

    async def _read(self) -> Any:
        api = self.session.api
        keys, budgets, state, health = await asyncio.gather(
            api.pages("/pool", "keys"), api.pages("/budgets", "budgets", most=1000), api.get("/state"), api.health()
        )
        if any(key["state"] in shown.OUT for key in keys):
            moved = (await api.get("/transitions", limit=TRANSITIONS_READ))["transitions"]
            shown.with_actors(keys, moved, self._actors)
        return {"keys": keys, "budgets": budgets, "state": state, "health": health}

    def _show(self, told: Any, now: datetime) -> None:
        keys = told["keys"]
        self._pace(LARGE_SECONDS if len(keys) > shown.CHIPS_MAX else self.seconds)
        self._strip.put(situation.strip(told["state"], told["health"]))
        self._incidents.put(situation.told(situation.incidents(keys, told["budgets"], now)) if keys else Markup(""))
        wanted = (self._wanted.value or "").strip().lower()
        found = [key for key in keys if wanted in key["id"].lower()] if wanted else keys
        grouped, size = shown.groups(found, str(self._grouping.value)), shown.size_for(len(found))
        self._legend.put(shown.legend(grouped, size) if keys else Markup(""))
        self._show_groups(grouped, size, now)
        nothing = empty("No keys yet", STEPS) if not keys else Markup('<p class="dim">no such key</p>')
        self._nothing.put(Markup("") if found else nothing)
        self._table.put(shown.as_table(found, now) if self._expansion.value else Markup(""))

    def _show_groups(self, grouped: list[shown.Group], size: str, now: datetime) -> None:
        names = [group.name for group in grouped]
        if names != list(self._groups):
            self._map.clear()
            with self._map:
                self._groups = {name: _GroupOnPage() for name in names}
        for group in grouped:
            self._groups[group.name].put(group, size, now)

    def _actions(self) -> dict[str, Action]:
        return {"open": lambda data: self._dialog.open(data["id"])}


class _GroupOnPage:
    """A group's head and its tiles, in chunks that are sent again only when one of their keys has changed."""

    def __init__(self) -> None:
        with ui.element("section").classes("group"):
            self._head = Block()
            self._tiles = ui.element("div").classes("tiles")
        self._chunks: list[Block] = []

    def put(self, group: shown.Group, size: str, now: datetime) -> None:
        """Show that."""
        self._head.put(shown.counted(group))
        made = shown.tiles(group.keys, size, now)
        with self._tiles:
            while len(self._chunks) < len(made):
                self._chunks.append(Block("chunk"))
        for block, content in zip(self._chunks, [*made, *[Markup("")] * (len(self._chunks) - len(made))], strict=True):
            block.put(content)
