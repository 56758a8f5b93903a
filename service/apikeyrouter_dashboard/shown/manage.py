"""What is configured: keys to import, clients, budgets, policies, the audit log."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, button, count, dollars, note, table

__all__ = ["ImportRow", "budgets", "clients", "imported", "parse_import", "policies", "tried"]

Told = Mapping[str, Any]
ROWS_MAX = 1000


@dataclass(slots=True)
class ImportRow:
    """One line of an import: what is to be registered, or why it cannot be. The material is never shown."""

    number: int
    provider_id: str = ""
    material: str = field(default="", repr=False)
    metadata: dict[str, Any] = field(default_factory=dict)
    result: str = ""
    worked: bool = False


def parse_import(text: str) -> list[ImportRow]:
    """Lines of `provider, key, name=value, …` (or provider, key, {json}). Blank lines and # are passed over.

    A row that cannot be read has its `result` already. Values: `tags=a|b` is a list, everything else is text.
    """
    rows: list[ImportRow] = []
    for number, line in enumerate(text.splitlines(), start=1):
        told = line.strip()
        if told and not told.startswith("#"):
            rows.append(_row(number, told))
    for row in rows[ROWS_MAX:]:
        row.result = f"only {ROWS_MAX} rows at once"
    return rows


def _row(number: int, line: str) -> ImportRow:
    provider, _, rest = line.partition(",")
    material, _, more = rest.partition(",")
    row = ImportRow(number, provider.strip(), material.strip())
    if not row.provider_id or not row.material:
        row.result = "needs a provider and a key: provider, key, name=value …"
        return row
    more = more.strip()
    if more.startswith("{"):
        try:
            row.metadata = dict(json.loads(more))
        except (ValueError, TypeError):
            row.result = "its metadata is no JSON object"
        return row
    for part in filter(None, (part.strip() for part in more.split(","))):
        name, found, value = part.partition("=")
        if not found or not name.strip():
            row.result = "metadata is name=value"
            return row
        row.metadata[name.strip()] = value.strip().split("|") if name.strip() == "tags" else value.strip()
    return row


def imported(rows: Iterable[ImportRow]) -> Markup:
    """What became of each row."""
    told = [
        (row.number, row.provider_id, ", ".join(f"{name}={value}" for name, value in row.metadata.items()),
         badge("ok", "✓ registered") if row.worked else badge("bad", "✕ refused"), row.result)
        for row in rows
    ]  # fmt: skip
    return table(["line", "provider", "metadata", "", "result"], told, none="there is no row", numbers=(0,))


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
