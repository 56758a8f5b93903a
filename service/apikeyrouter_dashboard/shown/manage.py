"""What is configured: clients, budgets, policies."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, button, count, dollars, note, table

__all__ = ["budgets", "clients", "policies", "tried"]

Told = Mapping[str, Any]


def clients(found: Sequence[Told], *, may: bool) -> Markup:
    """Who may call."""
    rows = [
        (
            one["name"], one["team"] or "none", ", ".join(one["models"]) if one["models"] else "all",
            badge("ok", "on") if one["enabled"] else badge("disabled", "off"),
            _limit(one["rpm"]), _limit(one["tpm"]), _limit(one["concurrency"]), one["weight"], one["source"],
            Markup("{} {} {} {}").format(
                button("client-change", "Change", id=one["name"]), button("client-rotate", "Rotate …", id=one["name"]),
                button("client-off" if one["enabled"] else "client-on", "Switch off" if one["enabled"] else "Switch on",
                       id=one["name"]),
                button("client-delete", "Delete …", kind="danger", id=one["name"]),
            ) if may and one["source"] == "api" else "",
        )
        for one in found
    ]  # fmt: skip
    columns = ["client", "team", "models", "", "rpm", "tpm", "concurrency", "weight", "from", ""]
    return table(columns, rows, none="no clients: whoever is on this machine may call", numbers=(4, 5, 6, 7))


def _limit(value: float | None) -> str:
    return "no limit" if value is None else count(value)


def budgets(found: Sequence[Told], *, may: bool) -> Markup:
    """What may be spent."""
    rows = [
        (
            one["id"], dollars(one["limit_usd"]), one["period"], one["enforcement"], one["unpriced"], one["suspense"],
            one["source"],
            Markup("{} {}").format(
                button("budget-limit", "Change", id=one["id"]),
                button("budget-delete", "Delete …", kind="danger", id=one["id"]),
            ) if may and one["source"] == "code" else "",
        )
        for one in found
    ]  # fmt: skip
    columns = ["budget", "limit", "period", "enforcement", "unpriced", "suspense", "from", ""]
    return table(columns, rows, none="no budgets", numbers=(1,))


def policies(found: Sequence[Told], *, may: bool) -> Markup:
    """What may serve whom."""
    rows = [
        (
            one["name"], one["scope"], one["scope_id"] or "", one["enforcement"],
            badge("ok", "on") if one["enabled"] else badge("disabled", "off"),
            ", ".join(f"{value} {name}" for name, value in one["counts"].items() if value), one["source"],
            Markup("{} {} {}").format(
                button("policy-edit", "Edit", id=one["id"]),
                button("policy-off" if one["enabled"] else "policy-on", "Switch off" if one["enabled"] else "Switch on",
                       id=one["id"]),
                button("policy-delete", "Delete …", kind="danger", id=one["id"]),
            ) if may and one["source"] == "api" else "",
        )
        for one in found
    ]  # fmt: skip
    return table(["policy", "scope", "of", "enforcement", "", "did", "from", ""], rows, none="no policies")


def tried(validation: Told | None, impact: Told | None) -> Markup:
    """What is wrong with a policy, and what it would change of the recent requests."""
    parts = []
    if validation is not None:
        wrong = [*validation.get("errors", ()), *validation.get("warnings", ())]
        sound = badge("ok", "✓ sound") if not validation.get("errors") else badge("bad", "✕ not sound")
        parts.append(Markup("<p>{}</p>").format(sound))
        parts += [note(_text(one)) for one in wrong]
    if impact is not None:
        rows = [(name.replace("_", " "), _text(value)) for name, value in impact.items()]
        parts.append(Markup("<h3>On the recent requests of all workers</h3>{}").format(table(["", ""], rows)))
    return Markup("").join(parts)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_text(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(one) for one in value[:20]) or "none"
    return "unknown" if value is None else str(value)
