"""Keys to import, clients, budgets, policies; and who changed what."""

import asyncio
import json
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.management import Trouble, path_of
from apikeyrouter_dashboard.pages.forms import Field, Form, as_json, number, show_once
from apikeyrouter_dashboard.pages.frame import Action, Block, Page, ask_first, tell
from apikeyrouter_dashboard.pages.key_import import KeyImport
from apikeyrouter_dashboard.shown import manage as shown
from apikeyrouter_dashboard.shown.fleet import audit_log

__all__ = ["ManagePage"]

POLICY = {"name": "no such model at night", "rules": {"denied_models": ["gpt-4o"]}, "enforcement": "shadow"}
PERIODS = ("daily", "hourly", "weekly", "monthly", "total")
SCOPES = ("global", "provider", "team", "client", "key")
ENFORCEMENTS = ("hard", "soft")
LIMITS = ("rpm", "tpm", "concurrency", "weight")
CLIENT_FIELDS = (
    Field("name", "Name"), Field("team", "Team"), Field("models", "Models", hint="comma-separated; none: all"),
    Field("rpm", "Requests a minute"), Field("tpm", "Tokens a minute"), Field("concurrency", "Requests at once"),
    Field("weight", "Weight", hint="its share when room is scarce; none: 1"),
)  # fmt: skip
BUDGET_FIELDS = (
    Field("scope", "Scope", choices=SCOPES), Field("scope_id", "Of", hint="a team, client, provider or key"),
    Field("name", "Name"), Field("limit_usd", "Limit, in dollars"), Field("period", "Period", choices=PERIODS),
    Field("enforcement", "Enforcement", choices=ENFORCEMENTS, hint="hard refuses, soft tells"),
)  # fmt: skip
AUDIT_SHOWN = 50


class ManagePage(Page):
    """Everything that can be changed here; each change goes through the API, under the operator's own role."""

    path, title = "/manage", "Manage"
    seconds: ClassVar[float] = 5.0

    def _build(self) -> None:
        self._may = self.session.may("admin")
        KeyImport(self, may=self._may)
        self._clients = self._section("Clients", ("New client …", self._new_client))
        self._budgets = self._section("Budgets", ("New budget …", self._new_budget))
        self._policies = self._section("Policies", ("New policy …", lambda: self._edit_policy(None)))
        self._audit = self._section("Audit log")

    def _section(self, title: str, *buttons: tuple[str, Any]) -> Block:
        with ui.element("section").classes("panel"):
            with ui.row().classes("key-head"):
                ui.html(f"<h2>{title}</h2>", sanitize=False)
                for text, act in buttons:
                    self._button(text, act)
            return Block()

    def _button(self, text: str, act: Any) -> None:
        made = ui.button(text, on_click=act).props("outline no-caps dense")
        if not self._may:
            made.disable()
            made.tooltip("takes the role admin")

    async def _read(self) -> Any:
        api = self.session.api
        clients, budgets, policies, audit = await asyncio.gather(
            api.pages("/clients", "clients"), api.pages("/budgets", "budgets"), api.pages("/policies", "policies"),
            api.get("/audit", limit=AUDIT_SHOWN),
        )  # fmt: skip
        return {"clients": clients, "budgets": budgets, "policies": policies, "audit": audit["audit"]}

    def _show(self, told: Any, now: datetime) -> None:
        self._clients.put(shown.clients(told["clients"], may=self._may))
        self._budgets.put(shown.budgets(told["budgets"], may=self._may))
        self._policies.put(shown.policies(told["policies"], may=self._may))
        self._audit.put(audit_log(told["audit"], now))

    def _actions(self) -> dict[str, Action]:
        return {
            "client-on": lambda data: self._set("clients", data, {"enabled": True}),
            "client-off": lambda data: self._set("clients", data, {"enabled": False}),
            "client-change": self._change_client,
            "client-rotate": self._rotate_client,
            "client-delete": lambda data: self._delete("clients", data),
            "policy-on": lambda data: self._set("policies", data, {"enabled": True}),
            "policy-off": lambda data: self._set("policies", data, {"enabled": False}),
            "policy-edit": lambda data: self._edit_policy(data["id"]),
            "policy-delete": lambda data: self._delete("policies", data),
            "budget-limit": self._change_budget,
            "budget-delete": lambda data: self._delete("budgets", data),
        }

    async def _set(self, kind: str, data: dict[str, str], body: dict[str, Any]) -> None:
        await self.send("PATCH", path_of(kind, data["id"]), body, done=f"{data['id']}: changed")

    async def _delete(self, kind: str, data: dict[str, str]) -> None:
        name = data["id"]
        if await ask_first(f"Delete {name}?", "This cannot be taken back.", word=name, act="Delete"):
            await self.send("DELETE", path_of(kind, name), done=f"{name} is deleted")

    async def _new_client(self) -> None:
        made: dict[str, Any] = {}

        async def save(given: dict[str, Any]) -> Any:
            body = {name: number(value) if name in LIMITS else value for name, value in given.items() if value}
            if "models" in body:
                body["models"] = [model.strip() for model in given["models"].split(",") if model.strip()]
            body["name"] = given["name"]
            told = await self.send("POST", "/clients", body, done=f"{given['name']} is made")
            made.update(told or {})
            return told

        await Form("New client", CLIENT_FIELDS, about="Its token is shown once, next.").ask(save)
        if "token" in made:
            await show_once(f"The token of {made['name']}", made["token"])

    async def _change_client(self, data: dict[str, str]) -> None:
        known = next((one for one in self.told["clients"] if one["name"] == data["id"]), None)
        if known is None:
            return
        fields = [replace(field, value=_as_text(known[field.name])) for field in CLIENT_FIELDS[1:]]

        async def save(given: dict[str, Any]) -> Any:
            body: dict[str, Any] = {name: number(text) if name in LIMITS else text for name, text in given.items()}
            body["models"] = [model.strip() for model in given["models"].split(",") if model.strip()]
            body = {name: value or None for name, value in body.items()} | {"weight": body["weight"] or 1}
            return await self.send("PATCH", path_of("clients", data["id"]), body, done=f"{data['id']}: changed")

        await Form(f"Change {data['id']}", fields, about="What is left empty is taken away.").ask(save)

    async def _rotate_client(self, data: dict[str, str]) -> None:
        name = data["id"]
        made: dict[str, Any] = {}
        grace = Field("grace_seconds", "Seconds for which the old token is taken, too", "0")

        async def save(given: dict[str, Any]) -> Any:
            body = {"grace_seconds": number(given["grace_seconds"])}
            told = await self.send("POST", path_of("clients", name, "rotate"), body, done=f"{name} has a new token")
            made.update(told or {})
            return told

        await Form(f"Rotate {name}", [grace], about="Its new token is shown once, next.", act="Rotate").ask(save)
        if "token" in made:
            await show_once(f"The token of {name}", made["token"])

    async def _new_budget(self) -> None:
        async def save(given: dict[str, Any]) -> Any:
            body = {name: number(value) if name == "limit_usd" else value for name, value in given.items() if value}
            return await self.send("POST", "/budgets", body, done="the budget is in force")

        await Form("New budget", BUDGET_FIELDS).ask(save)

    async def _change_budget(self, data: dict[str, str]) -> None:
        known = next((one for one in self.told["budgets"] if one["id"] == data["id"]), None)
        if known is None:
            return
        fields = [
            Field("limit_usd", "Limit, in dollars", str(known["limit_usd"])),
            Field("enforcement", "Enforcement", known["enforcement"], ENFORCEMENTS),
        ]

        async def save(given: dict[str, Any]) -> Any:
            body = {**given, "limit_usd": number(given["limit_usd"])}
            return await self.send("PATCH", path_of("budgets", data["id"]), body, done=f"{data['id']}: changed")

        await Form(f"Change {data['id']}", fields).ask(save)

    async def _edit_policy(self, policy_id: str | None) -> None:
        known = next((one for one in self.told["policies"] if one["id"] == policy_id), None)
        fields = ("name", "type", "scope", "scope_id", "rules", "enforcement", "priority", "enabled")
        draft = POLICY if known is None else {name: known[name] for name in fields if known.get(name) is not None}
        with ui.dialog() as dialog, ui.card().classes("editor-card"):
            ui.label("New policy" if known is None else f"Policy {policy_id}").classes("ask-title")
            ui.label("enforcement: hard, soft, or shadow (counts what it would have done, changes nothing)").classes(
                "dim"
            )
            text = ui.textarea(value=json.dumps(draft, indent=2)).classes("wide mono").props(
                'outlined autogrow spellcheck="false" aria-label="The policy as JSON"'
            )  # fmt: skip
            said = Block("wide", live=True)
            with ui.row().classes("ask-row"):
                ui.button("Close", on_click=lambda: dialog.submit(None)).props("flat no-caps")
                ui.button("Validate and dry run", on_click=lambda: self._try_policy(text.value, said)).props(
                    "outline no-caps"
                )
                ui.button("Put in force", on_click=lambda: dialog.submit(text.value)).props("unelevated no-caps")
        method, path = ("POST", "/policies") if known is None else ("PATCH", path_of("policies", str(policy_id)))
        while wanted := await dialog:
            body = as_json(wanted)
            if body is not None and await self.send(method, path, body, done="the policy is in force") is not None:
                break
        dialog.delete()

    async def _try_policy(self, text: str, said: Block) -> None:
        body = as_json(text)
        if body is None:
            return
        try:
            validation = await self.session.api.send("POST", "/policies/validate", body)
            impact = None
            if not validation.get("errors"):
                impact = await self.session.api.send("POST", "/policies/dry-run", {"policy": body})
        except Trouble as exc:
            tell(str(exc), bad=True)
            return
        said.put(shown.tried(validation, impact))


def _as_text(value: Any) -> str:
    """A setting as it is written in a form."""
    return "" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
