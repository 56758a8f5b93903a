"""Keys to import, clients, budgets, policies; and who changed what."""

import asyncio
import json
from datetime import datetime
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.management import Trouble, path_of
from apikeyrouter_dashboard.pages.frame import Action, Block, Page, ask_first, tell
from apikeyrouter_dashboard.shown import manage as shown
from apikeyrouter_dashboard.shown.fleet import audit_log

__all__ = ["ManagePage"]

POLICY = {"name": "no such model at night", "rules": {"denied_models": ["gpt-4o"]}, "enforcement": "shadow"}
PERIODS = ["hourly", "daily", "weekly", "monthly", "total"]
SCOPES = ["global", "provider", "team", "client", "key"]
AUDIT_SHOWN = 50


class ManagePage(Page):
    """Everything that can be changed here; each change goes through the API, under the operator's own role."""

    path, title = "/manage", "Manage"
    seconds: ClassVar[float] = 5.0

    def _build(self) -> None:
        self._may = self.session.may("admin")
        with ui.element("section").classes("panel"):
            ui.html("<h2>Import keys</h2>", sanitize=False)
            ui.html("<p class='dim'>A line a key: provider, key, name=value … — e.g. openai, sk-…, quota_group=org-a, "
                    "tier=pro, tags=night|batch</p>", sanitize=False)  # fmt: skip
            self._lines = ui.textarea(placeholder="openai, sk-…, quota_group=org-a").classes("wide mono").props(
                'outlined dense autogrow autocomplete="off" spellcheck="false" aria-label="Keys to import"'
            )  # fmt: skip
            self._button("Import", self._import)
            self._imported = Block(live=True)
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

    async def _import(self) -> None:
        rows = shown.parse_import(str(self._lines.value or ""))
        self._lines.set_value("")
        for row in rows:
            if not row.result:
                body = {"key_material": row.material, "provider_id": row.provider_id, "metadata": row.metadata}
                try:
                    told = await self.session.api.send("POST", "/keys", body)
                    row.result, row.worked = told["id"], True
                except Trouble as exc:
                    row.result = str(exc)
        self._imported.put(shown.imported(rows))
        await self.look()

    async def _new_client(self) -> None:
        form = _Form("New client", {"name": "", "team": "", "rpm": "", "tpm": "", "concurrency": ""})
        given = await form.asked()
        if given is None:
            return
        body = {name: int(value) if value.isdigit() else value for name, value in given.items() if value}
        made = await self.send("POST", "/clients", {**body, "name": given["name"]}, done=f"{given['name']} is made")
        if made and "token" in made:
            await _show_once(f"The token of {given['name']}", made["token"])

    async def _new_budget(self) -> None:
        choices = {"scope": SCOPES, "period": PERIODS, "enforcement": ["hard", "soft"]}
        form = _Form("New budget", {"scope_id": "", "name": "", "limit_usd": ""}, choices)
        given = await form.asked()
        if given is not None:
            body = {name: _dollars(name, value) for name, value in given.items() if value}
            await self.send("POST", "/budgets", body, done="the budget is in force")

    async def _change_budget(self, data: dict[str, str]) -> None:
        known = next((one for one in self.told["budgets"] if one["id"] == data["id"]), None)
        if known is None:
            return
        form = _Form(f"Change {data['id']}", {"limit_usd": str(known["limit_usd"])}, {"enforcement": ["hard", "soft"]},
                     chosen={"enforcement": known["enforcement"]})  # fmt: skip
        given = await form.asked()
        if given is not None:
            body = {name: _dollars(name, value) for name, value in given.items()}
            await self.send("PATCH", path_of("budgets", data["id"]), body, done=f"{data['id']}: changed")

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
        wanted = await dialog
        dialog.delete()
        if wanted and (body := _json(wanted)) is not None:
            method, path = ("POST", "/policies") if known is None else ("PATCH", path_of("policies", str(policy_id)))
            await self.send(method, path, body, done="the policy is in force")

    async def _try_policy(self, text: str, said: Block) -> None:
        body = _json(text)
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


class _Form:
    """A dialog with some fields; what was given, or None."""

    def __init__(
        self, title: str, fields: dict[str, str], choices: dict[str, list[str]] | None = None,
        chosen: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        with ui.dialog() as self._dialog, ui.card().classes("ask"):
            ui.label(title).classes("ask-title").props('role="heading" aria-level="2"')
            self._made: dict[str, Any] = {
                name: ui.select(told, value=(chosen or {}).get(name, told[0]), label=name).classes("wide").props(
                    "outlined dense"
                )
                for name, told in (choices or {}).items()
            }  # fmt: skip
            for name, value in fields.items():
                self._made[name] = ui.input(name, value=value).classes("wide").props("outlined dense")
            with ui.row().classes("ask-row"):
                ui.button("Cancel", on_click=lambda: self._dialog.submit(False)).props("flat no-caps")
                ui.button("Save", on_click=lambda: self._dialog.submit(True)).props("unelevated no-caps")

    async def asked(self) -> dict[str, str] | None:
        """Ask, and wait."""
        saved = await self._dialog
        given = {name: str(field.value or "").strip() for name, field in self._made.items()}
        self._dialog.delete()
        return given if saved else None


def _dollars(name: str, value: str) -> Any:
    """Amounts are numbers in the API; what is none is sent as it is, and refused there with a reason."""
    try:
        return float(value) if name == "limit_usd" else value
    except ValueError:
        return value


def _json(text: str) -> dict[str, Any] | None:
    try:
        told = json.loads(text)
    except ValueError as exc:
        tell(f"this is no JSON: {exc}", bad=True)
        return None
    if not isinstance(told, dict):
        tell("a policy is a JSON object", bad=True)
        return None
    return told


async def _show_once(title: str, secret: str) -> None:
    """A secret that its owner must take now: the only one that a browser is ever sent."""
    with ui.dialog() as dialog, ui.card().classes("ask"):
        ui.label(title).classes("ask-title")
        ui.label("It is shown this once; the service keeps a hash.").classes("dim")
        ui.input(value=secret).props("readonly outlined dense").classes("wide mono secret")
        ui.button("I have it", on_click=lambda: dialog.submit(True)).props("unelevated no-caps")
    await dialog
    dialog.delete()
