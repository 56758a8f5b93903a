"""Providers, limits, admin keys, webhooks: what the deployment is made of."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any, ClassVar

from nicegui import ui

from apikeyrouter_dashboard.management import Trouble, path_of
from apikeyrouter_dashboard.pages.forms import Field, Form, as_json, show_once
from apikeyrouter_dashboard.pages.frame import Action, Block, Page, Told, ask_first, nothing, tell
from apikeyrouter_dashboard.sessions import ROLES
from apikeyrouter_dashboard.shown import setup as shown

__all__ = ["SetupPage"]

EVENTS = ("budget.threshold", "key.out", "provider.opened", "provider.closed", "ledger.drift")
ONCE = "What is secret of it is shown once, next."
ROWS_HINT = "a row a line: rpm=500, tpm=200000, kind=bucket"
OF_PROVIDER = ("adapter", "base_url", "options", "timeouts", "breaker_settings", "connections_max")


class SetupPage(Page):
    """Each change goes through the API, under the operator's own role."""

    path, title = "/setup", "Set-up"
    seconds: ClassVar[float] = 5.0

    def _build(self) -> None:
        self._may = self.session.may("admin")
        self._providers = self._section("Providers", "New provider …", self._new_provider)
        self._limits = self._section("Limits", "New limits …", self._new_limits)
        self._webhooks = self._section("Webhooks", "New webhook …", self._new_webhook)
        self._admin_keys = self._section("Admin keys", "New admin key …", self._new_admin_key)

    def _section(self, title: str, text: str, act: Any) -> Block:
        with ui.element("section").classes("panel"):
            with ui.row().classes("key-head"):
                ui.html(f"<h2>{title}</h2>", sanitize=False)
                made = ui.button(text, on_click=act).props("outline no-caps dense")
                if not self._may:
                    made.disable()
                    made.tooltip("takes the role admin")
            return Block()

    async def _read(self) -> Any:
        api = self.session.api
        providers, limits, webhooks, admin_keys = await asyncio.gather(
            api.pages("/providers", "providers"), api.pages("/limits", "limits", everything="true", most=1000),
            api.pages("/webhooks", "webhooks"),
            api.pages("/admin-keys", "admin_keys") if self._may else nothing(),
        )  # fmt: skip
        return {"providers": providers, "limits": limits, "webhooks": webhooks, "admin_keys": admin_keys}

    def _show(self, told: Any, now: datetime) -> None:
        self._providers.put(shown.providers(told["providers"], may=self._may))
        stated = [one for one in told["limits"] if one["rows"] or one["limits"]]
        self._limits.put(shown.limits(stated, may=self._may))
        self._webhooks.put(shown.webhooks(told["webhooks"], now, may=self._may))
        self._admin_keys.put(
            shown.admin_keys(told["admin_keys"], now) if self._may else "who they are takes the role admin"
        )

    def _actions(self) -> dict[str, Action]:
        return {
            "provider-change": lambda data: self._change_provider(data["id"]),
            "provider-delete": lambda data: self._delete("providers", data["id"]),
            "limit-change": lambda data: self._change_limits(data["id"]),
            "limit-delete": lambda data: self._delete("limits", data["id"]),
            "webhook-change": lambda data: self._change_webhook(data["id"]),
            "webhook-delete": lambda data: self._delete("webhooks", data["id"]),
            "webhook-test": lambda data: self._test_webhook(data["id"]),
            "webhook-log": lambda data: self._show_deliveries(data["id"]),
            "admin-change": lambda data: self._change_admin_key(data["id"]),
            "admin-rotate": lambda data: self._rotate_admin_key(data["id"]),
            "admin-delete": lambda data: self._delete("admin-keys", data["id"]),
        }

    def _known(self, kind: str, name: str, id: str) -> Told:
        found: Told = next(one for one in self.told[kind] if one[name] == id)
        return found

    async def _delete(self, kind: str, id: str) -> None:
        if await ask_first(f"Delete {id}?", "This cannot be taken back.", word=id, act="Delete"):
            await self.send("DELETE", path_of(kind, id), done=f"{id} is deleted")

    # --- providers -----------------------------------------------------------------------------------------------

    async def _new_provider(self) -> None:
        fields = [
            Field("id", "Name"), Field("adapter", "Adapter", hint="openai, anthropic, gemini, azure, vllm, generic, …"),
            Field("base_url", "Address", hint="none: the adapter's own"),
        ]  # fmt: skip

        async def save(given: dict[str, Any]) -> Any:
            body = {name: value for name, value in given.items() if value}
            return await self.send("POST", "/providers", body, done=f"{given['id']} is there")

        await Form("New provider", fields).ask(save)

    async def _change_provider(self, id: str) -> None:
        known = self._known("providers", "id", id)
        text = json.dumps({name: known[name] for name in OF_PROVIDER if known[name]}, indent=2)

        async def save(given: dict[str, Any]) -> Any:
            body = as_json(given["text"])
            if body is None:
                return None
            return await self.send("PATCH", path_of("providers", id), body, done=f"{id}: changed")

        told = Field("text", "The provider as JSON", text, lines=True)
        await Form(f"Change {id}", [told], about="As a configuration file has it; times in ms.").ask(save)

    # --- limits --------------------------------------------------------------------------------------------------

    async def _new_limits(self) -> None:
        fields = [
            Field("quota_group", "Quota group", hint="what the provider meters together"),
            Field("key", "Or one key", hint="our own limit on it"),
            Field("models", "Models that share them", hint="comma-separated; none: all"),
            Field("rows", "Limits", hint=ROWS_HINT, lines=True),
        ]  # fmt: skip

        async def save(given: dict[str, Any]) -> Any:
            rows = _rows(given["rows"])
            if rows is None:
                return None
            body: dict[str, Any] = {name: given[name] for name in ("quota_group", "key") if given[name]}
            models = [model.strip() for model in given["models"].split(",") if model.strip()]
            body |= {"rows": rows, **({"models": models} if models else {})}
            return await self.send("POST", "/limits", body, done="the limits are in force")

        await Form("New limits", fields).ask(save)

    async def _change_limits(self, id: str) -> None:
        text = shown.rows_as_text(self._known("limits", "id", id)["rows"] or [])

        async def save(given: dict[str, Any]) -> Any:
            rows = _rows(given["rows"])
            if rows is None:
                return None
            return await self.send("PATCH", path_of("limits", id), {"rows": rows}, done=f"{id}: changed")

        rows_of = Field("rows", "Limits", text, hint=ROWS_HINT, lines=True)
        await Form(f"Change {id}", [rows_of], about="What is used of those that stay is still counted.").ask(save)

    # --- webhooks ------------------------------------------------------------------------------------------------

    async def _new_webhook(self) -> None:
        fields = [Field("name", "Name"), *_of_webhook("", EVENTS)]
        await self._make("/webhooks", Form("New webhook", fields, about=ONCE), "secret")

    async def _make(self, path: str, form: Form, secret: str) -> None:
        """Make something that has a secret, which is shown this once."""
        made: Told = {}

        async def save(given: dict[str, Any]) -> Any:
            body = {name: value for name, value in given.items() if value}
            told = await self.send("POST", path, body, done=f"{given['name']} is made")
            made.update(told or {})
            return told

        await form.ask(save)
        if secret in made:
            await show_once(f"The {secret} of {made['name']}", made[secret])

    async def _change_webhook(self, id: str) -> None:
        known = self._known("webhooks", "name", id)
        states = ("on", "off") if known["enabled"] else ("off", "on")
        fields = [*_of_webhook(known["url"], known["events"]), Field("enabled", "It is", choices=states)]

        async def save(given: dict[str, Any]) -> Any:
            body = {**given, "enabled": given["enabled"] == "on"}
            return await self.send("PATCH", path_of("webhooks", id), body, done=f"{id}: changed")

        await Form(f"Change {id}", fields).ask(save)

    async def _test_webhook(self, id: str) -> None:
        await self.send("POST", path_of("webhooks", id, "test"), done="an event is on its way; see Deliveries")

    async def _show_deliveries(self, id: str) -> None:
        try:
            told = await self.session.api.get(path_of("webhooks", id, "deliveries"), limit=50)
        except Trouble as exc:
            tell(str(exc), bad=True)
            return
        with ui.dialog() as dialog, ui.card().classes("editor-card"):
            ui.label(f"Deliveries to {id}").classes("ask-title").props('role="heading" aria-level="2"')
            Block("wide").put(shown.deliveries(told["deliveries"], datetime.now(UTC)))
            ui.button("Close", on_click=dialog.close).props("flat no-caps")
        await dialog
        dialog.delete()

    # --- admin keys ----------------------------------------------------------------------------------------------

    async def _new_admin_key(self) -> None:
        fields = [Field("name", "Name"), *_of_admin_key("read", "")]
        await self._make("/admin-keys", Form("New admin key", fields, about=ONCE), "key")

    async def _change_admin_key(self, id: str) -> None:
        known = self._known("admin_keys", "name", id)

        async def save(given: dict[str, Any]) -> Any:
            body = {"role": given["role"], "expires_at": given["expires_at"] or None}
            return await self.send("PATCH", path_of("admin-keys", id), body, done=f"{id}: changed")

        await Form(f"Change {id}", _of_admin_key(known["role"], known["expires_at"] or "")).ask(save)

    async def _rotate_admin_key(self, id: str) -> None:
        if await ask_first(f"Rotate {id}?", "The key that it has now is refused at once.", word=id, act="Rotate"):
            made = await self.send("POST", path_of("admin-keys", id, "rotate"), done=f"{id} has a new key")
            if made and "key" in made:
                await show_once(f"The admin key of {id}", made["key"])


def _of_webhook(url: str, events: Any) -> list[Field]:
    return [
        Field("url", "Address", url, hint="https://…"),
        Field("events", "Events", " ".join(events), choices=EVENTS, many=True),
    ]


def _of_admin_key(role: str, expires_at: str) -> list[Field]:
    return [
        Field("role", "Role", role, choices=ROLES, hint="read looks, operate runs, admin changes all"),
        Field("expires_at", "Ends", expires_at, hint="e.g. 2030-01-31T00:00:00Z; none: never"),
    ]


def _rows(text: str) -> list[dict[str, Any]] | None:
    try:
        return shown.read_rows(text)
    except ValueError as exc:
        tell(str(exc), bad=True)
        return None
