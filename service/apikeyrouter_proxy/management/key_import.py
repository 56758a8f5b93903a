"""Many provider keys at once: each row is registered by itself, and answered for by itself."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from apikeyrouter.domain.components.key_manager import Registered
from apikeyrouter.domain.interfaces.state_store import KEYS_PAGE
from apikeyrouter.domain.models.system_error import InvalidRequestError
from apikeyrouter_proxy.management.desk import AdminDesk, Desk
from apikeyrouter_proxy.management.key_rows import CSV, JSON, LINES, KeyRow, Row, read_rows

__all__ = ["routes"]

routes = APIRouter()
OUTCOMES = ("created", "updated", "unchanged", "refused")
_ROW = KeyRow.model_json_schema()
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": {"type": "array", "items": _ROW}},
            LINES: {"schema": {"type": "string", "description": "One JSON object a line, as in the array"}},
            CSV: {
                "schema": {
                    "type": "string",
                    "description": "The first line names the columns: key_material, provider_id, and metadata by name",
                }
            },
        },
    }
}


@routes.post("/keys/import", openapi_extra=_BODY)
async def import_keys(
    desk: AdminDesk,
    request: Request,
    provider_id: Annotated[
        str | None, Query(min_length=1, max_length=256, description="Whose keys those are that do not say so")
    ] = None,
    dry_run: Annotated[bool, Query(description="Only say what would become of each row")] = False,
) -> dict[str, Any]:
    """Register many keys: a row that is refused keeps no other back. The same again changes nothing."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    rows = read_rows(_text(await request.body()), kind, provider_id=provider_id)
    told: list[dict[str, Any]] = []
    for start in range(0, len(rows), KEYS_PAGE):
        told += await _page(desk, rows[start : start + KEYS_PAGE], dry_run=dry_run)
    counted = Counter(row["outcome"] for row in told)
    return {"rows": told, **{name: counted[name] for name in OUTCOMES}, "dry_run": dry_run}


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidRequestError("must be UTF-8", field="body") from exc


async def _page(desk: Desk, rows: Sequence[Row], *, dry_run: bool) -> list[dict[str, Any]]:
    """Register a page of rows, in one turn; what became of each."""
    keys = [row.key for row in rows if row.key is not None]
    manager = desk.router.key_manager
    if dry_run:
        found = await manager.import_keys(keys, actor=desk.operator.name, dry_run=True)
    else:
        async with desk.turn():
            found = await manager.import_keys(keys, actor=desk.operator.name)
            await _note(desk, found)
    left = iter(found)
    return [_shown(row, next(left) if row.key is not None else None) for row in rows]


async def _note(desk: Desk, found: Sequence[Registered]) -> None:
    """One entry of the audit log for a page, with the ids of what changed."""
    changed = {
        outcome: [one.key.id for one in found if one.outcome == outcome and one.key is not None]
        for outcome in ("created", "updated")
    }
    if any(changed.values()):
        await desk.note("key", "import", "imported", changed)


def _shown(row: Row, found: Registered | None) -> dict[str, Any]:
    if found is None:
        return {"line": row.line, "outcome": "refused", "id": None, "reason": row.refused}
    key_id = None if found.key is None else found.key.id
    reason = None if found.error is None else str(found.error)
    return {"line": row.line, "outcome": found.outcome, "id": key_id, "reason": reason}
