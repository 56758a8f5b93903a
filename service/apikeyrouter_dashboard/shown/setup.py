"""What the deployment is made of: providers, limits, admin keys, webhooks; and rows of limits as they are written."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from apikeyrouter_dashboard.shown.words import badge, button, count, table, when

__all__ = ["admin_keys", "deliveries", "limits", "providers", "read_rows", "rows_as_text", "webhooks"]

Told = Mapping[str, Any]
WORDS = ("kind", "timezone", "spend_period")
"""Fields of a row of limits that are words; the others are numbers."""
BREAKERS = {"closed": ("ok", "✓ closed"), "open": ("bad", "⚡ open"), "half_open": ("warn", "◔ half open")}


def providers(found: Sequence[Told], *, may: bool) -> Markup:
    """Where they are, and how they fare."""
    rows = [
        (
            one["id"], one["adapter"] or "in code", one["base_url"] or "the adapter's own", count(one["keys"]),
            badge(*BREAKERS[one["breaker"]]), count(one["in_flight"]),
            f"{count(one['failures_total'])} of {count(one['requests_total'])}", one["source"],
            _buttons("provider", one["id"]) if may and one["source"] == "api" else "",
        )
        for one in found
    ]  # fmt: skip
    columns = ["provider", "adapter", "address", "keys", "breaker", "in flight", "failed", "from", ""]
    return table(columns, rows, none="no providers", numbers=(3, 5))


def limits(found: Sequence[Told], *, may: bool) -> Markup:
    """What is metered. What a file or a key's metadata states is changed there."""
    rows = [
        (
            Markup("<code>{}</code>").format(one["id"]), one["kind"].replace("_", " "), one["name"],
            one["models"] or "all", _limits(one), one["source"],
            _buttons("limit", one["id"]) if may and one["source"] == "api" else "",
        )
        for one in found
    ]  # fmt: skip
    columns = ["lane", "of", "name", "models", "limits", "from", ""]
    return table(columns, rows, none="no limits: what providers say of theirs is learned from their answers")


def _limits(lane: Told) -> str:
    if lane["rows"]:
        return "; ".join(rows_as_text(lane["rows"]).splitlines())
    told = (f"{one['name'].removesuffix('~')} {count(one['capacity'])}" for one in lane["limits"])
    return ", ".join(told) or "none known"


def admin_keys(found: Sequence[Told], now: datetime) -> Markup:
    """Who may manage."""
    rows = [
        (
            one["name"], one["role"], when(one["created_at"], now), when(one["expires_at"], now, unknown="never"),
            Markup("{} {} {}").format(
                button("admin-change", "Change", id=one["name"]), button("admin-rotate", "Rotate …", id=one["name"]),
                button("admin-delete", "Revoke …", kind="danger", id=one["name"]),
            ),
        )
        for one in found
    ]  # fmt: skip
    return table(["admin key", "role", "made", "ends", ""], rows, none="only the first one: MANAGEMENT_API_KEY")


def webhooks(found: Sequence[Told], now: datetime, *, may: bool) -> Markup:
    """Who is told of which events, and whether that arrives."""
    rows = [
        (
            one["name"], one["url"], ", ".join(one["events"]),
            badge("ok", "on") if one["enabled"] else badge("disabled", "off"), _delivery(one["last_delivery"], now),
            Markup("{} {} {}").format(
                button("webhook-log", "Deliveries", id=one["name"]), button("webhook-test", "Test", id=one["name"]),
                _buttons("webhook", one["name"]),
            ) if may else button("webhook-log", "Deliveries", id=one["name"]),
        )
        for one in found
    ]  # fmt: skip
    return table(["webhook", "address", "events", "", "last try", ""], rows, none="nobody is told of anything")


def _delivery(last: Told | None, now: datetime) -> Markup:
    if last is None:
        return Markup('<span class="dim">none yet</span>')
    why = last["error"] or f"answered {last['status']}"
    told = badge("ok", "✓ arrived") if last["delivered"] else badge("bad", f"✕ {why}")
    return Markup("{} {}").format(told, when(last["at"], now))


def deliveries(found: Sequence[Told], now: datetime) -> Markup:
    """What waits, then what has ended."""
    rows = [
        (when(one["created_at"], now), one["type"], one["state"].replace("_", " "), one["attempts"],
         one["error"] or one["status"] or "–", when(one["next_at"], now, unknown="–"))
        for one in found
    ]  # fmt: skip
    return table(["event of", "what", "state", "tries", "answer", "again"], rows, none="nothing was sent yet")


def _buttons(kind: str, id: str) -> Markup:
    return Markup("{} {}").format(
        button(f"{kind}-change", "Change", id=id), button(f"{kind}-delete", "Delete …", kind="danger", id=id)
    )


def read_rows(text: str) -> list[dict[str, Any]]:
    """Limits as they are written: a row a line, `rpm=500, tpm=200000, kind=bucket`.

    Errors: ValueError that names the line. Names and values are judged by the service.
    """
    rows = [_row(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not rows:
        raise ValueError("a row is wanted: rpm=500, tpm=200000")
    return rows


def _row(number: int, line: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in line.split(","))):
        name, found, value = (side.strip() for side in part.partition("="))
        try:
            row[name] = value if name in WORDS else int(value) if value.isdigit() else float(value)
        except ValueError:
            found = ""
        if not found or not name:
            raise ValueError(f"line {number}: {part!r} is not name=number")
    return row


def rows_as_text(rows: Sequence[Told]) -> str:
    """The same back."""
    return "\n".join(", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                               for name, value in row.items()) for row in rows)  # fmt: skip
